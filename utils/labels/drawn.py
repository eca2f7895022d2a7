"""Views that are drawn instead of read: what relabelling and naive KD show a teacher."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.labels.batch import ALL, Answers, BatchLabels, BatchViews, Mix
from utils.labels.image_order import ReferenceOrder
from utils.labels.view_policy import ViewPolicy


@dataclass(frozen=True)
class DrawnBatch(BatchViews):
    """Views of one batch that are still to be drawn: what `BatchLabels` is before a teacher saw it."""

    policy: ViewPolicy
    draws: np.ndarray  # float64 [B, CROP_DRAWS]
    index: torch.Tensor  # int64 [B]
    mix: Mix
    logits: Answers | None = None  # where no teacher has to answer: those of `HardViews`

    def __len__(self) -> int:
        return len(self.index)

    def crops(self, sizes: np.ndarray, rows: slice = ALL) -> np.ndarray:
        """As `BatchViews.crops`."""
        return self.policy.crops(self.draws[rows], sizes)

    def labelled(self, logits: Answers, image_sizes: Sequence[Sequence[int]]) -> BatchLabels:
        """Return the `BatchLabels` of these views, given the answers [B, C] and each row's image size (H, W)."""
        sizes = np.asarray(image_sizes, dtype=np.int64).reshape(-1, 2)
        crops = self.crops(sizes)
        coords = torch.from_numpy((crops[:, :4] / np.tile(sizes, 2)).astype(np.float32))  # as `fractions`
        flip = torch.from_numpy(crops[:, 4] == 1)
        return BatchLabels(coords, flip, self.mix, logits, self.index)


Views = BatchLabels | DrawnBatch


def index_of(views: Views) -> torch.Tensor:
    """Which image each row of a batch from a store is: int64 [B]."""
    if views.index is None:
        raise ValueError("a store states the images of its batches")
    return views.index


class DrawnViews:
    """A store that draws its views instead of reading them; relabel and naive KD share it.

    Args:
        policy: how to draw.
        num_images: N.
        batch_size: images in a batch.
    """

    def __init__(self, policy: ViewPolicy, num_images: int, batch_size: int):
        self.policy, self.num_images, self.batch_size = policy, num_images, batch_size
        self.batches_per_epoch = math.ceil(num_images / batch_size)
        self.order = ReferenceOrder(num_images, policy.seed)

    def rows(self, _epoch: int, batch: int) -> int:
        """As `LabelStore.rows`."""
        return min(self.batch_size, self.num_images - batch * self.batch_size)

    def read(self, epoch: int, batch: int) -> DrawnBatch:
        """Return the `DrawnBatch` of (epoch, batch), the same whenever and wherever it is asked for."""
        start = batch * self.batch_size
        index = self.order(epoch)[start : start + self.rows(epoch, batch)]
        draws = self.policy.draw_crops(epoch, batch, len(index))
        return DrawnBatch(self.policy, draws, index, self.policy.draw_mix(epoch, batch, len(index)))
