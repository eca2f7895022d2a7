"""Sums of loss and top-k that stay on the device until an epoch is over."""

from dataclasses import dataclass

import torch


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
    """

    def __init__(self, device):
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.samples = 0

    @torch.no_grad()
    def add(self, loss, outputs, targets):
        """Add one micro-batch: its mean loss, logits [B, C] and classes [B]."""
        top = outputs.topk(min(5, outputs.shape[1]), dim=1).indices  # [B, 5]
        hits = top == targets[:, None]
        rows = len(targets)
        self.sums += torch.stack([loss.detach().double() * rows, hits[:, 0].sum(), hits.any(dim=1).sum()])
        self.samples += rows

    def result(self):
        """Read the sums once and return `Metrics`."""
        loss, top1, top5 = (self.sums / self.samples).tolist()
        return Metrics(loss, 100 * top1, 100 * top5, self.samples)
