"""How views are drawn: a pure function of (seed, epoch, batch)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.labels.batch import Mix, MixBox

Crop = tuple[int, int, int, int]  # top, left, height, width, in pixels of the image


CROP_ATTEMPTS = 10
TOO_CLOSE = 1e-6  # pixels from a half: far above the error of a power and a root, far below what happens often

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
        """Draw uniform numbers [rows, CROP_DRAWS] for one batch; `crop_from` turns a row into a crop."""
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

    def crop_from(self, draws: np.ndarray, image_size: Sequence[int]) -> tuple[Crop, bool]:
        """Turn uniform numbers [CROP_DRAWS] into ((top, left, height, width), flip).

        The distribution of torchvision's RandomResizedCrop and RandomHorizontalFlip: a share of the
        area in [min_scale, max_scale], an aspect ratio in [3/4, 4/3] (log-uniform), the first of
        CROP_ATTEMPTS that fits, else the largest central crop of an allowed ratio.

        Args:
            draws: float64 [CROP_DRAWS] in [0, 1).
            image_size: (H, W) in pixels.
        """
        height, width = image_size
        flip = bool(draws[2] < self.hflip)
        for u_area, u_ratio in zip(draws[3::2], draws[4::2], strict=True):
            area = height * width * (self.min_scale + (self.max_scale - self.min_scale) * u_area)
            aspect = (3 / 4) ** (1 - 2 * u_ratio)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return (int(draws[0] * (height - h + 1)), int(draws[1] * (width - w + 1)), h, w), flip
        w = min(width, max(1, round(height * 4 / 3)))
        h = min(height, max(1, round(width * 4 / 3)))
        return ((height - h) // 2, (width - w) // 2, h, w), flip

    def crops_from(self, draws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """`crop_from` of many rows: int64 [R, 5], (top, left, height, width, flip) of each.

        Args:
            draws: float64 [R, CROP_DRAWS] in [0, 1).
            sizes: int64 [R, 2], (H, W) of each row's image, in pixels.
        """
        limits = sizes[:, None, :]  # [R, 1, 2]
        area = (sizes[:, :1] * sizes[:, 1:]) * (self.min_scale + (self.max_scale - self.min_scale) * draws[:, 3::2])
        aspect = (3 / 4) ** (1 - 2 * draws[:, 4::2])
        sides = np.sqrt(np.stack([area / aspect, area * aspect], axis=2))  # [R, CROP_ATTEMPTS, 2], (h, w)
        lengths = np.rint(sides)
        fits = ((lengths > 0) & (lengths <= limits)).all(axis=2)
        length = lengths[np.arange(len(draws)), fits.argmax(axis=1)]  # [R, 2], of the first that fits
        start = (draws[:, :2] * (sizes - length + 1)).astype(np.int64)
        crops = np.column_stack([start, length.astype(np.int64), draws[:, 2] < self.hflip])
        # numpy's power may differ from Python's in the last bits: where that could matter, or none fits, ask the other
        near_half = (np.abs(sides - np.floor(sides) - 0.5) < TOO_CLOSE).any(axis=(1, 2))
        for row in np.flatnonzero(near_half | ~fits.any(axis=1)):
            box, flip = self.crop_from(draws[row], sizes[row].tolist())
            crops[row] = *box, flip
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
