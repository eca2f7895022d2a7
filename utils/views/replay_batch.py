"""Antialiased crop, resize and flip of a batch as matrix products; mixing by masks."""

import torch


def mix_by_mask(images: torch.Tensor, partner: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """Mix as `mix_images` does, with shapes that do not depend on the box.

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
    """Crop, resize (antialiased bilinear, as PIL's) and flip every image of a batch.

    Args:
        images: uint8 [B, H, 3, W].
        top, left, height, width: int64 [B], crop boxes in pixels.
        flip: int64 [B], 1 to mirror left to right.
        size: S.
        dtype: of the arithmetic. float16 (the default on CUDA, for its matrix units) holds every
            pixel value exactly and results to 1/16 of a level, so rounding at the end stays within
            one level of PIL, which itself rounds in between.

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
    """Weights of antialiased bilinear resizing along one axis, with the crop and the flip in them.

    A triangle filter around half-pixel centres; its support is max(scale, 1) pixels, its taps are
    clamped to the crop box and renormalised (Pillow's `Resample.c`).

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
    place = torch.where(inside, place / support, float("inf"))  # infinitely far: no weight
    weights = (1 - (place[:, None, :] - centre[:, :, None]).abs_()).clamp_(min=0)
    return weights.div_(weights.sum(dim=2, keepdim=True))
