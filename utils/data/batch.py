"""Define `Batch`, the data of one optimizer step, and `LiveTeacher`, which adds a teacher's logits to batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

import torch

from utils.labels.types import Answers, answers_of, each, tensors_of
from utils.system.distributed import Parts
from utils.system.errors import InputError

StepTensors = Sequence[Any]  # tensors, with None in place of missing soft labels


@dataclass(frozen=True)
class Batch:
    """The images and labels of one optimizer step, on the device; cutmix or mixup has been applied already.

    Attributes:
        images: float [B, 3, S, S], normalised.
        soft_labels: in epochs with soft labels, the teacher's logits, float [B, C] or `TopK` (the k largest per row);
            or a `Weighted`, which holds either of them and the weight of each row in the loss. In epochs with hard
            labels, the smoothed class probabilities, float [B, C]. None until a teacher has labelled the batch.
        targets: int64 [B], class of each image, from the folder that the image is in.
        parts: for each micro-batch, (number of rows on this rank, number on all ranks); None with only one process.
    """

    images: torch.Tensor
    soft_labels: Answers | None
    targets: torch.Tensor
    parts: Parts | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def whole(self) -> int:
        """Return the number of rows of the batch, added up over all ranks."""
        return len(self) if self.parts is None else sum(rows for _, rows in self.parts)

    def split(self, size: int) -> Iterator["Batch"]:
        """Yield the rows of this batch as consecutive micro-batches.

        The attribute `parts` gives the number of rows of each micro-batch. If `parts` is None, each micro-batch has
        `size` rows, except the last one, which may be smaller.
        """
        sizes = (min(size, len(self) - start) for start in range(0, len(self), size))
        parts = self.parts or tuple((n, n) for n in sizes)
        start = 0
        for here, whole in parts:
            rows = slice(start, start + here)
            soft_labels = each(self.soft_labels, itemgetter(rows))
            yield Batch(self.images[rows], soft_labels, self.targets[rows], ((here, whole),))
            start += here

    def own(self, parts: Parts | None) -> "Batch":
        """Return a batch of only this rank's rows; if `parts` is None, return the batch itself.

        This rank's rows come first. The rows after them were loaded only as cutmix or mixup partners.

        Args:
            parts: for each micro-batch, (number of rows on this rank, number on all ranks).
        """
        if parts is None:
            return self
        here = sum(own for own, _ in parts)
        soft_labels = each(self.soft_labels, itemgetter(slice(here)))
        return Batch(self.images[:here], soft_labels, self.targets[:here], parts)

    def ready(self) -> "Batch":
        """Return this batch itself, because its images are computed already."""
        return self

    def tensors(self) -> StepTensors:
        """Return the tensors that a training step reads; they are copied into the inputs of a captured CUDA graph.

        None stands for missing soft labels.
        """
        return self.images, self.targets, *tensors_of(self.soft_labels)

    def like(self, tensors: StepTensors) -> "Batch":
        """Return a new `Batch` made of the given tensors; their order is that of the result of `self.tensors()`."""
        images, targets, *soft_labels = tensors
        return Batch(images, answers_of(soft_labels), targets)


class Batches(Protocol):
    """Interface of every source of training batches: worker processes, images in memory, or a live teacher."""

    batches_per_epoch: int

    def epoch(self, epoch: int, first_batch: int = 0, /) -> Iterator[Batch]:
        """Yield the training batches of an epoch, from `first_batch` on; epochs must be requested in order."""


class LiveTeacher:
    """Source of training batches that adds a teacher's logits to each batch of another source.

    Args:
        batches: source of batches without soft labels.
        teacher: function from images [B, 3, S, S] to logits float32 [B, C].
    """

    def __init__(self, batches: Batches, teacher: Callable[[torch.Tensor], torch.Tensor]):
        self.batches, self.teacher = batches, teacher
        self.batches_per_epoch = batches.batches_per_epoch

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from `first_batch` on, with the teacher's logits as soft labels.

        Raises:
            InputError: a logit is not finite. The check waits for the device, so all logits are checked together at
                the end of the epoch.
        """
        finite = []
        for batch in self.batches.epoch(epoch, first_batch):
            answers = self.teacher(batch.images)
            finite.append(answers.isfinite().all())
            yield Batch(batch.images, answers, batch.targets, batch.parts)
        if finite:
            refuse_non_finite(torch.stack(finite).all())


def refuse_non_finite(finite: torch.Tensor) -> None:
    """Raise InputError if a teacher's logits are not finite.

    Args:
        finite: bool [], whether all logits are finite.
    """
    if not finite:
        raise InputError("a teacher's answers are not finite; check its weights, or use --precision fp32")
