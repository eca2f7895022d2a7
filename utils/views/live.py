"""Batches whose soft labels a teacher computes during training (naive KD)."""

from collections.abc import Callable, Iterator

import torch

from utils.system.errors import InputError
from utils.views.batch import Batch, Batches


class LiveTeacher:
    """Wraps batches and adds a teacher's logits to each.

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
            InputError: a logit is not finite. Checked once per epoch, because the check synchronises with the device.
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
