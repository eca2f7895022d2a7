"""Views drawn at random, not read: for relabelling, naive KD, hard epochs and packed stores with drawn views.

A drawn view is a pure function of (seed, epoch, batch, row): it does not depend on workers, ranks or restarts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import RandomSampler

from utils.labels.types import ALL, Answers, BatchLabels, BatchViews, Crop, Mix, MixBox

CROP_ATTEMPTS = 10
CROP_DRAWS = 3 + 2 * CROP_ATTEMPTS  # random numbers of a row: top, left, flip, then (area, ratio) of each attempt


def fractions(box: Crop, image_size: Sequence[int]) -> torch.Tensor:
    """Turn a crop in pixels into coords: float32 [4], (top/H, left/W, height/H, width/W)."""
    height, width = image_size
    top, left, crop_height, crop_width = box
    return torch.tensor([top / height, left / width, crop_height / height, crop_width / width])


@dataclass(frozen=True)
class ViewPolicy:
    """The distribution of views, as the flags of relabel_FKD.py set it."""

    seed: int
    input_size: int
    min_scale: float
    max_scale: float
    mix_type: str  # cutmix, mixup or none
    mixup_alpha: float
    cutmix_alpha: float
    hflip: float = 0.5  # probability of a flip

    def draw_crops(self, epoch: int, batch: int, rows: int) -> np.ndarray:
        """Draw uniform numbers [rows, CROP_DRAWS] for one batch, which `crops` turns into crops."""
        return np.random.default_rng((self.seed, epoch, batch, 1)).random((rows, CROP_DRAWS))

    def draw_mix(self, epoch: int, batch: int, rows: int) -> Mix:
        """Draw the `Mix` of one batch: partners, ratio and box."""
        if self.mix_type == "none":
            return Mix()
        rng = np.random.default_rng((self.seed, epoch, batch, 0))
        partner = torch.from_numpy(rng.permutation(rows)).long()
        if self.mix_type == "mixup":
            return Mix(partner, float(rng.beta(self.mixup_alpha, self.mixup_alpha)))
        lam = float(rng.beta(self.cutmix_alpha, self.cutmix_alpha))
        return Mix(partner, lam, random_box(rng, self.input_size, lam))

    def crops(self, draws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn uniform numbers into crops: int64 [R, 5], (top, left, height, width, flip) of each row.

        The distribution is that of torchvision's RandomResizedCrop and RandomHorizontalFlip. Each attempt has a share
        of the area in [min_scale, max_scale] and an aspect ratio in [3/4, 4/3] (log-uniform). The first of
        CROP_ATTEMPTS that fits is taken, else the largest central crop of an allowed ratio.

        Args:
            draws: float64 [R, CROP_DRAWS] in [0, 1).
            sizes: int64 [R, 2], (H, W) of each row's image, in pixels.
        """
        left = np.arange(len(draws))  # rows for which no attempt has fitted yet
        crops = np.empty((len(draws), 5), np.int64)
        crops[:, 2:4] = np.minimum(np.maximum(np.rint(sizes[:, ::-1] * 4 / 3), 1), sizes)  # the central crop
        crops[:, :2] = (sizes - crops[:, 2:4]) // 2
        crops[:, 4] = draws[:, 2] < self.hflip
        for attempt in range(3, CROP_DRAWS, 2):
            limits, u_area, u_ratio = sizes[left], draws[left, attempt], draws[left, attempt + 1]
            area = limits[:, 0] * limits[:, 1] * (self.min_scale + (self.max_scale - self.min_scale) * u_area)
            # Python's power, because the last bit of numpy's may differ from one CPU to another
            aspect = np.array([(3 / 4) ** (1 - 2 * u) for u in u_ratio.tolist()])
            sides = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=1)))  # [R, 2], (h, w)
            fits = ((sides > 0) & (sides <= limits)).all(axis=1)
            fitting, left = left[fits], left[~fits]
            crops[fitting, 2:4] = sides[fits]
            crops[fitting, :2] = draws[fitting, :2] * (limits[fits] - sides[fits] + 1)  # truncated to int
            if not len(left):
                break
        return crops


def random_box(rng: np.random.Generator, size: int, lam: float) -> MixBox:
    """Draw a cutmix box covering about 1 - lam of a `size` x `size` view, clipped at its edges.

    Source: CutMix (Yun et al., 2019), as in SRe2L's relabel code: the centre is uniform.

    Returns:
        (y1, x1, y2, x2) in pixels.
    """
    half = int(size * math.sqrt(1 - lam)) // 2
    cy, cx = int(rng.integers(size)), int(rng.integers(size))
    return max(cy - half, 0), max(cx - half, 0), min(cy + half, size), min(cx + half, size)


class ReferenceOrder:
    """The image order that SRe2L's code implies for labels without an index.

    One `RandomSampler` over N images, its generator seeded with --fkd_seed, is iterated once per
    epoch from epoch 0; each pass advances the generator. Epochs may be requested in any order.
    """

    def __init__(self, num_images: int, seed: int):
        self.num_images = num_images
        self.states = [torch.Generator().manual_seed(seed).get_state()]  # of the generator, before each epoch
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.int64)  # the last one requested

    def __call__(self, epoch: int) -> torch.Tensor:
        """Return int64 [N], the images in the order in which `epoch` visits them."""
        if epoch == self.epoch:
            return self.order
        generator = torch.Generator()
        for e in range(min(epoch, len(self.states) - 1), epoch + 1):
            generator.set_state(self.states[e])
            order = list(RandomSampler(range(self.num_images), generator=generator))
            if e + 1 == len(self.states):
                self.states.append(generator.get_state())
        self.epoch, self.order = epoch, torch.tensor(order)
        return self.order


@dataclass(frozen=True)
class DrawnBatch(BatchViews):
    """Views of one batch as random numbers, which become crops once the image sizes are known."""

    policy: ViewPolicy
    draws: np.ndarray  # float64 [B, CROP_DRAWS]
    index: torch.Tensor  # int64 [B]
    mix: Mix
    logits: Answers | None = None  # set by `HardViews`, whose answers need no teacher; else None

    def __len__(self) -> int:
        return len(self.index)

    def crops(self, sizes: np.ndarray, rows: slice = ALL) -> np.ndarray:
        """See `BatchViews.crops`."""
        return self.policy.crops(self.draws[rows], sizes)

    def labelled(self, logits: Answers, image_sizes: Sequence[Sequence[int]]) -> BatchLabels:
        """Return the `BatchLabels` of these views, given the answers [B, C] and each row's image size (H, W)."""
        sizes = np.asarray(image_sizes, dtype=np.int64).reshape(-1, 2)
        crops = self.crops(sizes)
        coords = torch.from_numpy((crops[:, :4] / np.tile(sizes, 2)).astype(np.float32))  # same as `fractions`
        flip = torch.from_numpy(crops[:, 4] == 1)
        return BatchLabels(coords, flip, self.mix, logits, self.index)


Views = BatchLabels | DrawnBatch


def index_of(views: Views) -> torch.Tensor:
    """Return the image number of each row, int64 [B]; raise ValueError if the batch does not state them."""
    if views.index is None:
        raise ValueError("a store states the images of its batches")
    return views.index


class DrawnViews:
    """Batches of views drawn at random, not read from labels; relabelling and naive KD use them.

    Args:
        policy: the distribution of the views.
        num_images: N, the number of images.
        batch_size: images in a batch.
    """

    def __init__(self, policy: ViewPolicy, num_images: int, batch_size: int):
        self.policy, self.num_images, self.batch_size = policy, num_images, batch_size
        self.batches_per_epoch = math.ceil(num_images / batch_size)
        self.order = ReferenceOrder(num_images, policy.seed)

    def rows(self, _epoch: int, batch: int) -> int:
        """Return the number of images in a batch; the last one of an epoch may be shorter."""
        return min(self.batch_size, self.num_images - batch * self.batch_size)

    def read(self, epoch: int, batch: int) -> DrawnBatch:
        """Return the `DrawnBatch` of (epoch, batch), the same in every process and at any time."""
        start = batch * self.batch_size
        index = self.order(epoch)[start : start + self.rows(epoch, batch)]
        draws = self.policy.draw_crops(epoch, batch, len(index))
        return DrawnBatch(self.policy, draws, index, self.policy.draw_mix(epoch, batch, len(index)))
