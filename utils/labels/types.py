"""The types that all label formats share: `BatchLabels`, how its views are mixed (`Mix`), and answers (`TopK`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch


class TopK(NamedTuple):
    """The k largest of each row's C answers. Data loaders pass on this small form; the loss calls `dense`.

    Attributes:
        values: float [B, k], logits (or log probabilities).
        classes: int64 [B, k], the class of each value; the classes of a row are distinct.
        rest: float32 [B, 2], mean and variance of the logits that were not kept; None if they are unknown.
    """

    values: torch.Tensor
    classes: torch.Tensor
    rest: torch.Tensor | None

    def dense(self, num_classes: int, temperature: float | torch.Tensor, renormalise: bool) -> torch.Tensor:
        """Return logits of all classes: float32 [B, C].

        Args:
            num_classes: C.
            temperature: T of the softmax that will be applied.
            renormalise: whether classes that were not kept get -inf, so that a softmax gives them exactly 0 (marginal
                re-normalisation, LPQLD). Otherwise, if `rest` is known, each of these classes gets the logit
                mean + variance / (2 T), which keeps their total mass at T up to the second moment of their logits.
        """
        if renormalise or self.rest is None:
            absent = self.values.new_full((len(self.values), num_classes), float("-inf"), dtype=torch.float32)
        else:
            mean, variance = self.rest.unbind(dim=1)
            absent = (mean + variance / (2 * temperature))[:, None].expand(-1, num_classes)
        return absent.scatter(1, self.classes, self.values.float())


ALL = slice(None)
Crop = tuple[int, int, int, int]  # top, left, height, width, in pixels of the image
MixBox = tuple[int, int, int, int]  # y1, x1, y2, x2, in pixels of the view
Answers = torch.Tensor | TopK  # a batch's logits: [B, C], or the k largest of them


def each(answers: Answers | None, change: Callable[[torch.Tensor], torch.Tensor]) -> Answers | None:
    """Apply `change` to the tensor, or to all tensors of a `TopK`."""
    if isinstance(answers, TopK):
        rest = None if answers.rest is None else change(answers.rest)
        return TopK(change(answers.values), change(answers.classes), rest)
    return None if answers is None else change(answers)


def tensors_of(answers: Answers | None) -> tuple[torch.Tensor | None, ...]:
    """Return answers as a tuple of one tensor, or of the three of a `TopK`; `answers_of` is the inverse."""
    return tuple(answers) if isinstance(answers, TopK) else (answers,)


def answers_of(tensors: Sequence[Any]) -> Answers | None:
    """Return the answers from which `tensors_of` made `tensors`."""
    return tensors[0] if len(tensors) == 1 else TopK(*tensors)


def values_of(answers: Answers) -> torch.Tensor:
    """Return the logits: the tensor [B, C] itself, or the values [B, k] of a `TopK`."""
    return answers.values if isinstance(answers, TopK) else answers


def best_classes(answers: Answers) -> torch.Tensor:
    """Return the teacher's first choice for every row: int64 [B]."""
    if isinstance(answers, TopK):
        return answers.classes.gather(1, answers.values.float().argmax(dim=1, keepdim=True))[:, 0]
    return answers.float().argmax(dim=1)


class Mix(NamedTuple):
    """Partners, ratio and box of a mixed batch; label files call them mix_index, mix_lam and mix_bbox.

    Attributes:
        partner: int64 [B], the row that each row is mixed with; None without mixing.
        lam: weight of the row itself, in [0, 1]; None without mixing.
        box: (y1, x1, y2, x2) in pixels of the view, rows first: the pixels that come from the partner; cutmix only.
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
        """Return the share of a view of `size` x `size` pixels that comes from the row's own image, in [0, 1]."""
        if self.box is not None:
            y1, x1, y2, x2 = self.box
            return 1 - (y2 - y1) * (x2 - x1) / size**2
        return 1.0 if self.lam is None else self.lam


class BatchViews(ABC):
    """The crops and flips of a batch: stored in `BatchLabels`, or still to be drawn in `DrawnBatch`."""

    @abstractmethod
    def crops(self, sizes: np.ndarray, rows: slice = ALL) -> np.ndarray:
        """Return the crops of some rows in pixels: int64 [R, 5], (top, left, height, width, flip) of each.

        A crop has at least one pixel, and none outside its image.

        Args:
            sizes: int64 [R, 2], (H, W) of each row's image.
            rows: slice that selects R rows of the batch.
        """

    def view(self, slot: int, image_size: Sequence[int]) -> tuple[Crop, bool]:
        """Return ((top, left, height, width) in pixels, flip) of row `slot`, given its image's (H, W)."""
        crop = self.crops(np.array([image_size]), slice(slot, slot + 1))
        top, left, height, width, flip = crop[0].tolist()
        return (top, left, height, width), bool(flip)


@dataclass(frozen=True)
class BatchLabels(BatchViews):
    """The views that a teacher saw of one batch, and its answers.

    Attributes:
        coords: float32 [B, 4], crops as fractions (top/H, left/W, height/H, width/W).
        flip: bool [B], flipped left to right after the crop.
        mix: how the views are mixed.
        logits: the teacher's raw answers, float16 or float32 [B, C], or the `TopK` largest of them.
        index: int64 [B], number of each row's image in the sorted image folder, or None if the
            file does not state it (a store fills it in).
    """

    coords: torch.Tensor
    flip: torch.Tensor
    mix: Mix
    logits: Answers
    index: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.flip)

    def crops(self, sizes: np.ndarray, rows: slice = ALL) -> np.ndarray:
        """See `BatchViews.crops`.

        Both edges are rounded half to even, as PIL rounds the products that the reference code passes to it. Rounding
        matters for fractions in half precision (LPLD's, LPQLD's, HALD's), whose products are not whole numbers. In
        images of more than 1,000 pixels, an edge may round to one pixel beyond the last. PIL shows black there; this
        crop ends at the last pixel.
        """
        coords = self.coords[rows].double().numpy()
        start, length = coords[:, :2] * sizes, coords[:, 2:] * sizes
        crops = np.empty((len(sizes), 5), np.int64)
        crops[:, :2] = np.minimum(np.rint(start), sizes - 1)
        crops[:, 2:4] = np.maximum(np.minimum(np.rint(start + length), sizes) - crops[:, :2], 1)
        crops[:, 4] = self.flip[rows].numpy()
        return crops
