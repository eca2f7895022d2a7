"""How views are drawn: a pure function of (seed, epoch, batch)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.labels.batch import Crop, Mix, MixBox

CROP_ATTEMPTS = 10
CROP_DRAWS = 3 + 2 * CROP_ATTEMPTS  # top, left, flip, then (area, ratio) of each attempt


def fractions(box: Crop, image_size: Sequence[int]) -> torch.Tensor:
    """Turn a crop in pixels into coords: float32 [4], (top/H, left/W, height/H, width/W)."""
    height, width = image_size
    top, left, crop_height, crop_width = box
    return torch.tensor([top / height, left / width, crop_height / height, crop_width / width])


@dataclass(frozen=True)
class ViewPolicy:
    """How views are drawn: the flags of relabel_FKD.py that shape them."""

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
        """Draw how the rows of one batch are mixed."""
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

        The distribution of torchvision's RandomResizedCrop and RandomHorizontalFlip: a share of the
        area in [min_scale, max_scale], an aspect ratio in [3/4, 4/3] (log-uniform), the first of
        CROP_ATTEMPTS that fits, else the largest central crop of an allowed ratio.

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
            # numpy's power may differ from Python's in the last bit, and from one CPU to another
            aspect = np.array([(3 / 4) ** (1 - 2 * u) for u in u_ratio.tolist()])
            sides = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=1)))  # [R, 2], (h, w)
            fits = ((sides > 0) & (sides <= limits)).all(axis=1)
            fitting, left = left[fits], left[~fits]
            crops[fitting, 2:4] = sides[fits]
            crops[fitting, :2] = draws[fitting, :2] * (limits[fits] - sides[fits] + 1)  # cut to whole pixels
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
