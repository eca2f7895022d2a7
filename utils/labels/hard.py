"""Hard-label epochs between soft-label epochs (HALD, arXiv 2512.15647): their place in the run, and their views."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from utils.config import TrainConfig
from utils.labels.types import Mix
from utils.labels.views import DrawnBatch, DrawnViews, ViewPolicy

SEED_APART = 104_729  # added to the seed, so that hard epochs do not repeat the views of labels made with that seed


@dataclass(frozen=True)
class Phases:
    """The order of a run's epochs: half of the soft ones (rounded down), all hard ones, then the other soft ones.

    Attributes:
        epochs: number of epochs of the whole run.
        hard: number of hard epochs among them; 0 for none.
    """

    epochs: int
    hard: int = 0

    @classmethod
    def of(cls, config: TrainConfig) -> "Phases":
        """Return the phases of a run with these settings."""
        return cls(config.epochs, config.hard_epochs or 0)

    @property
    def soft(self) -> int:
        """Return the number of soft epochs."""
        return self.epochs - self.hard

    def is_hard(self, epoch: int) -> bool:
        """Return whether an epoch of the run is hard."""
        return self.soft // 2 <= epoch < self.soft // 2 + self.hard

    def hard_before(self, epoch: int) -> int:
        """Return the number of hard epochs before `epoch`, the index of a hard epoch among the hard ones."""
        return min(max(epoch - self.soft // 2, 0), self.hard)

    def soft_before(self, epoch: int) -> int:
        """Return the number of soft epochs before `epoch`, the index of a soft epoch among the soft ones."""
        return epoch - self.hard_before(epoch)


class HardViews(DrawnViews):
    """The views of hard epochs, numbered from 0; mixed and smoothed class labels replace a teacher's answers.

    The mixing is that of timm's Mixup in batch mode with cutmix only: row i is mixed with row B - 1 - i, and each class
    is weighted by the area of its image. Batches have an even number of rows, so an odd image is left out of an epoch.

    Args:
        targets: folder class of each of the N images.
        num_classes: C, the student's.
        input_size: S, side of the views in pixels.
        batch_size: B, even.
        smoothing: probability mass that is spread evenly over all classes, in [0, 1].
        seed: seed of crops, flips, boxes and image order.
    """

    def __init__(
        self, targets: Sequence[int], num_classes: int, input_size: int, batch_size: int, smoothing: float, seed: int
    ) -> None:
        policy = ViewPolicy(seed + SEED_APART, input_size, 0.08, 1.0, "cutmix", 0.0, 1.0)
        super().__init__(policy, len(targets), batch_size)
        self.batches_per_epoch = math.ceil((self.num_images - self.num_images % 2) / batch_size)
        self.targets, self.num_classes, self.smoothing = torch.tensor(targets), num_classes, smoothing

    def rows(self, _epoch: int, batch: int) -> int:
        """See `DrawnViews.rows`."""
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
