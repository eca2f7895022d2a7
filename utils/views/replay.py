"""Replay a view: crop, resize, flip, normalise, mixup, cutmix."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from utils.labels.types import Mix
from utils.labels.views import Crop

IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


def replay_view(image: Image.Image, box: Crop, flip: bool, size: int) -> torch.Tensor:
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


class Normalise:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in `memory_format`, minus mean over std per channel."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        memory_format: torch.memory_format = torch.channels_last,
    ):
        self.memory_format = memory_format
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = images.shape
        # whole rows of interleaved channels: a CPU does little with three numbers at a time
        mean, std = self.mean.repeat(width), self.std.repeat(width)
        rows = images.reshape(batch, height, width * channels).to(torch.float32, copy=True)
        rows.div_(255).sub_(mean).div_(std)
        images = rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=self.memory_format)


def finish_views(views: torch.Tensor, normalise: Normalise, mix: Mix) -> torch.Tensor:
    """Normalise and mix the views of a batch: uint8 [B, S, S, 3] -> float32 [B, 3, S, S].

    Cutmix moves whole pixels, so it is done before normalising, on a quarter of the memory.
    """
    if mix.box is None:
        return mix_images(normalise(views), mix)
    mixed = mix_images(views.permute(0, 3, 1, 2), mix)
    return normalise(mixed.permute(0, 2, 3, 1))


def mix_images(images: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Mix the images [B, 3, S, S] of a whole batch, before it is split into micro-batches."""
    if mix.partner is None:
        return images
    partner = mix.partner.to(images.device, non_blocking=True)
    if mix.box is not None:
        y1, x1, y2, x2 = mix.box
        mixed = images.clone()
        mixed[:, :, y1:y2, x1:x2] = images[partner, :, y1:y2, x1:x2]
        return mixed
    if mix.lam is not None:
        return mix.lam * images + (1 - mix.lam) * images[partner]
    return images
