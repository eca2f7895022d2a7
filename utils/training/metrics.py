"""Sums of loss and top-k that stay on the device until an epoch is over."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from utils.system.distributed import World


@dataclass(frozen=True)
class Metrics:
    """Means over the samples of one pass: loss, and top-1 and top-5 in percent."""

    loss: float
    top1: float
    top5: float
    samples: int


class MetricSums:
    """Adds up [loss, top-1 hits, top-5 hits] without reading them back (no synchronisation).

    Args:
        device: where the sums live.
        sums, samples: of an earlier part of the same pass.
    """

    def __init__(self, device: torch.device | str, sums: Sequence[float] = (0, 0, 0), samples: int = 0):
        self.sums = torch.tensor(sums, dtype=torch.float64, device=device)
        self.samples = samples
        self.losses: list[torch.Tensor] = []  # sum of the loss after each batch

    @torch.no_grad()
    def add(self, loss: torch.Tensor, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add one micro-batch: its mean loss, logits [B, C] and classes [B]."""
        top = outputs.topk(min(5, outputs.shape[1]), dim=1).indices  # [B, 5]
        hits = top == targets[:, None]
        rows = len(targets)
        self.sums += torch.stack([loss.detach().double() * rows, hits[:, 0].sum(), hits.any(dim=1).sum()])
        self.samples += rows

    def end_batch(self) -> None:
        """Note that a batch is complete."""
        self.losses.append(self.sums[0].clone())

    def first_non_finite(self) -> int | None:
        """Number of the first batch, of those noted, after which the loss is not finite; None if there is none."""
        finite = torch.stack(self.losses).isfinite().tolist() if self.losses else []
        return finite.index(False) if False in finite else None

    def sum_over(self, world: World) -> "MetricSums":
        """Return the sums over all ranks of a `World`; every rank has the same number of batches."""
        if world.size > 1:
            own = torch.tensor([self.samples], dtype=torch.float64, device=self.sums.device)
            total = world.all_reduce_sum(torch.cat([self.sums, own, *(loss[None] for loss in self.losses)]))
            self.sums, self.samples, self.losses = total[:3], int(total[3]), list(total[4:])
        return self

    def result(self) -> Metrics:
        """Read the sums once and return `Metrics`."""
        loss, top1, top5 = (self.sums / self.samples).tolist()
        return Metrics(loss, 100 * top1, 100 * top5, self.samples)
