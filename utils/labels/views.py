"""Views (crops, flips and mixes) that are drawn at random instead of read from label files.

They serve relabelling, distillation without stored labels (naive KD), epochs with hard labels, and packed labels that
do not store views. A drawn view depends only on the seed, the epoch, the batch and the row. It does not depend on the
number of workers or ranks, or on whether a run was resumed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import RandomSampler

from utils.labels.types import ALL, Answers, BatchLabels, BatchViews, Crop, Mix, MixBox

CROP_ATTEMPTS = 10
# random numbers for one row: 3 for top, left and flip, and 2 per attempt for area and aspect ratio
CROP_DRAWS = 3 + 2 * CROP_ATTEMPTS
# last numbers of the seeds of --shuffle-patches and --auto-augment; `ViewPolicy` uses 0 and 1, augmentations 2
STRIPS, CHANGES = 3, 4


def fractions(box: Crop, image_size: Sequence[int]) -> torch.Tensor:
    """Convert a crop from pixels to fractions of its image: float32 [4], (top/H, left/W, height/H, width/W)."""
    height, width = image_size
    top, left, crop_height, crop_width = box
    return torch.tensor([top / height, left / width, crop_height / height, crop_width / width])


@dataclass(frozen=True)
class ViewPolicy:
    """The distribution from which views are drawn. The flags of relabel_FKD.py and train_KD_parallel.py set it."""

    seed: int
    input_size: int
    min_scale: float
    max_scale: float
    mix_type: str  # cutmix, mixup or none
    mixup_alpha: float
    cutmix_alpha: float
    hflip: float = 0.5  # probability of a flip

    def draw_crops(self, epoch: int, batch: int, rows: int) -> np.ndarray:
        """Draw random numbers [rows, CROP_DRAWS], uniform in [0, 1), for one batch; `crops` turns them into crops."""
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
        """Turn random numbers into crops: int64 [R, 5], (top, left, height, width, flip) of each row.

        The distribution is that of torchvision's RandomResizedCrop and RandomHorizontalFlip. Each attempt draws
        an area and an aspect ratio. The area is in [min_scale, max_scale], as a fraction of the image's area. The
        aspect ratio is in [3/4, 4/3], log-uniform. The first attempt that fits into the image is used. If none of
        CROP_ATTEMPTS fits, the crop is the largest central one whose aspect ratio is allowed.

        Args:
            draws: float64 [R, CROP_DRAWS], uniform in [0, 1).
            sizes: int64 [R, 2], (H, W) of each row's image in pixels.
        """
        left = np.arange(len(draws))  # rows for which no attempt has fitted yet
        crops = np.empty((len(draws), 5), np.int64)
        # start with the largest central crop; rows with a fitting attempt replace it below
        crops[:, 2:4] = np.minimum(np.maximum(np.rint(sizes[:, ::-1] * 4 / 3), 1), sizes)
        crops[:, :2] = (sizes - crops[:, 2:4]) // 2
        crops[:, 4] = draws[:, 2] < self.hflip
        for attempt in range(3, CROP_DRAWS, 2):
            limits, u_area, u_ratio = sizes[left], draws[left, attempt], draws[left, attempt + 1]
            area = limits[:, 0] * limits[:, 1] * (self.min_scale + (self.max_scale - self.min_scale) * u_area)
            # use Python's power operator, because the last bit of numpy's result may differ between CPUs
            aspect = np.array([(3 / 4) ** (1 - 2 * u) for u in u_ratio.tolist()])
            sides = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=1)))  # [R, 2], height and width
            fits = ((sides > 0) & (sides <= limits)).all(axis=1)
            fitting, left = left[fits], left[~fits]
            crops[fitting, 2:4] = sides[fits]
            # the assignment truncates the products to integers
            crops[fitting, :2] = draws[fitting, :2] * (limits[fits] - sides[fits] + 1)
            if not len(left):
                break
        return crops


class WholeImages(ViewPolicy):
    """A `ViewPolicy` whose views show the whole image, unflipped; `min_scale`, `max_scale` and `hflip` are unused."""

    def crops(self, _draws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return the whole image as the crop of each row: int64 [R, 5], see `ViewPolicy.crops`."""
        crops = np.zeros((len(sizes), 5), np.int64)
        crops[:, 2:4] = sizes
        return crops


@dataclass(frozen=True)
class CellCrops(WholeImages):
    """A `ViewPolicy` whose views show one cell of a grid of `factor` x `factor` cells, or the whole image.

    A cell is shown with probability 1 - 1/factor², and all cells are equally likely. GIFT (Shang et al., ICLR 2025) and
    CIM call this RandomFactorResizedCrop. They show images that consist of several small ones, as those of RDED do.
    """

    factor: int = 1

    def crops(self, draws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn random numbers into crops, each a cell or the whole image: int64 [R, 5], see `ViewPolicy.crops`."""
        crops = super().crops(draws, sizes)
        chosen = draws[:, 3] < 1 - 1 / self.factor**2
        sides = np.maximum(sizes[chosen] // self.factor, 1)
        crops[chosen, :2] = (draws[chosen, :2] * self.factor).astype(np.int64) * sides
        crops[chosen, 2:4] = sides
        return crops


class CentredCrops(ViewPolicy):
    """A `ViewPolicy` whose crops lie in the largest central square of the image.

    Evaluators that resize the shorter side, cut out the centre and then crop at random show such views (IDC, Minimax
    Diffusion).
    """

    def crops(self, draws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn random numbers into crops within each image's central square: int64 [R, 5], see `ViewPolicy.crops`."""
        sides = sizes.min(axis=1, keepdims=True)
        crops = super().crops(draws, np.tile(sides, 2))
        crops[:, :2] += (sizes - sides) // 2
        return crops


def random_box(rng: np.random.Generator, size: int, lam: float) -> MixBox:
    """Draw a random cutmix box for views of `size` x `size` pixels.

    The box has about the fraction 1 - lam of the view's area, and a uniform centre. The box is then clipped at the
    edges of the view. Source: CutMix (Yun et al., 2019), as in SRe2L's relabel code.

    Returns:
        (y1, x1, y2, x2) in pixels.
    """
    half = int(size * math.sqrt(1 - lam)) // 2
    cy, cx = int(rng.integers(size)), int(rng.integers(size))
    return max(cy - half, 0), max(cx - half, 0), min(cy + half, size), min(cx + half, size)


class ReferenceOrder:
    """The order of images in SRe2L's code, used for drawn views and for labels without image indices.

    SRe2L seeds a random generator once, with --fkd_seed. For each epoch in turn, a `RandomSampler` then draws
    an order of the N images. A `ReferenceOrder` gives the same orders, but epochs may be requested in any sequence.
    """

    def __init__(self, num_images: int, seed: int):
        self.num_images = num_images
        # states of the random generator before epoch 0, 1, …
        self.states = [torch.Generator().manual_seed(seed).get_state()]
        # the epoch that was requested last, and its order
        self.epoch, self.order = -1, torch.empty(0, dtype=torch.int64)

    def __call__(self, epoch: int) -> torch.Tensor:
        """Return the order of images in `epoch`, as a permutation of the indices 0 to N - 1: int64 [N]."""
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
    """One batch of random views. Crops are held as random numbers; `crops` computes crops for given image sizes."""

    policy: ViewPolicy
    draws: np.ndarray  # float64 [B, CROP_DRAWS]
    index: torch.Tensor  # int64 [B]
    mix: Mix
    logits: Answers | None = None  # labels of the views [B, C] if `LabelledViews` drew the batch, else None
    augment: torch.Tensor | None = None
    strips: torch.Tensor | None = None
    change: Callable[[Any, int], Any] | None = None
    seeds: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def crops(self, sizes: np.ndarray, rows: slice = ALL) -> np.ndarray:
        """Return the crops, in pixels, of some rows of the batch: int64 [R, 5]; see `BatchViews.crops`."""
        return self.policy.crops(self.draws[rows], sizes)

    def labelled(self, logits: Answers, image_sizes: Sequence[Sequence[int]]) -> BatchLabels:
        """Combine these views with a teacher's logits into `BatchLabels`.

        Args:
            logits: the teacher's logits [B, C], or a `TopK`.
            image_sizes: (H, W) of each row's image in pixels.
        """
        sizes = np.asarray(image_sizes, dtype=np.int64).reshape(-1, 2)
        crops = self.crops(sizes)
        # this gives the same values as calling `fractions` for each row
        coords = torch.from_numpy((crops[:, :4] / np.tile(sizes, 2)).astype(np.float32))
        flip = torch.from_numpy(crops[:, 4] == 1)
        return BatchLabels(coords, flip, self.mix, logits, self.index)


Views = BatchLabels | DrawnBatch


def index_of(views: Views) -> torch.Tensor:
    """Return the index of each row's image in the data set, int64 [B]; raise ValueError if `views.index` is None."""
    if views.index is None:
        raise ValueError("a store states the images of its batches")
    return views.index


class DrawsParameters(Protocol):
    """Interface that `DrawnViews` requires of an augmentation."""

    def draw(self, epoch: int, batch: int, rows: int, /) -> torch.Tensor:
        """Draw the random parameters of one batch: float32 [rows, P], determined by the seed and the arguments."""


class DrawnViews:
    """Batches of random views of N images, used for relabelling and for distillation without stored labels (naive KD).

    Args:
        policy: the distribution from which views are drawn.
        num_images: N, the number of images.
        batch_size: number of images in a batch.
        augmentation: draws the random parameters of the augmentation of each batch; None for no augmentation.
        num_strips: number of strips into which each image is cut along each axis, to be put together in random order
            before the crop; 1: images are not cut.
        change: function (image, seed) -> changed image, applied before strips and crop; None for no change.
    """

    def __init__(
        self,
        policy: ViewPolicy,
        num_images: int,
        batch_size: int,
        augmentation: "DrawsParameters | None" = None,
        num_strips: int = 1,
        change: Callable[[Any, int], Any] | None = None,
    ):
        self.policy, self.num_images, self.batch_size = policy, num_images, batch_size
        self.augmentation, self.num_strips, self.change = augmentation, num_strips, change
        self.batches_per_epoch = math.ceil(num_images / batch_size)
        self.order = ReferenceOrder(num_images, policy.seed)

    def rows(self, _epoch: int, batch: int) -> int:
        """Return the number of images in a batch; the last batch of an epoch may be smaller."""
        return min(self.batch_size, self.num_images - batch * self.batch_size)

    def read(self, epoch: int, batch: int) -> DrawnBatch:
        """Return the views of one batch; the same epoch and batch give the same views in every process and run."""
        start = batch * self.batch_size
        index = self.order(epoch)[start : start + self.rows(epoch, batch)]
        draws = self.policy.draw_crops(epoch, batch, len(index))
        mix = self.policy.draw_mix(epoch, batch, len(index))
        parameters = self.augmentation.draw(epoch, batch, len(index)) if self.augmentation else None
        return DrawnBatch(
            self.policy,
            draws,
            index,
            mix,
            augment=parameters,
            strips=self.draw_strips(epoch, batch, len(index)) if self.num_strips > 1 else None,
            change=self.change,
            seeds=self.draw_seeds(epoch, batch, len(index)) if self.change else None,
        )

    def draw_strips(self, epoch: int, batch: int, rows: int) -> torch.Tensor:
        """Draw random orders of F strips for one batch: int64 [rows, 2, F]; see `BatchViews.strips`."""
        rng = np.random.default_rng((self.policy.seed, epoch, batch, STRIPS))
        return torch.from_numpy(rng.random((rows, 2, self.num_strips)).argsort(axis=2))

    def draw_seeds(self, epoch: int, batch: int, rows: int) -> torch.Tensor:
        """Draw the seeds of `change` for one batch: int64 [rows], from 0 to 2**32 - 1."""
        rng = np.random.default_rng((self.policy.seed, epoch, batch, CHANGES))
        return torch.from_numpy(rng.integers(2**32, size=rows))
