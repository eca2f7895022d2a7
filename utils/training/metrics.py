"""Sum the loss and the top-k hits on the device, without a synchronisation in every batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from utils.system.distributed import World
from utils.system.machine import exact_dtype


@dataclass(frozen=True)
class Metrics:
    """Results of one training epoch or one evaluation: mean loss, and top-1 and top-5 accuracy in percent."""

    loss: float
    top1: float
    top5: float
    samples: int


class MetricSums:
    """Running sums of [loss, top-1 hits, top-5 hits] on the device, without synchronisation.

    Args:
        device: device that holds the sums.
        sums: initial sums. They are 0 unless a run is resumed within an epoch.
        samples: number of samples in the initial sums.
    """

    def __init__(self, device: torch.device | str, sums: Sequence[float] = (0, 0, 0), samples: int = 0):
        self.sums = torch.tensor(sums, dtype=exact_dtype(torch.device(device)), device=device)
        self.samples = samples
        self.losses: list[torch.Tensor] = []  # running sum of the loss after each batch

    @torch.no_grad()
    def add(self, loss: torch.Tensor, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add the loss and the hits of one micro-batch.

        Args:
            loss: mean loss over the rows of the micro-batch.
            outputs: the student's logits, [B, C].
            targets: the classes, int64 [B].
        """
        top = outputs.topk(min(5, outputs.shape[1]), dim=1).indices  # [B, 5]
        hits = top == targets[:, None]
        rows = len(targets)
        self.sums += torch.stack([loss.detach().to(self.sums.dtype) * rows, hits[:, 0].sum(), hits.any(dim=1).sum()])
        self.samples += rows

    def end_batch(self) -> None:
        """Record the running sum of the loss at the end of a batch, for `first_non_finite`."""
        self.losses.append(self.sums[0].clone())

    def first_non_finite(self) -> int | None:
        """Return the index of the first batch after which the running sum of the loss was not finite.

        Return None if the sum is finite after every batch.
        """
        finite = torch.stack(self.losses).isfinite().tolist() if self.losses else []
        return finite.index(False) if False in finite else None

    def sum_over(self, world: World) -> "MetricSums":
        """Add up the sums of all ranks, in place, and return self.

        Every rank must call this method, after the same number of batches.
        """
        if world.size > 1:
            own = torch.tensor([self.samples], dtype=self.sums.dtype, device=self.sums.device)
            total = world.all_reduce_sum(torch.cat([self.sums, own, *(loss[None] for loss in self.losses)]))
            self.sums, self.samples, self.losses = total[:3], int(total[3]), list(total[4:])
        return self

    def result(self) -> Metrics:
        """Read the sums from the device, and return the mean loss and accuracies."""
        loss, top1, top5 = (self.sums / self.samples).tolist()
        return Metrics(loss, 100 * top1, 100 * top5, self.samples)
