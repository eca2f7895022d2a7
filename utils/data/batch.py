"""`Batch`: images, soft labels and classes for one optimizer step; a live teacher may add the soft labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

import torch

from utils.labels.types import Answers, answers_of, each, tensors_of
from utils.system.distributed import Parts
from utils.system.errors import InputError

StepTensors = Sequence[Any]  # tensors; None if the teacher has not answered


@dataclass(frozen=True)
class Batch:
    """One optimizer step's worth of data, mixed and on its device.

    Attributes:
        images: float [B, 3, S, S], normalised.
        soft_labels: the teacher's logits, float [B, C] or `TopK`; None if no teacher has answered.
        targets: int64 [B], folder classes.
        parts: (rows of this rank, rows of all ranks) of each micro-batch; None if this process has all rows.
    """

    images: torch.Tensor
    soft_labels: Answers | None
    targets: torch.Tensor
    parts: Parts | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def whole(self) -> int:
        """Return the number of rows of the batch over all ranks."""
        return len(self) if self.parts is None else sum(rows for _, rows in self.parts)

    def split(self, size: int) -> Iterator["Batch"]:
        """Yield micro-batches of at most `size` rows, or of the sizes in `parts` if given; no row is dropped."""
        sizes = (min(size, len(self) - start) for start in range(0, len(self), size))
        parts = self.parts or tuple((n, n) for n in sizes)
        start = 0
        for here, whole in parts:
            rows = slice(start, start + here)
            soft_labels = each(self.soft_labels, itemgetter(rows))
            yield Batch(self.images[rows], soft_labels, self.targets[rows], ((here, whole),))
            start += here

    def own(self, parts: Parts | None) -> "Batch":
        """Return this rank's rows, which come first; the rows after them served only as mix partners."""
        if parts is None:
            return self
        here = sum(own for own, _ in parts)
        soft_labels = each(self.soft_labels, itemgetter(slice(here)))
        return Batch(self.images[:here], soft_labels, self.targets[:here], parts)

    def ready(self) -> "Batch":
        """Return the batch with its images already computed, so that several students can share it."""
        return self

    def tensors(self) -> StepTensors:
        """Return the inputs of a step, to be copied into a captured CUDA graph; an item may be None."""
        return self.images, self.targets, *tensors_of(self.soft_labels)

    def like(self, tensors: StepTensors) -> "Batch":
        """Return a batch of this type made from `tensors`, the `tensors()` of a batch of the same shapes."""
        images, targets, *soft_labels = tensors
        return Batch(images, answers_of(soft_labels), targets)


class Batches(Protocol):
    """Source of a run's training batches: workers, resident images, or either with a live teacher."""

    batches_per_epoch: int

    def epoch(self, epoch: int, first_batch: int = 0, /) -> Iterator[Batch]:
        """Yield the batches of an epoch, from `first_batch` on; epochs must be requested in order."""


class LiveTeacher:
    """Source of training batches that adds a teacher's logits to each batch of another source.

    Args:
        batches: batches without soft labels, such as `WorkerBatches` of `DrawnViews`.
        teacher: images [B, 3, S, S] -> logits float32 [B, C].
    """

    def __init__(self, batches: Batches, teacher: Callable[[torch.Tensor], torch.Tensor]):
        self.batches, self.teacher = batches, teacher
        self.batches_per_epoch = batches.batches_per_epoch

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch with the teacher's logits.

        Raises:
            InputError: a logit is not finite. The check runs once per epoch, because it synchronises with the device.
        """
        finite = []
        for batch in self.batches.epoch(epoch, first_batch):
            answers = self.teacher(batch.images)
            finite.append(answers.isfinite().all())
            yield Batch(batch.images, answers, batch.targets, batch.parts)
        if finite:
            refuse_non_finite(torch.stack(finite).all())


def refuse_non_finite(finite: torch.Tensor) -> None:
    """Raise InputError if `finite`, a tensor of one bool, is false."""
    if not finite:
        raise InputError("a teacher's answers are not finite; check its weights, or use --precision fp32")
