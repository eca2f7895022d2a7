"""Compute augmented images from given crops, flips and mixing: one image with PIL, or a batch on the device."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from utils.data.images import Pixels, Values
from utils.labels.types import Mix
from utils.labels.views import Crop


def replay_view(image: Pixels, box: Crop, flip: bool, size: int) -> torch.Tensor:
    """Crop one image, resize it with PIL's antialiased bilinear filter, and flip it.

    Args:
        image: PIL image of mode RGB or L, or tensor float32 [C, H, W].
        box: (top, left, height, width) in pixels.
        flip: whether to mirror left to right.
        size: S, side of the result in pixels.

    Returns:
        uint8 [S, S, C] for a PIL image; float32 [S, S, C], not rounded, for a tensor.
    """
    top, left, height, width = box
    if isinstance(image, torch.Tensor):
        floats = resize_floats(image[:, top : top + height, left : left + width], (size, size))
        return (floats.flip(2) if flip else floats).permute(1, 2, 0).contiguous()
    view = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    if flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(view)).view(size, size, -1)


def shuffle_patches(image: Pixels, orders: torch.Tensor) -> Pixels:
    """Cut an image into F strips across its width and put them together in another order; do the same with its height.

    A strip has width // F columns (height // F rows); the last one also has those that are left over.

    Args:
        image: PIL image of mode RGB or L, or tensor float32 [C, H, W].
        orders: int64 [2, F], the new order of the strips of each axis, see `BatchViews.strips`.
    """
    floats = isinstance(image, torch.Tensor)
    pixels = image if isinstance(image, torch.Tensor) else torch.from_numpy(np.array(image))
    for axis, order in zip((2, 1) if floats else (1, 0), orders.tolist(), strict=True):
        size = pixels.shape[axis] // len(order)
        strips = pixels.split([size] * (len(order) - 1) + [pixels.shape[axis] - size * (len(order) - 1)], dim=axis)
        pixels = torch.cat([strips[number] for number in order], dim=axis)
    return pixels if floats else Image.fromarray(pixels.numpy())


def shuffled_places(orders: torch.Tensor, sides: torch.Tensor, pixels: int) -> torch.Tensor:
    """Return where `shuffle_patches` puts each row or column of images: int64 [B, pixels].

    Nothing in this function waits for the device.

    Args:
        orders: int64 [B, F], the new order of the strips of each image.
        sides: int64 [B], number of rows (or columns) of each image, at least F.
        pixels: number of rows (or columns) after padding; those of the padding stay where they are.
    """
    strips, sides = orders.shape[1], sides[:, None]
    size = sides // strips
    place = torch.arange(pixels, device=orders.device).expand(len(orders), -1)
    strip = torch.minimum(place // size, torch.full_like(place, strips - 1))
    new = orders.argsort(dim=1)  # [B, F], the place of each strip
    start = new.gather(1, strip) * size
    # the last strip is longer than the others, so that the strips behind it start later
    start = start + (sides % strips) * (new.gather(1, strip) > new[:, -1:])
    return torch.where(place < sides, start + place - strip * size, place)


def resize_floats(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize an image float32 [C, H, W] to `size` = (height, width) with an antialiased bilinear filter.

    An image that already has this size is returned unchanged.
    """
    if image.shape[1:] == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


class Normalise:
    """Callable that normalises images x [B, S, S, C]: the result is (x / 255 - mean) / std, float32 [B, C, S, S].

    Args:
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1].
        device: device of the images.
        memory_format: memory format of the result.
        values: pixel format of x, see `Values`. `bytes`: as above. `unit`: pixels in [0, 1], which are not divided by
            255. `normalised`: pixels that stay unchanged.
        augment: function (normalised images [B, C, S, S], random parameters [B, P]) -> images; see `Augmentation`.
        whiten: function that whitens images [B, C, S, S] in [0, 1], used in place of mean and std; see `Zca`.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        memory_format: torch.memory_format = torch.channels_last,
        values: Values = "bytes",
        augment: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        whiten: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        self.memory_format, self.values, self.augment, self.whiten = memory_format, values, augment, whiten
        self.mean, self.std = torch.tensor(mean, device=device), torch.tensor(std, device=device)

    def __call__(self, images: torch.Tensor, parameters: torch.Tensor | None = None) -> torch.Tensor:
        """Return normalised images; if `parameters` are given, augment the normalised images with them."""
        batch, height, width, channels = images.shape
        # repeat mean and std for each pixel of a row: on a CPU, arithmetic on long rows is faster than on 3 channels
        mean, std = self.mean.repeat(width), self.std.repeat(width)
        rows = images.reshape(batch, height, width * channels).to(torch.float32, copy=True)
        if self.values == "bytes":
            rows.div_(255)
        if self.values != "normalised" and self.whiten is None:
            rows.sub_(mean).div_(std)
        images = rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
        if self.values != "normalised" and self.whiten is not None:
            images = self.whiten(images)
        images = images.contiguous(memory_format=self.memory_format)
        if parameters is not None and self.augment is not None:
            images = self.augment(images, parameters.to(images.device, non_blocking=True))
        return images

    def visible(self, images: torch.Tensor) -> torch.Tensor:
        """Convert normalised images [B, C, S, S] back to pixels that can be shown: uint8 [B, S, S, C].

        Whitened images cannot be converted back; instead, the values of each image are stretched to 0 … 255.
        """
        if self.whiten is not None:
            low, high = images.float().aminmax(dim=1, keepdim=True)
            low, high = low.amin(dim=(2, 3), keepdim=True), high.amax(dim=(2, 3), keepdim=True)
            return ((images - low) / (high - low).clamp(min=1e-6) * 255).round().byte().permute(0, 2, 3, 1)
        pixels = (images.float().permute(0, 2, 3, 1) * self.std + self.mean) * 255
        return pixels.round().clamp(0, 255).byte()


def finish_views(
    views: torch.Tensor, normalise: Normalise, mix: Mix, parameters: torch.Tensor | None = None
) -> torch.Tensor:
    """Normalise, augment and mix the cropped images of a batch: [B, S, S, C] -> float32 [B, C, S, S].

    Without augmentation and ZCA, cutmix runs before the normalisation, because it only copies pixels, and uint8 needs a
    quarter of the memory of float32. Otherwise, images are mixed last, as in `Gallery.replay`. ZCA must come before
    mixing, because each whitened value depends on all pixels of its image. ZCA comes before augmentation, as in MTT.

    Args:
        views: the cropped images, uint8 or float32.
        normalise: the `Normalise`; it also applies the augmentation if `parameters` are given.
        mix: how the images are mixed.
        parameters: random parameters of the augmentation, float32 [B, P]; None without augmentation.
    """
    if mix.box is None or parameters is not None or normalise.whiten is not None:
        return mix_images(normalise(views, parameters), mix)
    mixed = mix_images(views.permute(0, 3, 1, 2), mix)
    return normalise(mixed.permute(0, 2, 3, 1))


def mix_images(images: torch.Tensor, mix: Mix) -> torch.Tensor:
    """Return the images [B, 3, S, S] of a batch, each mixed with its partner by cutmix or mixup, as `mix` says.

    Mix the whole batch before it is split into micro-batches, because a partner may be in another micro-batch.
    """
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
    """Return the images of a batch, each mixed with its partner by cutmix or mixup, as `mix_images` does.

    Here the tensor shapes do not depend on the cutmix box, so that a CUDA graph can capture the computation.

    Args:
        images: float [B, 3, S, S].
        partner: int64 [B], the row that each row is mixed with.
        mixing: float32 [5], mixing weight and cutmix box, see `mixing_of`.
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
    strips: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Crop, resize and flip the images of a batch, with PIL's antialiased bilinear filter.

    PIL also rounds the pixel values after the first axis is resized. This function rounds uint8 images only once, after
    both axes. Pixel values therefore differ from PIL's by at most 1.

    Args:
        images: uint8 or float32 [B, H, C, W].
        top, left, height, width: int64 [B], crop boxes in pixels.
        flip: int64 [B], 1 to mirror left to right, else 0.
        size: S, side of the result in pixels.
        dtype: dtype of the computation. Default: float16 for uint8 images on CUDA, else float32. float16 is faster; its
            rounding error for a number between 0 and 255 is at most 1/16.

    Returns:
        `dtype` [B, S, S, C]; for uint8 images, the values are whole numbers from 0 to 255.
    """
    floats = images.is_floating_point()
    dtype = dtype or (torch.float16 if images.is_cuda and not floats else torch.float32)
    batch, rows, channels, columns = images.shape
    column = row = None  # place of each column and row among the shuffled strips
    if strips is not None:
        sides, orders = strips
        column = shuffled_places(orders[:, 0], sides[:, 1], columns)
        row = shuffled_places(orders[:, 1], sides[:, 0], rows)
    across = resize_weights(left, width, flip, size, columns, column).to(dtype)  # [B, S, W]
    down = resize_weights(top, height, torch.zeros_like(flip), size, rows, row).to(dtype)  # [B, S, H]
    narrow = images.to(dtype).view(batch, rows * channels, columns) @ across.mT  # [B, H·C, S]
    views = down @ narrow.view(batch, rows, channels * size)  # [B, S, C·S]
    if not floats:
        views.round_()
    return views.view(batch, size, channels, size).transpose(2, 3)


def resize_weights(
    start: torch.Tensor,
    length: torch.Tensor,
    reverse: torch.Tensor,
    size: int,
    pixels: int,
    places: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return matrices that crop, resize (antialiased bilinear) and flip images along one axis.

    The filter is a triangle around the centre of each output pixel. Its half-width is max(length / S, 1) input pixels.
    As in Pillow's `Resample.c`, pixels outside the crop have weight 0, and the other weights are scaled to a sum of 1.

    Args:
        start, length: int64 [B], first pixel and number of pixels of the crop along this axis.
        reverse: int64 [B], 1 to reverse the order of the outputs (flip), else 0.
        size: S, number of output pixels.
        pixels: number of input pixels along this axis.
        places: int64 [B, pixels], the place of each input pixel in the image that is cropped; None: they are in order.

    Returns:
        float32 [B, S, pixels]; each row sums to 1.
    """
    length = length[:, None].float()
    scale = length / size
    support = scale.clamp(min=1)
    output = torch.arange(size, device=start.device)
    output = torch.where(reverse[:, None] == 1, size - 1 - output, output)  # [B, S]
    centre = (output + 0.5) * scale / support
    # [B, pixels], position of each pixel's centre, measured from the edge of the crop
    places = torch.arange(pixels, device=start.device) if places is None else places
    place = places + 0.5 - start[:, None]
    inside = (place > 0) & (place < length)
    # pixels outside the crop are moved to infinity, so that their weight becomes 0
    place = torch.where(inside, place / support, float("inf"))
    weights = (1 - (place[:, None, :] - centre[:, :, None]).abs_()).clamp_(min=0)
    return weights.div_(weights.sum(dim=2, keepdim=True))
