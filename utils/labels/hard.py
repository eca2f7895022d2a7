"""Draw random views with the labels of their images, and plan hard-label epochs (HALD, arXiv 2512.15647)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from utils.config import TrainConfig
from utils.labels.types import Mix
from utils.labels.views import DrawnBatch, DrawnViews, DrawsParameters, ViewPolicy

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


class LabelledViews(DrawnViews):
    """Batches of random views with the labels of their images, without a teacher.

    If a view mixes two images, their labels are mixed in proportion to their areas (cutmix) or weights (mixup).

    Args:
        policy: the distribution from which views are drawn.
        labels: labels of the N images: classes int64 [N], or probabilities or logits float32 [N, C]. Logits require a
            `policy` without mixing.
        num_classes: C.
        batch_size: number of images in a batch.
        smoothing: probability mass that is spread evenly over all classes, in [0, 1].
        logs: whether labels are returned as natural logs of probabilities, as the losses kl and dist expect them.
        augmentation, num_strips, change: see `DrawnViews`.
    """

    def __init__(
        self,
        policy: ViewPolicy,
        labels: torch.Tensor,
        num_classes: int,
        batch_size: int,
        smoothing: float = 0.0,
        logs: bool = False,
        augmentation: DrawsParameters | None = None,
        num_strips: int = 1,
        change: Callable[[Any, int], Any] | None = None,
    ) -> None:
        super().__init__(policy, len(labels), batch_size, augmentation, num_strips, change)
        self.labels, self.num_classes, self.smoothing, self.logs = labels, num_classes, smoothing, logs

    def read(self, epoch: int, batch: int) -> DrawnBatch:
        """Return one batch of views; the field `logits` holds the labels of the views, float32 [B, C]."""
        drawn = super().read(epoch, batch)
        return replace(drawn, logits=self.mixed_labels(drawn.index, drawn.mix))

    def mixed_labels(self, index: torch.Tensor, mix: Mix) -> torch.Tensor:
        """Return the mixed and smoothed labels of a batch: float32 [B, C].

        Args:
            index: int64 [B], image of each row.
            mix: how the views are mixed.
        """
        labels = self.labels[index]
        if labels.dim() == 1:
            labels = F.one_hot(labels, self.num_classes).float()
        if mix.partner is not None:
            own = mix.own_share(self.policy.input_size)
            labels = own * labels + (1 - own) * labels[mix.partner]
        if self.smoothing:
            labels = (1 - self.smoothing) * labels + self.smoothing / self.num_classes
        return labels.log() if self.logs else labels


class HardViews(LabelledViews):
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
        super().__init__(policy, torch.tensor(targets), num_classes, batch_size, smoothing)
        self.batches_per_epoch = math.ceil((self.num_images - self.num_images % 2) / batch_size)

    def rows(self, _epoch: int, batch: int) -> int:
        """Return the number of rows of a batch, which is even; the last batch of an epoch may be smaller."""
        return min(self.batch_size, self.num_images - self.num_images % 2 - batch * self.batch_size)

    def read(self, epoch: int, batch: int) -> DrawnBatch:
        """Return one batch of views. The field `logits` holds the hard labels: class probabilities, float32 [B, C]."""
        drawn = DrawnViews.read(self, epoch, batch)
        own = drawn.mix.own_share(self.policy.input_size)
        mix = Mix(torch.arange(len(drawn.index)).flip(0), own, drawn.mix.box)
        return replace(drawn, mix=mix, logits=self.mixed_labels(drawn.index, mix))
