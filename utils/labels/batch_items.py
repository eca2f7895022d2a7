"""Read and check label files: the items that make up a batch, and the lists that say which images a batch holds.

All projects store a batch as a list of 6 to 8 items; docs/label-formats.md describes each item. LPLD, LPQLD and HALD
list the images of their batches in a separate file.
"""

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.labels.types import Answers, BatchLabels, Mix, TopK
from utils.system.errors import InputError
from utils.system.safe_load import load_archive

Require = Callable[[Any, str], None]
FLOATS = [torch.float16, torch.float32]
# how far a crop may end outside its image, as a fraction of the image's side: half precision rounds the coords
SLACK = 1e-3
MAX_JSON_BYTES = 256 * 2**20
MAX_IMAGES = 2**31
NUMBER = re.compile(r"0|[1-9]\d{0,8}")
SUM_SLACK = 0.02  # by how much the sum of a row of half-precision probabilities may differ from 1


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite. numpy is faster, because PyTorch would first wake its threads."""
    return bool(np.isfinite(tensor.numpy()).all())


def requirement(source: object) -> Require:
    """Return a function `require(condition, problem)` that raises InputError if `condition` is false.

    The error message names the label file `source` and the `problem`.
    """

    def require(condition: Any, problem: str) -> None:
        if not condition:
            raise InputError(f"{source} is not a usable label file: {problem}; get it again or run relabel_FKD.py")

    return require


def parse_items(items: Any, source: object, answers: str = "logits") -> BatchLabels:
    """Check every item of a stored batch and return its `BatchLabels`.

    Args:
        items: [coords, flip, mix_index, mix_lam, mix_bbox, logits], and up to two more. The 7th item holds the image
            numbers int64 [B], the class ids [B, k] of top-k logits, or the weights float64 [B] of the rows (WMDD). Only
            labels of EDC have the 8th item [B, 2, 2]. All its entries must be 0: any other value means that patches
            of an image were moved. In labels of LPLD and LPQLD for ImageNet-21K, the 2nd item holds the coloured
            cutouts [B, 7], and no view is flipped.
        source: the label file, for error messages.
        answers: the kind of the 6th item: `logits`, or `probabilities`, which are converted to natural logs.

    Raises:
        InputError: an item is missing, has a wrong type or shape, or is out of range; or the labels come from a project
            that is not supported. The message names `source`.
    """
    require = requirement(source)
    refuse_other_projects(items, source)
    require(isinstance(items, list) and len(items) in (6, 7, 8), "it is not a list of 6 to 8 items")
    coords, flip, mix_index, mix_lam, mix_bbox, values, *rest = items
    cutouts = None
    if isinstance(flip, torch.Tensor) and flip.dim() == 2:
        cutouts, flip = check_cutouts(require, flip), torch.zeros(len(flip), dtype=torch.bool)
    require_tensor(require, "flip", flip, [torch.bool], None)
    rows = len(flip)
    require(rows > 0, "it holds no rows")
    check_coords(require, coords, rows)
    index = classes = weights = None
    if rest and isinstance(rest[0], torch.Tensor) and rest[0].dim() == 2:
        classes = rest[0]
    elif rest and isinstance(rest[0], torch.Tensor) and rest[0].is_floating_point():
        weights = check_weights(require, rest[0], rows)
    elif rest and rest[0] is not None:
        index = rest[0]
        require_tensor(require, "index", index, [torch.int64], rows)
        require((index >= 0).all(), "index is negative")
    if len(rest) == 2:
        require(index is not None, "it has 8 items, and the 7th is not an index")
        check_patches(require, rest[1], rows, source)
    check = {"logits": check_logits, "probabilities": check_probabilities}[answers]
    logits = with_classes(require, check(require, values, rows), classes)
    mix = check_mix(require, mix_index, mix_lam, mix_bbox, rows)
    require(answers == "logits" or (weights is None and cutouts is None), "it holds weights or cutouts, unlike HALD's")
    return BatchLabels(coords.float(), flip, mix, logits, index, weights, cutouts)


def second_item(labels: BatchLabels) -> torch.Tensor:
    """Return the 2nd item of a batch's file: the coloured cutouts float32 [B, 7] if there are any, else the flips."""
    return labels.flip if labels.augment is None else labels.augment


def small_items(labels: BatchLabels) -> list[Any]:
    """Return a batch's first five items, coords to mix_bbox, in the small dtypes in which LPLD stores them."""
    partner, lam, box = labels.mix
    # clone the 2nd item: it may be a slice of a longer tensor, and torch.save would store that tensor completely
    coords, flip = labels.coords.half(), second_item(labels).clone()
    return [
        coords,
        flip,
        None if partner is None else partner.to(torch.uint8 if len(labels) <= 256 else torch.int64),
        lam,
        None if box is None else [torch.tensor(n, dtype=torch.uint8) if n < 256 else n for n in box],
    ]


def refuse_other_projects(items: Any, source: object) -> None:
    """Raise InputError if the items look like the labels of a project that is not supported."""
    if not isinstance(items, list):
        return
    shapes = [tuple(item.shape) if isinstance(item, torch.Tensor) else () for item in items]
    project = None
    if len(items) == 3 and shapes[0][1:] == (4,) and len(shapes[1]) == 1:
        project = "FKD (Shen and Xing, 2022), which is about the crops of one real image, not about a batch"
    elif len(items) in (7, 8) and (
        isinstance(items[2], list | tuple) or any(len(shape) == 3 and shape[2] == 3 for shape in shapes[2:4])
    ):
        project = "LPLD or LPQLD with RandAugment, whose operations are not replayed here"
    elif len(items) in (6, 7) and len(shapes[5]) == 3 and shapes[5][0] == 2:
        project = "FD2, whose teachers have two heads (item 6), and students here have one"
    if project:
        raise InputError(
            f"{source} looks like a label file of {project}; use that project's own code, or label the images anew "
            "with relabel_FKD.py"
        )


def check_weights(require: Require, weights: torch.Tensor, rows: int) -> torch.Tensor:
    """Require that `weights` [rows] are sound weights of the rows of a batch; return them in float64."""
    require_tensor(require, "weights", weights, [torch.float32, torch.float64], rows)
    weights = weights.double()
    require(weights_are_sound(weights, rows), "its weights are not numbers from 0 up with a positive sum")
    return weights


def weights_are_sound(weights: torch.Tensor, batch_size: int) -> bool:
    """Return whether weights float64 [N] can be normalised in every batch: none is negative, and sums are above 0.

    Args:
        weights: weights of the rows of one or more batches.
        batch_size: number of rows of a full batch.
    """
    sums = torch.stack([part.sum() for part in weights.split(batch_size)])
    return bool((weights >= 0).all() and ((sums > 0) & sums.isfinite()).all())


def check_cutouts(require: Require, cutouts: torch.Tensor) -> torch.Tensor:
    """Require that `cutouts` [rows, 7] are coloured cutouts; return them in float32."""
    require_tensor(require, "cutout", cutouts, FLOATS, None, 7)
    require(cutouts_are_sound(cutouts), "a cutout is not four shares of the image and three values from 0 to 255")
    return cutouts.float()


def cutouts_are_sound(cutouts: torch.Tensor) -> bool:
    """Return whether cutouts [N, 7] have a centre and sides between 0 and 1, and colours between 0 and 255."""
    return bool(((cutouts >= 0) & (cutouts <= torch.tensor([1.0] * 4 + [255.0] * 3))).all())


def check_patches(require: Require, status: Any, rows: int, source: object) -> None:
    """Raise InputError if an entry of EDC's 8th item is not 0. Such an entry means that patches of an image were moved.

    If patches were moved, the teacher saw images with shuffled patches. Training cannot shuffle patches.
    """
    require_tensor(require, "indices_status", status, [torch.int32, torch.int64], rows, 2, 2)
    if status.any():
        raise InputError(
            f"{source} is a label file of EDC about images whose patches were shuffled (its 8th item is not all zero), "
            "which this program does not replay; use EDC's own code, or label the images anew with relabel_FKD.py"
        )


def require_tensor(
    require: Require, name: str, value: Any, dtypes: Collection[torch.dtype], *shape: int | None
) -> None:
    """Require that `value` is a tensor with `shape` and with one of `dtypes`; None in `shape` allows any length."""
    require(isinstance(value, torch.Tensor), f"{name} is not a tensor")
    require(value.dtype in dtypes, f"{name} has dtype {value.dtype}")
    fits = value.dim() == len(shape) and all(
        want in (None, have) for want, have in zip(shape, value.shape, strict=True)
    )
    require(fits, f"{name} has shape {list(value.shape)}")


def check_coords(require: Require, coords: Any, rows: int) -> None:
    """Require that crops [B, 4] are given as fractions of the image's height and width and lie inside the image."""
    require_tensor(require, "coords", coords, FLOATS, rows, 4)
    coords = coords.float()
    inside = (coords >= 0) & (coords <= 1 + 1e-4)  # false for NaN
    require(inside.all() and (coords[:, 2:] > 0).all(), "its crop coords are not fractions of an image")
    require((coords[:, :2] + coords[:, 2:] <= 1 + SLACK).all(), "a crop reaches outside its image")


def check_logits(require: Require, logits: Any, rows: int) -> torch.Tensor:
    """Require that `logits` is a floating-point tensor [B, C] of finite numbers, and return it unchanged."""
    require_tensor(require, "logits", logits, FLOATS, rows, None)
    require(logits.shape[1] > 0, "logits have no classes")
    require(all_finite(logits), "its logits are not all finite")
    return logits


def check_probabilities(require: Require, values: Any, rows: int) -> torch.Tensor:
    """Require that each row of `values` [B, C] is a probability distribution; return the natural logs in float32."""
    check_logits(require, values, rows)
    values = values.float()
    sums = values.sum(dim=1)
    sound = (values >= 0).all() and ((sums - 1).abs() <= SUM_SLACK).all()
    require(sound, "its answers are not probabilities, which its folder should hold")
    return values.log()


def with_classes(require: Require, logits: torch.Tensor, classes: torch.Tensor | None) -> Answers:
    """Return `logits` unchanged if `classes` is None; otherwise check the class ids [B, k] and return a `TopK`."""
    if classes is None:
        return logits
    require_tensor(require, "classes", classes, [torch.int16, torch.int32, torch.int64], *logits.shape)
    require((classes >= 0).all(), "a class id is negative")
    ordered = classes.sort(dim=1).values
    require((ordered[:, 1:] > ordered[:, :-1]).all(), "a row names a class twice")
    return TopK(logits, classes.long(), None)


def check_mix(require: Require, mix_index: Any, mix_lam: Any, mix_bbox: Any, rows: int) -> Mix:
    """Check how a batch is mixed and return its `Mix`.

    Partners must be rows of the batch, the mixing ratio must be in [0, 1], and the box must be valid.
    """
    if mix_index is not None:
        require_tensor(require, "mix_index", mix_index, [torch.int64, torch.uint8], rows)
        mix_index = mix_index.long()
        require(((mix_index >= 0) & (mix_index < rows)).all(), "mix_index points outside the batch")
    if mix_lam is not None:
        require(isinstance(mix_lam, float) and 0 <= mix_lam <= 1, f"mix_lam is {mix_lam!r:.40}")
    box = None if mix_bbox is None else check_box(require, mix_bbox)
    if mix_lam is not None or mix_bbox is not None:
        require(mix_index is not None and mix_lam is not None, "a mixed batch lacks mix_index or mix_lam")
    return Mix(mix_index, mix_lam, box)


def check_box(require: Require, box: Any) -> tuple[int, int, int, int]:
    """Require that `box` is (y1, x1, y2, x2) with 0 <= y1 <= y2 and 0 <= x1 <= x2; return it as plain integers.

    The four numbers may be integers or scalar integer tensors.
    """
    require(isinstance(box, list | tuple) and len(box) == 4, "mix_bbox is not four integers")
    box = tuple(plain_integer(number) for number in box)
    require(None not in box, "mix_bbox is not four integers")
    y1, x1, y2, x2 = box
    require(0 <= y1 <= y2 and 0 <= x1 <= x2, f"mix_bbox {list(box)} is not a box")
    return y1, x1, y2, x2


def plain_integer(number: Any) -> int | None:
    """Convert an integer or a scalar integer tensor to a plain integer; return None for anything else."""
    if isinstance(number, torch.Tensor) and number.dim() == 0 and not number.is_floating_point():
        number = number.item()
    return number if type(number) is int else None


def read_json_indices(file: Path) -> dict[int, list[int]]:
    """Read and check a JSON file `{"NUMBER": [image, …]}`, which lists the images of each batch or of each epoch.

    Returns:
        the list of image numbers of each batch (or epoch), sorted by batch (or epoch) number.

    Raises:
        InputError: the file is missing, cannot be read, or has another structure.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("it is absurdly long")
        content = json.loads(file.read_text())
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror}), and it says which images batches hold; copy the labels again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error}); copy the labels again") from None
    return checked_indices(content, file)


def read_saved_indices(file: Path) -> dict[int, list[int]]:
    """Read and check a `torch.save` file `{"EPOCH": [image, …]}`, which lists the images of each epoch.

    If a manipulated file contains code, the code is not run.

    Returns:
        the list of image numbers of each epoch, sorted by epoch number.

    Raises:
        InputError: the file is missing, cannot be read, or has another structure.
    """
    return checked_indices(load_archive(file), file)


def checked_indices(content: Any, file: Path) -> dict[int, list[int]]:
    """Check that `content` maps numbers, written as text, to lists of image numbers.

    Returns:
        the same lists, with integers as keys in ascending order.

    Raises:
        InputError: `content` has another structure.
    """
    sound = (
        isinstance(content, dict)
        and content
        and all(isinstance(key, str) and NUMBER.fullmatch(key) for key in content)
        and all(isinstance(images, list) and images for images in content.values())
        and all(type(image) is int and 0 <= image < MAX_IMAGES for images in content.values() for image in images)
    )
    if not sound:
        raise InputError(f"{file} does not list images by batch or epoch number; copy the labels again")
    return {number: content[str(number)] for number in sorted(map(int, content))}
