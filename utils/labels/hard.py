"""Epochs on hard labels between those on soft ones (HALD, arXiv 2512.15647): when they come, and what they show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from utils.labels.types import Mix
from utils.labels.views import DrawnBatch, DrawnViews, ViewPolicy

SEED_APART = 104_729  # between the views of labels that were made here with one seed, and hard epochs of the same


@dataclass(frozen=True)
class Phases:
    """Half of the soft epochs (rounded down), then all hard ones, then the other soft ones.

    Attributes:
        epochs: of the whole run.
        hard: how many of them are hard; 0 for none.
    """

    epochs: int
    hard: int = 0

    @property
    def soft(self) -> int:
        """Number of soft epochs."""
        return self.epochs - self.hard

    def is_hard(self, epoch: int) -> bool:
        """Whether an epoch of the run is hard."""
        return self.soft // 2 <= epoch < self.soft // 2 + self.hard

    def hard_before(self, epoch: int) -> int:
        """Number of hard epochs before an epoch of the run; of a hard one, its own number."""
        return min(max(epoch - self.soft // 2, 0), self.hard)

    def soft_before(self, epoch: int) -> int:
        """Number of soft epochs before an epoch of the run; of a soft one, its own number."""
        return epoch - self.hard_before(epoch)


class HardViews(DrawnViews):
    """Views of hard epochs, which count from 0, with the mixed, smoothed classes of their images as answers.

    All is as in timm's Mixup in batch mode, with cutmix alone: row i is mixed with row B - 1 - i, and each class
    weighs what its image covers. Batches have an even number of rows, so that an odd image is left out of an epoch.

    Args:
        targets: folder class of each of the N images.
        num_classes: C, the student's.
        input_size: S, side of the views in pixels.
        batch_size: B, even.
        smoothing: share of the mass that all classes get alike, in [0, 1].
        seed: of crops, flips, boxes and order.
    """

    def __init__(
        self, targets: Sequence[int], num_classes: int, input_size: int, batch_size: int, smoothing: float, seed: int
    ) -> None:
        policy = ViewPolicy(seed + SEED_APART, input_size, 0.08, 1.0, "cutmix", 0.0, 1.0)
        super().__init__(policy, len(targets), batch_size)
        self.batches_per_epoch = math.ceil((self.num_images - self.num_images % 2) / batch_size)
        self.targets, self.num_classes, self.smoothing = torch.tensor(targets), num_classes, smoothing

    def rows(self, _epoch: int, batch: int) -> int:
        """As `LabelStore.rows`."""
        return min(self.batch_size, self.num_images - self.num_images % 2 - batch * self.batch_size)

    def read(self, epoch: int, batch: int) -> DrawnBatch:
        """Return the `DrawnBatch` of a hard epoch's batch; its `logits` are probabilities, float32 [B, C]."""
        drawn = super().read(epoch, batch)
        own = drawn.mix.own_share(self.policy.input_size)
        classes = F.one_hot(self.targets[drawn.index], self.num_classes).float()
        mixed = own * classes + (1 - own) * classes.flip(0)
        answers = (1 - self.smoothing) * mixed + self.smoothing / self.num_classes
        mix = Mix(torch.arange(len(drawn.index)).flip(0), own, drawn.mix.box)
        return replace(drawn, mix=mix, logits=answers)
