"""Plan the hard-label epochs in the middle of a run (HALD, arXiv 2512.15647), and draw views for hard-label epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from utils.config import TrainConfig
from utils.labels.types import Mix
from utils.labels.views import DrawnBatch, DrawnViews, ViewPolicy

# added to --fkd_seed for hard-label epochs. The views of soft labels may be drawn with --fkd_seed itself; the crops of
# hard-label epochs must be different.
SEED_APART = 104_729


@dataclass(frozen=True)
class Phases:
    """A run's plan: which epochs train on soft labels, and which on hard labels.

    Half of the soft-label epochs (rounded down) come first, then all hard-label epochs, then the other soft-label
    epochs.

    Attributes:
        epochs: number of all epochs of the run.
        hard: number of epochs with hard labels; may be 0.
    """

    epochs: int
    hard: int = 0

    @classmethod
    def of(cls, config: TrainConfig) -> "Phases":
        """Return the `Phases` of a run, from its settings `epochs` and `hard_epochs`."""
        return cls(config.epochs, config.hard_epochs or 0)

    @property
    def soft(self) -> int:
        """Return the number of epochs that train on soft labels."""
        return self.epochs - self.hard

    def is_hard(self, epoch: int) -> bool:
        """Return whether the run trains on hard labels in this epoch."""
        return self.soft // 2 <= epoch < self.soft // 2 + self.hard

    def hard_before(self, epoch: int) -> int:
        """Return how many of the epochs before `epoch` train on hard labels.

        If `epoch` itself trains on hard labels, this is its index among the hard-label epochs, counted from 0.
        """
        return min(max(epoch - self.soft // 2, 0), self.hard)

    def soft_before(self, epoch: int) -> int:
        """Return how many of the epochs before `epoch` train on soft labels.

        If `epoch` itself trains on soft labels, this is its index among the soft-label epochs, counted from 0.
        """
        return epoch - self.hard_before(epoch)


class HardViews(DrawnViews):
    """Batches of random views with hard labels. A hard label is a mixed and smoothed class label; no teacher is used.

    Epoch 0 is the first epoch with hard labels. Views are mixed by cutmix, as in timm's `Mixup` in batch mode: row i
    is mixed with row B - 1 - i. The label of a row mixes the classes of its two images in proportion to their areas.
    All batches have an even number of rows. If the number of images is odd, each epoch leaves one image out.

    Args:
        targets: class of each of the N images.
        num_classes: C, the number of the student's classes.
        input_size: S, height and width of a view in pixels.
        batch_size: B, an even number.
        smoothing: probability mass that is spread evenly over all classes, in [0, 1].
        seed: seed of crops, flips, cutmix boxes and image order.
    """

    def __init__(
        self, targets: Sequence[int], num_classes: int, input_size: int, batch_size: int, smoothing: float, seed: int
    ) -> None:
        policy = ViewPolicy(seed + SEED_APART, input_size, 0.08, 1.0, "cutmix", 0.0, 1.0)
        super().__init__(policy, len(targets), batch_size)
        self.batches_per_epoch = math.ceil((self.num_images - self.num_images % 2) / batch_size)
        self.targets, self.num_classes, self.smoothing = torch.tensor(targets), num_classes, smoothing

    def rows(self, _epoch: int, batch: int) -> int:
        """Return the number of rows of a batch, which is even; the last batch of an epoch may be smaller."""
        return min(self.batch_size, self.num_images - self.num_images % 2 - batch * self.batch_size)

    def read(self, epoch: int, batch: int) -> DrawnBatch:
        """Return one batch of views. The field `logits` holds the hard labels: class probabilities, float32 [B, C]."""
        drawn = super().read(epoch, batch)
        own = drawn.mix.own_share(self.policy.input_size)
        classes = F.one_hot(self.targets[drawn.index], self.num_classes).float()
        mixed = own * classes + (1 - own) * classes.flip(0)
        answers = (1 - self.smoothing) * mixed + self.smoothing / self.num_classes
        mix = Mix(torch.arange(len(drawn.index)).flip(0), own, drawn.mix.box)
        return replace(drawn, mix=mix, logits=answers)
