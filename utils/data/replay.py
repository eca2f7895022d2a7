"""Replay views: crop, resize, flip, normalise and mix, one image on the host or a whole batch on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from utils.labels.types import Mix
from utils.labels.views import Crop


def replay_view(image: Image.Image, box: Crop, flip: bool, size: int) -> torch.Tensor:
    """Crop one image, resize it with PIL's antialiased bilinear filter, and flip it.

    Args:
        image: PIL RGB image.
        box: (top, left, height, width) in pixels.
        flip: whether to mirror left to right.
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
    """Map uint8 [B, S, S, 3] to (x / 255 - mean) / std per channel: float32 [B, 3, S, S] in `memory_format`."""

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
        # whole rows of interleaved channels, because operations on three numbers at a time are slow on a CPU
        mean, std = self.mean.repeat(width), self.std.repeat(width)
        rows = images.reshape(batch, height, width * channels).to(torch.float32, copy=True)
        rows.div_(255).sub_(mean).div_(std)
        images = rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=self.memory_format)


def finish_views(views: torch.Tensor, normalise: Normalise, mix: Mix) -> torch.Tensor:
    """Normalise and mix the views of a batch: uint8 [B, S, S, 3] -> float32 [B, 3, S, S].

    Cutmix only copies pixels, so it runs before the normalisation, on uint8, which needs a quarter of the memory.
    """
    if mix.box is None:
        return mix_images(normalise(views), mix)
    mixed = mix_images(views.permute(0, 3, 1, 2), mix)
    return normalise(mixed.permute(0, 2, 3, 1))


def mix_images(images: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Mix the images [B, 3, S, S] of a whole batch; a partner may belong to another micro-batch."""
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


def mix_by_mask(images: torch.Tensor, partner: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """Mix as `mix_images` does, but with tensor shapes that do not depend on the box, as a CUDA graph requires.

    Args:
        images: float [B, 3, S, S].
        partner: int64 [B], the row that each row is mixed with.
        mixing: float32 [5], see `mixing_of`.
    """
    other, y1, x1, y2, x2 = mixing.unbind()
    pixels = torch.arange(images.shape[-1], device=images.device)
    rows = (pixels >= y1) & (pixels < y2)
    columns = (pixels >= x1) & (pixels < x2)
    inside = rows[:, None] & columns[None, :]  # [S, S]
    return torch.lerp(images, images[partner], torch.where(inside, 1, other))


def resize_views(
    images: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    height: torch.Tensor,
    width: torch.Tensor,
    flip: torch.Tensor,
    size: int,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Crop every image of a batch, resize it with an antialiased bilinear filter (as PIL's), and flip it.

    Args:
        images: uint8 [B, H, 3, W].
        top, left, height, width: int64 [B], crop boxes in pixels.
        flip: int64 [B], 1 to mirror left to right.
        size: S.
        dtype: type of the arithmetic; default: float16 on CUDA, for its matrix units, else float32. float16 represents
            every pixel value exactly and results to 1/16 of a level. So the rounded result is within one level of
            PIL's, which is rounded after each axis.

    Returns:
        `dtype` [B, S, S, 3], whole numbers from 0 to 255.
    """
    dtype = dtype or (torch.float16 if images.is_cuda else torch.float32)
    batch, rows, _, columns = images.shape
    across = resize_weights(left, width, flip, size, columns).to(dtype)  # [B, S, W]
    down = resize_weights(top, height, torch.zeros_like(flip), size, rows).to(dtype)  # [B, S, H]
    narrow = images.to(dtype).view(batch, rows * 3, columns) @ across.mT  # [B, H·3, S]
    views = down @ narrow.view(batch, rows, 3 * size)  # [B, S, 3·S]
    return views.round_().view(batch, size, 3, size).transpose(2, 3)


def resize_weights(
    start: torch.Tensor, length: torch.Tensor, reverse: torch.Tensor, size: int, pixels: int
) -> torch.Tensor:
    """Return the weights that crop, resize (antialiased bilinear) and flip along one axis.

    The filter is a triangle around half-pixel centres with a support of max(scale, 1) pixels. Taps outside the crop
    box are dropped and the others renormalised (Pillow's `Resample.c`).

    Args:
        start, length: int64 [B], the crop along this axis, in pixels.
        reverse: int64 [B], 1 for outputs in reversed order.
        size: S, the number of outputs.
        pixels: the number of pixels along this axis.

    Returns:
        float32 [B, S, pixels]; each row sums to 1.
    """
    length = length[:, None].float()
    scale = length / size
    support = scale.clamp(min=1)
    output = torch.arange(size, device=start.device)
    output = torch.where(reverse[:, None] == 1, size - 1 - output, output)  # [B, S]
    centre = (output + 0.5) * scale / support
    place = torch.arange(pixels, device=start.device) + 0.5 - start[:, None]  # [B, pixels], from the crop's edge
    inside = (place > 0) & (place < length)
    place = torch.where(inside, place / support, float("inf"))  # infinitely far, so that the weight is 0
    weights = (1 - (place[:, None, :] - centre[:, :, None]).abs_()).clamp_(min=0)
    return weights.div_(weights.sum(dim=2, keepdim=True))
