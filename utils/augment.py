"""Draw a view, and replay it: crop, flip, normalise, mixup, cutmix.

Drawing happens once, at relabel time (or live, for naive KD); replaying happens in every training
epoch and must give the student exactly what the teacher saw. Every draw is a pure function of
(seed, epoch, batch), so neither the number of workers nor a restart changes a view.

Shapes: B images in a batch, S the --input-size, images [B, 3, S, S].
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CROP_ATTEMPTS = 10
CROP_DRAWS = 3 + 2 * CROP_ATTEMPTS  # top, left, flip, then (area, ratio) of each attempt


def replay_view(image, box, flip, size):
    """Crop, resize with antialiased bilinear (PIL's), and flip one image.

    Args:
        image: PIL RGB image.
        box: (top, left, height, width) in pixels.
        flip: mirror left to right.
        size: S, side of the result in pixels.

    Returns:
        uint8 [S, S, 3].
    """
    top, left, height, width = box
    view = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    if flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(view))


def fractions(box, image_size):
    """Turn a crop in pixels into coords: float32 [4], (top/H, left/W, height/H, width/W)."""
    height, width = image_size
    top, left, crop_height, crop_width = box
    return torch.tensor([top / height, left / width, crop_height / height, crop_width / width])


class Normalise:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in `memory_format`, minus mean over std per channel."""

    def __init__(self, mean, std, device, memory_format=torch.channels_last):
        self.memory_format = memory_format
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    def __call__(self, images):
        batch, height, width, channels = images.shape
        # whole rows of interleaved channels: a CPU does little with three numbers at a time
        mean, std = self.mean.repeat(width), self.std.repeat(width)
        rows = images.reshape(batch, height, width * channels).to(torch.float32, copy=True)
        rows.div_(255).sub_(mean).div_(std)
        images = rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=self.memory_format)


def finish_views(views, normalise, mix_index, mix_lam, mix_bbox):
    """Normalise and mix the views of a batch: uint8 [B, S, S, 3] -> float32 [B, 3, S, S].

    Cutmix moves whole pixels, so it is done before normalising, on a quarter of the memory.
    """
    if mix_bbox is None:
        return mix(normalise(views), mix_index, mix_lam, mix_bbox)
    mixed = mix(views.permute(0, 3, 1, 2), mix_index, mix_lam, mix_bbox)
    return normalise(mixed.permute(0, 2, 3, 1))


def mix(images, mix_index, mix_lam, mix_bbox):
    """Mix a whole batch as stored, before it is split into micro-batches.

    Args:
        images: [B, 3, S, S].
        mix_index: int64 [B] partner rows, or None for no mixing.
        mix_lam: weight of the row itself (mixup).
        mix_bbox: (y1, x1, y2, x2), rows first: the pixels that come from the partner (cutmix).
    """
    if mix_bbox is not None:
        y1, x1, y2, x2 = mix_bbox
        mixed = images.clone()
        mixed[:, :, y1:y2, x1:x2] = images[mix_index.to(images.device), :, y1:y2, x1:x2]
        return mixed
    if mix_lam is not None:
        return mix_lam * images + (1 - mix_lam) * images[mix_index.to(images.device)]
    return images


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

    def draw_crops(self, epoch, batch, rows):
        """Draw uniform numbers [rows, CROP_DRAWS] for one batch; `crop_from` turns a row into a crop."""
        return np.random.default_rng((self.seed, epoch, batch, 1)).random((rows, CROP_DRAWS))

    def draw_mix(self, epoch, batch, rows):
        """Draw (mix_index int64 [rows], mix_lam, mix_bbox) for one batch; None where it does not apply."""
        if self.mix_type == "none":
            return None, None, None
        rng = np.random.default_rng((self.seed, epoch, batch, 0))
        mix_index = torch.from_numpy(rng.permutation(rows)).long()
        if self.mix_type == "mixup":
            return mix_index, float(rng.beta(self.mixup_alpha, self.mixup_alpha)), None
        mix_lam = float(rng.beta(self.cutmix_alpha, self.cutmix_alpha))
        return mix_index, mix_lam, random_box(rng, self.input_size, mix_lam)

    def crop_from(self, draws, image_size):
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


def random_box(rng, size, lam):
    """Draw a cutmix box covering about 1 - lam of a `size` x `size` view, clipped at its edges.

    Source: CutMix (Yun et al., 2019), as in SRe2L's relabel code: the centre is uniform.

    Returns:
        (y1, x1, y2, x2) in pixels.
    """
    half = int(size * math.sqrt(1 - lam)) // 2
    cy, cx = int(rng.integers(size)), int(rng.integers(size))
    low, high = (lambda c: max(c - half, 0)), (lambda c: min(c + half, size))
    return low(cy), low(cx), high(cy), high(cx)
