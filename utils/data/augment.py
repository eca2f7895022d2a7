"""Augment normalised images on their device: DSA, and the colour jitter and lighting of IDC and Minimax Diffusion.

`draw` draws the random parameters of a whole batch on the host. They depend only on the seed, the epoch and the
batch, so resumed runs and runs with several ranks see the same images. A call of the augmentation then computes the
images from the parameters. A CUDA graph can capture the call: its tensor shapes do not depend on the parameters, and
nothing in it waits for the device. Augmentations come after crop, flip and normalisation, and before cutmix or mixup.

Shapes: B images in a batch, C channels (1 or 3), S x S pixels, P parameters per image.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from utils.config import DSA_MODES, DSA_OPERATIONS, DSA_PARAMETERS, Findings, KDConfig, TrainConfig

# last number of the augmentation's seeds; `ViewPolicy` uses 0 and 1, so that its random numbers are independent
OWN_STREAM = 2
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in a grey value
# number of parameters per image that each operation of DSA reads
DSA_COLUMNS = {"color": 3, "crop": 2, "cutout": 2, "flip": 1, "scale": 2, "rotate": 1}
# PCA of ImageNet's RGB values (Krizhevsky et al., 2012), as in IDC; EIGENVECTORS has a row per channel
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


class Augmentation(ABC):
    """Augmentation in two steps: `draw` draws random parameters on the host, and a call applies them on the device.

    Args:
        seed: --fkd-seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def generator(self, epoch: int, batch: int) -> np.random.Generator:
        """Return a random generator that is seeded by the seed, the epoch and the batch only."""
        return np.random.default_rng((self.seed, epoch, batch, OWN_STREAM))

    @abstractmethod
    def draw(self, epoch: int, batch: int, rows: int) -> torch.Tensor:
        """Draw the parameters of a batch of `rows` images: float32 [rows, P] on the host.

        Every rank draws the parameters of all rows, even if the rank trains on only some of the rows.
        """

    @abstractmethod
    def __call__(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return the augmented images.

        Args:
            images: float32 [B, C, S, S], normalised.
            parameters: float32 [B, P] on the device of the images, from `draw`.

        Returns:
            float32 [B, C, S, S]; `images` is not modified.
        """


class Dsa(Augmentation):
    """Differentiable Siamese Augmentation (Zhao and Bilen, ICML 2021), as used for evaluation in its authors' code.

    The operations apply to normalised images. Pixels from outside the image (after a crop, a scaling or a rotation) and
    pixels in a cutout are 0, the mean colour. The evaluations of DSA, DM, MTT and DATM use the mode `single`: all
    images of a batch get the same operation, with random parameters per image.

    Args:
        seed: --fkd-seed.
        size: S, side of the images in pixels.
        strategy: names of operations, joined by `_`. `color` changes brightness, saturation and contrast.
        mode: `single`: each batch gets one operation of the strategy, each with the same probability. `all`: each batch
            gets all operations, in the order of the strategy. `gift`: flip, color, one of the other operations, and
            cutout, in this order; operations that are not in the strategy are skipped (GIFT, ICLR 2025).
        parameters: values that replace those of DSA_PARAMETERS. `prob_flip`: probability of a flip. `ratio_scale` r:
            factors of height and width in [1/r, r]. `ratio_rotate`: largest angle in degrees. `ratio_crop_pad`: largest
            shift, as a share of the image's side. `ratio_cutout`: side of the hole, as a share of the image's side.
            `brightness` b: summand in [-b/2, b/2]. `saturation` s: factor of the distance to a pixel's mean, in [0, s].
            `contrast` c: factor of the distance to the image's mean, in [c, c + 1].
    """

    def __init__(
        self,
        seed: int,
        size: int,
        strategy: str = "_".join(DSA_OPERATIONS),
        mode: str = DSA_MODES[0],
        parameters: Mapping[str, float] = DSA_PARAMETERS,
    ) -> None:
        super().__init__(seed)
        self.size, self.parameters = size, DSA_PARAMETERS | dict(parameters)
        self.order = strategy.split("_")
        constant = {"single": set(), "all": set(self.order), "gift": {"flip", "color", "cutout"}}[mode]
        if mode == "gift":
            places = {"flip": 0, "color": 1, "cutout": 3}
            self.order.sort(key=lambda name: places.get(name, 2))
        # indices in `order`: each batch gets one operation of `choices`, and all operations of `constant`
        self.choices = [place for place, name in enumerate(self.order) if name not in constant]
        self.constant = [place for place, name in enumerate(self.order) if name in constant]
        self.hole = int(size * self.parameters["ratio_cutout"] + 0.5)
        self.apply = {
            "color": change_color,
            "crop": shift,
            "cutout": self.cut_out,
            "flip": flip,
            "scale": scale,
            "rotate": rotate,
        }

    def draw(self, epoch: int, batch: int, rows: int) -> torch.Tensor:
        """Draw the parameters of a batch: float32 [rows, P].

        The first columns hold 1 for each operation of `order` that the row gets, else 0. Then come the parameters of
        all operations of DSA_COLUMNS. The parameters of unused operations are drawn as well, so that the parameters of
        an operation do not depend on the strategy.
        """
        rng, p = self.generator(epoch, batch), self.parameters
        choice = rng.random()
        used = np.zeros((rows, len(self.order)))
        used[:, self.constant] = 1
        if self.choices:
            used[:, self.choices[int(choice * len(self.choices))]] = 1
        pad = int(self.size * p["ratio_crop_pad"] + 0.5)
        narrow = 1 / p["ratio_scale"]
        values = {
            "color": rng.random((rows, 3)) * [p["brightness"], p["saturation"], 1]
            + [-p["brightness"] / 2, 0, p["contrast"]],
            "crop": rng.integers(-pad, pad + 1, (rows, 2)),
            "cutout": rng.integers(0, self.size + 1 - self.hole % 2, (rows, 2)) - self.hole // 2,
            "flip": rng.random((rows, 1)) < p["prob_flip"],
            "scale": rng.random((rows, 2)) * (p["ratio_scale"] - narrow) + narrow,
            "rotate": (2 * rng.random((rows, 1)) - 1) * math.radians(p["ratio_rotate"]),
        }
        return torch.from_numpy(np.concatenate([used, *(values[name] for name in DSA_COLUMNS)], axis=1)).float()

    def __call__(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return the augmented images, see `Augmentation`.

        An operation is computed for all rows; rows that do not use the operation stay unchanged.
        """
        used, *columns = parameters.split([len(self.order), *DSA_COLUMNS.values()], dim=1)
        values = dict(zip(DSA_COLUMNS, columns, strict=True))
        for place, name in enumerate(self.order):
            # on the CPU, reading a parameter causes no synchronisation, and skipping an unused operation saves time
            if parameters.device.type == "cpu" and not used[:, place].any():
                continue
            changed = self.apply[name](images, values[name])
            images = torch.where(used[:, place, None, None, None] > 0, changed, images)
        return images

    def cut_out(self, images: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
        """Return images with a square of zeros, clipped at the edges of the image: the operation `cutout` of DSA.

        Args:
            images: float32 [B, C, S, S].
            corners: float32 [B, 2], row and column of the square's top left pixel; may be negative.
        """
        pixels = torch.arange(self.size, device=images.device)
        inside = (pixels >= corners[:, :, None]) & (pixels < corners[:, :, None] + self.hole)  # [B, 2, S]
        rows, columns = inside.unbind(dim=1)
        return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def change_color(images: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return images with changed brightness, saturation and contrast: the operation `color` of DSA.

    Args:
        images: float32 [B, C, S, S].
        values: float32 [B, 3]. Column 0 (brightness) is added to the image. Column 1 (saturation) multiplies each
            value's distance to the mean of its pixel's channels. Column 2 (contrast) multiplies each value's distance
            to the image's mean.
    """
    brightness, saturation, contrast = values[:, :, None, None, None].unbind(dim=1)
    images = images + brightness
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * saturation + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * contrast + mean


def shift(images: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Return shifted images, padded with zeros: the operation `crop` of DSA.

    Args:
        images: float32 [B, C, S, S].
        steps: float32 [B, 2], whole numbers (dy, dx). Result pixel (y, x) is input pixel (y + dy, x + dx).
    """
    size = images.shape[-1]
    places = torch.arange(size, device=images.device) + steps.long()[:, :, None]  # [B, 2, S]
    inside = (places >= 0) & (places < size)
    rows, columns = places.clamp(0, size - 1).unbind(dim=1)
    images = images.gather(2, rows[:, None, :, None].expand_as(images))
    images = images.gather(3, columns[:, None, None, :].expand_as(images))
    return images * (inside[:, 0, None, :, None] & inside[:, 1, None, None, :])


def flip(images: torch.Tensor, mirrored: torch.Tensor) -> torch.Tensor:
    """Mirror images [B, C, S, S] left to right if their entry of `mirrored`, float32 [B, 1], is 1; return the batch."""
    return torch.where(mirrored[:, :, None, None] > 0, images.flip(3), images)


def scale(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return images whose width and height are divided by `factors`; a shrunken image is surrounded with zeros.

    Args:
        images: float32 [B, C, S, S].
        factors: float32 [B, 2], divisor of the width and divisor of the height.
    """
    zero = torch.zeros_like(factors[:, 0])
    return resample(images, torch.stack([factors[:, 0], zero, zero, factors[:, 1]], dim=1))


def rotate(images: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate images [B, C, S, S] about their centres by `angles`, float32 [B, 1], in radians; return the results."""
    cos, sin = angles.cos(), angles.sin()
    return resample(images, torch.cat([cos, -sin, sin, cos], dim=1))


def resample(images: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Return linearly transformed images: position p of the result shows position A p of the original.

    Values between pixels are interpolated bilinearly; outside the image, they are 0. A position (x, y) is relative to
    the centre of the image, and -1 and 1 are the image's edges.

    Args:
        images: float32 [B, C, S, S].
        matrices: float32 [B, 4], the 2 x 2 matrix A of each image, row by row.
    """
    size = images.shape[-1]
    centres = (2 * torch.arange(size, device=images.device) + 1) / size - 1
    x, y = centres[None, None, :], centres[None, :, None]
    xx, xy, yx, yy = matrices[:, :, None, None].unbind(dim=1)
    # F.affine_grid is not used, because its matrix product may be computed in TF32 on a GPU
    grid = torch.stack([xx * x + xy * y, yx * x + yy * y], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class ImagenetHard(Augmentation):
    """Colour jitter and lighting of the hard-label evaluators of IDC (ICML 2022) and Minimax Diffusion (CVPR 2024).

    The steps apply to images in [0, 1], so the normalisation is undone first and redone at the end. Colour jitter has
    three steps in random order. Each step replaces an image x by x + a (g - x) with a random a, uniform in
    [-jitter, jitter]. The target g is black (brightness), the mean of the grey image (contrast) or the grey image
    (saturation). Lighting then adds to channel i the sum over j of EIGENVECTORS[i][j] · EIGENVALUES[j] · n_j; the n_j
    are normal with mean 0 and standard deviation `lighting`. Values are not clipped. To a grey image, lighting adds the
    grey value of the three sums.

    Args:
        seed: --fkd-seed.
        mean, std: C values each, the normalisation of the images.
        device: device of the images.
        jitter: bound of a.
        lighting: standard deviation of n_j.
    """

    def __init__(
        self,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        jitter: float = 0.4,
        lighting: float = 0.1,
    ) -> None:
        super().__init__(seed)
        self.mean, self.std = (torch.tensor(one, device=device)[:, None, None] for one in (mean, std))
        self.channels, self.jitter, self.lighting = len(mean), jitter, lighting

    def draw(self, epoch: int, batch: int, rows: int) -> torch.Tensor:
        """Draw the parameters of a batch: float32 [rows, 6 + C].

        Columns 0 to 2 hold the order of the steps of colour jitter (0: brightness, 1: contrast, 2: saturation), columns
        3 to 5 the factors a of these steps, and the last C columns the values that lighting adds to the channels.
        """
        rng = self.generator(epoch, batch)
        order = rng.permuted(np.tile(np.arange(3), (rows, 1)), axis=1)
        strengths = rng.uniform(-self.jitter, self.jitter, (rows, 3))
        light = rng.normal(0, self.lighting, (rows, 3)) * EIGENVALUES @ np.transpose(EIGENVECTORS)
        if self.channels == 1:
            light = light @ np.array(GREY)[:, None]
        return torch.from_numpy(np.concatenate([order, strengths, light], axis=1)).float()

    def __call__(self, images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return the augmented images, see `Augmentation`."""
        order, strengths, light = parameters[..., None, None].split([3, 3, self.channels], dim=1)
        images = images * self.std + self.mean
        for place in range(3):
            step, strength = order[:, place, None], strengths[:, place, None]
            grey = grey_image(images)
            target = torch.where(step == 2, grey, torch.where(step == 1, grey.mean(dim=(2, 3), keepdim=True), 0.0))
            images = images + strength * (target - images)
        return (images + light - self.mean) / self.std


def grey_image(images: torch.Tensor) -> torch.Tensor:
    """Convert images [B, C, S, S] in [0, 1] to grey images [B, 1, S, S]; return images of one channel unchanged."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return GREY[0] * red + GREY[1] * green + GREY[2] * blue


class ColouredCutout:
    """The cutouts that LPLD and LPQLD draw into the views of ImageNet-21K: filled rectangles of one colour.

    A rectangle covers the pixels from c - h // 2 to c + h // 2 on both axes, including both ends, where c is its
    centre and h its side; it is clipped at the edges of the view. This is what PIL's `ImageDraw.rectangle` draws.

    Labels store each centre and side as a share of the view's side. The product with the side is rounded to whole
    pixels, as the teacher's view had them. The authors' training code truncates the products instead, so that 7 of 224
    places are one pixel too small.

    Args:
        mean, std: C values each, the normalisation of the images.
        device: device of the images.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> None:
        self.mean, self.std = (torch.tensor(one, device=device)[:, None, None] for one in (mean, std))

    def __call__(self, images: torch.Tensor, cutouts: torch.Tensor) -> torch.Tensor:
        """Return normalised images with their rectangles.

        Args:
            images: float32 [B, C, S, S], normalised.
            cutouts: float32 [B, 7] on the device of the images: row and column of the centre, height and width, as
                shares of the view's side; red, green and blue from 0 to 255.

        Returns:
            float32 [B, C, S, S]; `images` is not modified.
        """
        size = images.shape[-1]
        centre, sides = (cutouts[:, :4] * size).round().split(2, dim=1)  # [B, 2], along rows and columns
        half = (sides / 2).floor()
        pixels = torch.arange(size, device=images.device)
        inside = (pixels >= (centre - half)[:, :, None]) & (pixels <= (centre + half)[:, :, None])  # [B, 2, S]
        rows, columns = inside.unbind(dim=1)
        colour = cutouts[:, 4:, None, None] / 255
        if images.shape[1] == 1:
            colour = grey_image(colour)
        colour = (colour - self.mean) / self.std
        return torch.where(rows[:, None, :, None] & columns[:, None, None, :], colour, images)


def augmentation_of(config: TrainConfig, found: Findings, device: torch.device | str = "cpu") -> Augmentation | None:
    """Return the augmentation of --augment dsa or imagenet-hard; None for other values and for runs on stored labels.

    Args:
        config: flags of the run.
        found: derived settings; `input_size`, `mean` and `std` are used.
        device: device of the images.
    """
    if not isinstance(config, KDConfig):
        return None
    if config.augment == "dsa":
        strategy, mode = config.dsa_strategy or "_".join(DSA_OPERATIONS), config.dsa_mode or DSA_MODES[0]
        return Dsa(config.fkd_seed, found.input_size, strategy, mode, config.dsa_parameters())
    if config.augment == "imagenet-hard":
        return ImagenetHard(config.fkd_seed, found.mean, found.std, device)
    return None
