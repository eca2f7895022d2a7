"""The types that all label formats share, above all `BatchLabels`, the labels of a batch in memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch


class TopK(NamedTuple):
    """The k largest of the C logits in each row. The loss calls `dense` to get logits of all classes.

    Attributes:
        values: float [B, k], the k largest logits (or log probabilities).
        classes: int64 [B, k], the class of each value; the classes of a row are distinct.
        rest: float32 [B, 2], mean and variance of the logits that were dropped; None if these are unknown.
    """

    values: torch.Tensor
    classes: torch.Tensor
    rest: torch.Tensor | None

    def dense(self, num_classes: int, temperature: float | torch.Tensor, renormalise: bool) -> torch.Tensor:
        """Return logits of all classes: float32 [B, C].

        Dropped classes get the logit m + v / (2 T), with mean m and variance v from `rest`. Their total probability is
        then correct to second order. If `rest` is None, dropped classes get probability 0.

        Args:
            num_classes: C.
            temperature: T, the temperature of the softmax that the caller will apply.
            renormalise: if True, dropped classes always get probability 0 (marginal re-normalisation, LPQLD).
        """
        if renormalise or self.rest is None:
            absent = self.values.new_full((len(self.values), num_classes), float("-inf"), dtype=torch.float32)
        else:
            mean, variance = self.rest.unbind(dim=1)
            absent = (mean + variance / (2 * temperature))[:, None].expand(-1, num_classes)
        return absent.scatter(1, self.classes, self.values.float())


class Weighted(NamedTuple):
    """A teacher's logits with the weight that the loss of each row gets (WMDD). Only training uses it.

    Attributes:
        answers: the logits, [B, C] or a `TopK`.
        weights: float32 [B], not negative; their mean over the rows of the whole batch is 1.
    """

    answers: "torch.Tensor | TopK"
    weights: torch.Tensor


ALL = slice(None)
Crop = tuple[int, int, int, int]  # top, left, height, width, in pixels of the image
MixBox = tuple[int, int, int, int]  # y1, x1, y2, x2, in pixels of the view
# the logits of a batch: all logits [B, C], or the k largest of each row, or either of them with weights of the rows
Answers = torch.Tensor | TopK | Weighted


def each(answers: Answers | None, change: Callable[[torch.Tensor], torch.Tensor]) -> Answers | None:
    """Apply `change` to the logits, or to every tensor of a `TopK` or `Weighted`. Return None if `answers` is None."""
    return answers_of([None if tensor is None else change(tensor) for tensor in tensors_of(answers)])


def tensors_of(answers: Answers | None) -> tuple[torch.Tensor | None, ...]:
    """Return the tensors of the labels of a batch as a tuple.

    A tensor of logits is the only entry. A `TopK` gives its three fields. A `Weighted` gives the entries of its
    `answers`, and then its weights.
    """
    if isinstance(answers, Weighted):
        return *tensors_of(answers.answers), answers.weights
    return tuple(answers) if isinstance(answers, TopK) else (answers,)


def answers_of(tensors: Sequence[Any]) -> Any:
    """Convert a tuple from `tensors_of` back.

    A single entry is returned as it is, and three entries become a `TopK`. Two or four entries become a `Weighted`.
    """
    if len(tensors) in (2, 4):
        return Weighted(answers_of(tensors[:-1]), tensors[-1])
    return tensors[0] if len(tensors) == 1 else TopK(*tensors)


def unweighted(answers: Answers) -> torch.Tensor | TopK:
    """Return the logits without the weights of the rows, if there are any."""
    return answers.answers if isinstance(answers, Weighted) else answers


def values_of(answers: Answers) -> torch.Tensor:
    """Return the logits: the tensor [B, C] itself, or the values [B, k] of a `TopK`."""
    answers = unweighted(answers)
    return answers.values if isinstance(answers, TopK) else answers


def best_classes(answers: Answers) -> torch.Tensor:
    """Return the class with the largest logit in each row: int64 [B]."""
    answers = unweighted(answers)
    if isinstance(answers, TopK):
        return answers.classes.gather(1, answers.values.float().argmax(dim=1, keepdim=True))[:, 0]
    return answers.float().argmax(dim=1)


class Mix(NamedTuple):
    """How a batch is mixed: partners, ratio and box. Label files call these fields mix_index, mix_lam and mix_bbox.

    Attributes:
        partner: int64 [B], the row with which each row is mixed; None without mixing.
        lam: weight of a row's own image, in [0, 1]; None without mixing.
        box: (y1, x1, y2, x2) in pixels of the view: the rectangle that cutmix pastes from the partner. None without
            cutmix.
    """

    partner: torch.Tensor | None = None
    lam: float | None = None
    box: MixBox | None = None

    @property
    def type(self) -> str:
        """Return the kind of mixing: `cutmix`, `mixup` or `none`."""
        if self.box is not None:
            return "cutmix"
        return "none" if self.lam is None else "mixup"

    def own_share(self, size: int) -> float:
        """Return the share of a row's own image in its view, from 0 to 1. A view has `size` x `size` pixels."""
        if self.box is not None:
            y1, x1, y2, x2 = self.box
            return 1 - (y2 - y1) * (x2 - x1) / size**2
        return 1.0 if self.lam is None else self.lam


class BatchViews(ABC):
    """Base class of the two kinds of batches: `BatchLabels` with stored crops, `DrawnBatch` with random crops.

    Attributes:
        augment: float32 [B, P], the parameters of each row's augmentation; None without augmentation. For stored
            labels, these are the coloured cutouts of LPLD and LPQLD for ImageNet-21K, P = 7, see `ColouredCutout`.
        strips: int64 [B, 2, F], the orders in which the F strips of each row's image are put together before the crop,
            across the width and then across the height: item k is the number of the strip that comes to place k.
            None if images are not cut into strips.
        change: function (image, seed) -> image that changes each row's image before strips and crop; None: no change.
        seeds: int64 [B], the seed of `change` for each row; None without `change`.
    """

    augment: "torch.Tensor | None" = None
    strips: "torch.Tensor | None" = None
    change: Callable[[Any, int], Any] | None = None
    seeds: "torch.Tensor | None" = None

    @abstractmethod
    def crops(self, sizes: np.ndarray, rows: slice = ALL) -> np.ndarray:
        """Return the crops, in pixels, of some rows of the batch: int64 [R, 5].

        Each row is (top, left, height, width, flip).

        Every crop has at least one pixel and lies inside its image.

        Args:
            sizes: int64 [R, 2], (H, W) of each row's image in pixels.
            rows: slice that selects R rows of the batch.
        """

    def view(self, slot: int, image_size: Sequence[int]) -> tuple[Crop, bool]:
        """Return the crop and the flip of row `slot`: ((top, left, height, width) in pixels, flip).

        Args:
            slot: number of the row in the batch.
            image_size: (H, W) of the row's image in pixels.
        """
        crop = self.crops(np.array([image_size]), slice(slot, slot + 1))
        top, left, height, width, flip = crop[0].tolist()
        return (top, left, height, width), bool(flip)


@dataclass(frozen=True)
class BatchLabels(BatchViews):
    """The soft labels of one batch: the views that a teacher saw, and the teacher's logits for these views.

    Attributes:
        coords: float32 [B, 4], crops as fractions (top/H, left/W, height/H, width/W) of the image.
        flip: bool [B], whether the view is flipped left to right after the crop.
        mix: how the views are mixed.
        logits: the teacher's logits before the softmax (or log probabilities), float16 or float32 [B, C], or a `TopK`.
            In batches that `TrainingViews` reads from labels with weights, a `Weighted`.
        index: int64 [B], the position of each row's image in the sorted image folder. None if the label file does
            not state it; `LabelStore.read` then fills it in.
        weights: float64 [B], the weight of each row's image as the label file states it (WMDD); None without weights.
    """

    coords: torch.Tensor
    flip: torch.Tensor
    mix: Mix
    logits: Answers
    index: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    augment: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.flip)

    def weighted(self) -> "BatchLabels":
        """Return this batch with its weights, divided by their mean, beside the logits: the form that the loss needs.

        Call this for the whole batch, before rows are selected. Without weights, the batch itself is returned.
        """
        if self.weights is None:
            return self
        shares = (self.weights / self.weights.mean()).float()
        return replace(self, logits=Weighted(unweighted(self.logits), shares), weights=None)

    def crops(self, sizes: np.ndarray, rows: slice = ALL) -> np.ndarray:
        """Return the crops, in pixels, of some rows of the batch: int64 [R, 5]; see `BatchViews.crops`.

        The start and the end of a crop are rounded to whole pixels, half to even, as PIL does in the reference code.
        Rounding matters for fractions in half precision (LPLD, LPQLD, HALD), which rarely give whole pixels. In images
        of more than 1,000 pixels per side, the rounded end of a crop may lie one pixel outside the image. PIL fills
        that pixel with black; here, the crop ends with the last pixel of the image.
        """
        coords = self.coords[rows].double().numpy()
        start, length = coords[:, :2] * sizes, coords[:, 2:] * sizes
        crops = np.empty((len(sizes), 5), np.int64)
        crops[:, :2] = np.minimum(np.rint(start), sizes - 1)
        crops[:, 2:4] = np.maximum(np.minimum(np.rint(start + length), sizes) - crops[:, :2], 1)
        crops[:, 4] = self.flip[rows].numpy()
        return crops
