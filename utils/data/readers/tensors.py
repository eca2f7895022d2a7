"""Read images that are stored as tensors or arrays, as most methods for small images publish their distilled sets.

These files are recognised; `*` stands for a number or another word:

* `images_best.pt` with `labels_best.pt` (MTT, TESLA, DATM, PAD and others), `images.pt` with `labels.pt` (DD-Ranking),
  `images_*.pt` with `labels_*.pt`. A file `lr_best.pt` beside them holds the learning rate of the distillation;
* `res_*.pt` (DC, DSA, DM): a dict whose `data` is a list of [images, labels], one pair per experiment;
* `data.pt` (GIFT): a dict of `data`, `label` and `dataset`; `data_best.pt`: a list of images and labels;
* `images.npy` with `labels.npy`, `X.npy` with `y.npy`, `X_train.npy` with `y_train.npy` and so on;
* a `.npz` or `.safetensors` file, or a `.pt` file of a dict, with two arrays of such names, for example `images` and
  `labels`.

Images are [N, C, H, W] or [N, H, W, C], with C = 1 or 3, or [N, H, W]. Their values are integers from 0 to 255, or
floating-point numbers; see `judged` for their range. Labels are class numbers [N], or probabilities or logits
[N, number of classes].
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from utils.data.images import ImageSet, InMemory, Member, Pixels
from utils.data.readers.labels import MOST_CLASSES
from utils.data.readers.parts import of_part, part_in
from utils.system.errors import InputError, clause, listing
from utils.system.files import utf8_path
from utils.system.log import log
from utils.system.safe_load import ARRAY_GLOBALS, WEIGHT_GLOBALS, PickledArray, load_archive

# word in the name of a file or array of images -> words that replace it in the name of the labels, best first
PARTNERS = {
    "images": ("labels", "targets"),
    "image": ("label", "target"),
    "data": ("label", "labels", "targets", "target"),
    "x": ("y",),
}
PAIRED = (".pt", ".npy")  # suffixes of files that may hold images alone or labels alone
KEYED = (".npz", ".safetensors")  # suffixes of files that hold named arrays
PICKLED = (".pt", ".pth")

CHANNELS = (1, 3)
PROBABILITY_ERROR = 1e-3  # tolerance for the sum of an image's probabilities, which should be 1
# images count as normalised if negative values make up more than this share of the sum of all magnitudes
NEGATIVE_SHARE = 0.2
# mean magnitude above which images that are not normalised are divided by 255
UNIT_MEAN = 2.0
NORMALISED_MEAN = 20.0  # upper bound of the mean magnitude of normalised images


class TensorImages(InMemory):
    """Images of one size, held in memory as a tensor.

    Args:
        path: file that the images were read from, for error messages.
        images: uint8 or float32 [N, C, H, W].
        soft_labels: float32 [N, number of classes], probabilities or logits stored with the images; None if there are
            none.
    """

    def __init__(self, path: str, images: torch.Tensor, soft_labels: torch.Tensor | None = None):
        self.path, self.images, self.soft_labels = path, images, soft_labels
        count, channels, height, width = images.shape
        self.shape, self.item_bytes = (count, height, width, channels), images.element_size()

    def read(self, number: int) -> bytes:
        """Return the values of image `number` as bytes, in the order [C, H, W]."""
        return self.images[number].numpy().tobytes()

    def load(self, number: int) -> Pixels:
        """Return image `number`: a PIL image (mode L or RGB) if the set is uint8, else a tensor float32 [C, H, W]."""
        image = self.images[number]
        if image.is_floating_point():
            return image
        return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy())


@dataclass(frozen=True)
class Found:
    """Paths of the files of a set.

    Attributes:
        images: file that holds the images, and perhaps the labels.
        labels: file to read if `images` holds no labels; the file may not exist. None if `images` must hold the labels.
    """

    images: Path
    labels: Path | None


def words_of(name: str) -> list[str]:
    """Return the words of the name of a file or array, in lower case: `X_train.npy` -> x, train, npy."""
    return re.split(r"[_\-.]", name.lower())


def label_names(name: str) -> list[str]:
    """Return possible names of the labels of images called `name`, in lower case; [] if `name` does not name images."""
    words = re.split(r"([_\-.])", name.lower())
    for place, word in enumerate(words):
        if word in PARTNERS:
            return ["".join([*words[:place], partner, *words[place + 1 :]]) for partner in PARTNERS[word]]
    return []


def rank(name: str) -> tuple[int, int]:
    """Return the rank of the name of an image file; the file of the lowest rank is preferred.

    Names such as `images_best.pt` come first, then `images.pt`, then names that end in a number, the highest number
    first, then other names.
    """
    others = [word for word in words_of(name)[:-1] if word not in PARTNERS and part_in(word) is None]
    if others == ["best"]:
        return 0, 0
    if not others:
        return 1, 0
    number = others[-1] if others[-1].isdecimal() else ""
    return (2, -int(number[:18])) if number else (3, 0)


def candidates(folder: Path) -> dict[str, Path | None]:
    """Return {name of an image file in the folder: path of its label file}, the preferred file first; see `rank`.

    The path is None if there is no label file. The image file then holds the labels too, or the labels are missing.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and entry.name[0] != ".")
        alone = not any(entry.is_dir() and entry.name[0] != "." for entry in os.scandir(folder))
    except OSError:
        return {}
    known = {name.lower(): name for name in names}
    found: dict[str, Path | None] = {}
    for name in names:
        suffix = Path(name).suffix
        labels = [known[other] for other in label_names(name) if other in known] if suffix in PAIRED else []
        if labels:
            found[name] = folder / labels[0]
        elif suffix == ".pt":
            first = words_of(name)[0]
            if (first == "images" and rank(name)[0] < 2) or (first in ("res", "data") and alone):
                found[name] = None
        elif alone and holds_pair(folder / name):
            found[name] = None
    return dict(sorted(found.items(), key=lambda item: (rank(item[0]), PAIRED[0] not in item[0], item[0])))


def holds_pair(path: Path) -> bool:
    """Return whether `path` is a readable .npz or .safetensors file with arrays named as images and their labels."""
    try:
        return path.suffix in KEYED and bool(pairs_of(names_in(path)))
    except Exception:
        return False


def names_in(path: Path) -> list[str]:
    """Return the names of the arrays in a .npz or .safetensors file."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return list(arrays.files)
    with utf8_path(path) as name, safe_open(name, "pt") as file:
        return list(file.keys())


def pairs_of(names: Iterable[str]) -> dict[str, str]:
    """Find pairs among the names of arrays; return {name of an array of images: name of the array of its labels}."""
    known = {name.lower(): name for name in names if isinstance(name, str)}
    pairs = {name: [known[other] for other in label_names(name) if other in known] for name in known.values()}
    return {name: labels[0] for name, labels in pairs.items() if labels}


def recognise(path: Path | str) -> bool:
    """Return whether `path` is a file of tensors or arrays, or a folder that holds such files."""
    path = Path(path)
    try:
        if path.is_dir():
            return bool(candidates(path))
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            start = file.read(6)
    except OSError:
        return False
    if path.suffix in PICKLED:
        return start[:2] == b"PK" or start[:1] == b"\x80"
    return start == b"\x93NUMPY" if path.suffix == ".npy" else path.suffix in KEYED


def read(path: Path | str, flag: str, part: str, normalised: str) -> ImageSet:
    """Read a set of tensors or arrays.

    Args:
        path: a file, or a folder that holds the files.
        flag: command-line flag that gave the path, for error messages.
        part: `train` or `val`; used only if the names of files or arrays mention a part.
        normalised: whether mean and standard deviation have been applied to floating-point images: `yes`, `no`, or
            `auto` to infer it from their values. It has no effect on 8-bit pixels.

    Raises:
        InputError: a file is missing or damaged, or holds something other than images and their labels.
    """
    found = find(Path(path), flag, part)
    content, labels = split(load(found.images, flag, part), found.images, flag, part)
    images = as_images(content, found.images)
    if labels is None:
        if found.labels is None or not found.labels.is_file():
            wanted = found.labels.name if found.labels is not None else "the file of their labels"
            raise InputError(f"{found.images} holds images without labels; put {wanted} into the same folder")
        labels = load(found.labels, flag, part)
    targets, table, kind = as_labels(labels, found.labels or found.images, len(images))
    stored = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
    if images.is_floating_point():
        images, is_done = judged(images, normalised, found.images)
    else:
        is_done = False
    report_learning_rate(found.images)
    container = TensorImages(str(found.images), images, table)
    return ImageSet(
        str(path),
        [str(number) for number in range(table.shape[1] if table is not None else max(targets) + 1)],
        [(Member(container, number), target) for number, target in enumerate(targets)],
        named=False,
        channels=images.shape[1],
        normalised=is_done,
        layout=f"tensors {stored} in {found.images.name}, with {kind or 'classes'}",
        answers=kind,
    )


def find(path: Path, flag: str, part: str) -> Found:
    """Return the files of the set at `path`; log the choice if a folder holds several sets.

    Raises:
        InputError: the folder holds no set, or several sets of which none is preferred.
    """
    if path.is_file():
        others = label_names(path.name) if path.suffix in PAIRED else []
        try:
            known = {name.lower(): name for name in os.listdir(path.parent)}
        except OSError:
            known = {}
        labels = [known[name] for name in others if name in known] or others
        return Found(path, path.with_name(labels[0]) if labels else None)
    labels_of = candidates(path)
    if not labels_of:
        raise InputError(
            f"{flag} {path} holds no tensors of images; give a file in one of the layouts that docs/images.md lists"
        )
    names = of_part(labels_of, part, path, flag)
    chosen = names[0]
    if len(names) > 1:
        if rank(chosen) == rank(names[1]) and rank(chosen)[0] == 3:
            raise InputError(f"{flag} {path} holds several sets; give one of the files {listing(names)}")
        log.info("images  %s holds several sets (%s); %s uses %s", path, listing(names), flag, chosen)
    if labels_of[chosen] is None and label_names(chosen):
        return Found(path / chosen, path / label_names(chosen)[0])
    return Found(path / chosen, labels_of[chosen])


def load(path: Path, flag: str, part: str) -> Any:
    """Return the content of a file: tensors, `PickledArray` and numbers, perhaps nested in dicts, lists or tuples.

    From a .npz or .safetensors file, only the images and their labels are loaded.

    Raises:
        InputError: the file is missing or damaged, would run code, or is a .npz or .safetensors file whose arrays of
            images and labels cannot be identified by name.
    """
    if path.suffix in PICKLED:
        return load_archive(path, {**WEIGHT_GLOBALS, **ARRAY_GLOBALS})
    try:
        if path.suffix == ".npy":
            # map the file into memory: otherwise, numpy would allocate as much memory as a damaged header asks for
            return from_numpy(np.lib.format.open_memmap(path, mode="r"))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: from_numpy(arrays[name]) for name in chosen_pair(arrays.files, path, flag, part)}
        with utf8_path(path) as name, safe_open(name, "pt") as file:
            return {key: file.get_tensor(key) for key in chosen_pair(list(file.keys()), path, flag, part)}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing; copy it again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or clause(error)}); copy it again") from None
    except Exception as error:  # a damaged header can cause any error
        raise InputError(f"{path} is damaged or not an array of numbers ({clause(error)}); copy it again") from None


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """Copy an array of numbers into a tensor, and return the tensor; integers of more than 8 bits become int64.

    Raises:
        TypeError: the array holds something other than numbers.
    """
    if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype.kind == "f" and array.dtype.itemsize not in (2, 4, 8):
        return torch.from_numpy(array.astype(np.float64))
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def chosen_pair(names: Iterable[str], path: Path, flag: str, part: str) -> tuple[str, str]:
    """Choose the arrays of a file that hold the images and the labels; return (name of images, name of labels).

    Raises:
        InputError: no names form a pair of images and labels, or the part has no pair or several pairs.
    """
    pairs = pairs_of(names)
    if not pairs:
        wanted = ", ".join(f"{image} and {labels[0]}" for image, labels in PARTNERS.items())
        raise InputError(
            f"{path} holds {listing(names) or 'nothing'}, none named as images with labels; use the names {wanted}"
        )
    chosen = of_part(pairs, part, path, flag)
    if len(chosen) > 1:
        raise InputError(f"{path} holds several sets of images ({listing(chosen)}); keep only one of them in the file")
    return chosen[0], pairs[chosen[0]]


def split(content: Any, path: Path, flag: str, part: str) -> tuple[Any, Any]:
    """Split the content of a file into (images, labels); the labels are None if the content is a single array.

    Raises:
        InputError: the content has none of these forms: an array, a pair of images and labels, a dict with such a pair,
            or a list of such pairs.
    """
    if is_array(content):
        return content, None
    if isinstance(content, dict):
        pairs = content.get("data")
        if not isinstance(pairs, list | tuple):
            images, labels = chosen_pair([str(name) for name in content], path, flag, part)
            return content[images], content[labels]
        content = pairs
    # a list of pairs [images, labels]: DC appends one pair after each experiment, and DC-BENCH evaluates the last
    if isinstance(content, list | tuple) and content and all(isinstance(pair, list | tuple) for pair in content):
        log.info("images  %s holds the sets of %d experiments: the last is taken", path, len(content))
        content = content[-1]
    if not isinstance(content, list | tuple) or len(content) < 2 or not is_array(content[0]):
        raise InputError(
            f"{path} does not hold images with labels; give a file in one of the layouts that docs/images.md lists"
        )
    return content[0], content[1]


def is_array(value: Any) -> bool:
    """Return whether a value is a tensor or a `PickledArray`, which is a numpy array read from a pickle."""
    return isinstance(value, torch.Tensor | PickledArray)


def as_tensor(value: Any, path: Path, what: str) -> torch.Tensor:
    """Convert a tensor, a `PickledArray` or a list of class numbers, as read from a file, to a tensor of numbers.

    Raises:
        InputError: the value cannot be converted. `what` is the noun for the value in the message.
    """
    try:
        if isinstance(value, PickledArray) and value.array is not None:
            value = from_numpy(value.array)
        elif isinstance(value, list | tuple) and value and all(type(number) is int for number in value):
            value = torch.tensor(value)
    except (TypeError, RuntimeError, ValueError):
        pass  # the check below raises an InputError
    if not isinstance(value, torch.Tensor) or value.is_complex() or value.is_quantized:
        raise InputError(f"{path}: the {what} are no array of numbers; save them as a tensor")
    return value.detach()


def as_images(value: Any, path: Path) -> torch.Tensor:
    """Convert images from a file to [N, C, H, W]: uint8 if the values are integers, else float32.

    Raises:
        InputError: the shape is not that of images, or is ambiguous; an integer is not in 0 … 255; the values are
            bools; or a value is not finite.
    """
    images = as_tensor(value, path, "images")
    shape = list(images.shape)
    if images.dim() == 3:
        images = images[:, None]
    if images.dim() != 4 or not images.numel():
        raise InputError(f"{path} has the shape {shape}, not [N, C, H, W], [N, H, W, C] or [N, H, W]; reshape it")
    first, last = images.shape[1] in CHANNELS, images.shape[3] in CHANNELS
    if first == last:
        problem = "either axis could be the channels" if first else "there is no axis of 1 or 3 channels"
        raise InputError(f"{path} has the shape {shape}: {problem}; save images as [N, C, H, W] with 1 or 3 channels")
    if last:
        images = images.permute(0, 3, 1, 2)
    if images.is_floating_point():
        images = images.to(torch.float32).contiguous()
        for number, image in enumerate(images):
            if not image.isfinite().all():
                raise InputError(f"{path}: image {number} holds NaN or infinite values; distil it again, or remove it")
        return images
    is_bool = images.dtype == torch.bool
    if images.dtype != torch.uint8:
        images = images.to(torch.int64)  # PyTorch cannot compute the minimum of a uint16 tensor
    low, high = images.min().item(), images.max().item()
    if is_bool or low < 0 or high > 255:
        raise InputError(f"{path} holds integers from {low} to {high}, not from 0 to 255; save it in 8 bits")
    return images.to(torch.uint8).contiguous()


def as_labels(value: Any, path: Path, count: int) -> tuple[list[int], torch.Tensor | None, str | None]:
    """Convert a value read from a file to the labels of `count` images: classes or soft labels.

    Returns:
        (class of each image, soft labels float32 [N, C] or None, kind of the soft labels or None). The kind is
        `probabilities` if no number is negative and each row adds up to 1, else `logits`. With soft labels, an image's
        class is the index of the largest number in its row.

    Raises:
        InputError: the shape is not that of labels; the number of labels is not `count`; a class is not a whole number
            from 0 to MOST_CLASSES - 1; there are more than MOST_CLASSES classes; or a value is not finite.
    """
    labels = as_tensor(value, path, "labels")
    shape = list(labels.shape)
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() not in (1, 2) or not labels.numel():
        raise InputError(
            f"{path}: the labels have the shape {shape}, neither [N] nor [N, C]; save them as one of these"
        )
    if len(labels) != count:
        raise InputError(f"{path} holds {len(labels)} labels, but there are {count} images; copy both again")
    numbers = labels.to(torch.float64)
    if not numbers.isfinite().all():
        raise InputError(f"{path} holds NaN or infinite labels; copy it again")
    if labels.dim() == 2:
        if labels.shape[1] > MOST_CLASSES:
            raise InputError(f"{path} holds labels of {labels.shape[1]} classes; at most {MOST_CLASSES} are possible")
        sums = (numbers.sum(1) - 1).abs()
        kind = "probabilities" if numbers.min() >= 0 and sums.max() <= PROBABILITY_ERROR else "logits"
        return numbers.argmax(1).tolist(), numbers.to(torch.float32), kind
    if (numbers != numbers.round()).any() or numbers.min() < 0 or numbers.max() >= MOST_CLASSES:
        wrong = numbers[(numbers != numbers.round()) | (numbers < 0) | (numbers >= MOST_CLASSES)][0].item()
        raise InputError(f"{path} holds the label {wrong:g}, which is no class number; save whole numbers from 0 on")
    return numbers.long().tolist(), None, None


def judged(images: torch.Tensor, normalised: str, path: Path) -> tuple[torch.Tensor, bool]:
    """Decide whether images are normalised, and log the decision; return (images, whether they are normalised).

    Images that are not normalised are divided by 255 if their mean magnitude is above UNIT_MEAN.

    Args:
        images: float32 [N, C, H, W].
        normalised: `yes`, `no`, or `auto` to infer it from the values.
        path: file that holds the images, for messages.

    Raises:
        InputError: with `auto`, the values fit neither pixels, because negative values make up too large a share of the
            sum of magnitudes, nor normalised images, because the mean magnitude is too large.
    """
    low, high = images.min().item(), images.max().item()
    negative, negative_sum, magnitude = 0, 0.0, 0.0
    for image in images:  # one at a time, because temporary tensors of all images could be large
        below = image.clamp(max=0).double()
        negative += int(below.count_nonzero())
        negative_sum -= float(below.sum())
        magnitude += float(image.double().abs().sum())
    mean = magnitude / images.numel()
    share = negative_sum / magnitude if magnitude else 0.0
    facts = f"values from {low:.4g} to {high:.4g}, {100 * negative / images.numel():.0f} % of them negative"
    if normalised == "auto" and is_normalised(share) and mean > NORMALISED_MEAN:
        raise InputError(
            f"{path} has {facts}: they look neither like pixels nor like normalised images; give --normalised yes if "
            "they are normalised, no if they are pixels"
        )
    is_done = is_normalised(share) if normalised == "auto" else normalised == "yes"
    said = "" if normalised == "auto" else f" (--normalised {normalised})"
    hint = "" if said else f" (give --normalised {'no' if is_done else 'yes'} if that is wrong)"
    if is_done:
        log.info("images  %s: %s: already normalised%s%s", path, facts, said, hint)
        return images, True
    if mean > UNIT_MEAN:
        log.info("images  %s: %s: not normalised%s, and divided by 255%s", path, facts, said, hint)
        return images / 255, False
    log.info("images  %s: %s: not normalised%s%s", path, facts, said, hint)
    return images, False


def is_normalised(share: float) -> bool:
    """Return whether images have probably been normalised, or whitened by ZCA.

    The mean of normalised values is about 0, so that negative values contribute about half of the sum of all
    magnitudes. Pixels in [0, 1] that were distilled without clipping may include many negative values, for instance in
    the background of digits, but these are small. Therefore, the decision depends on the magnitudes of the negative
    values, not on their number.

    Args:
        share: sum of the magnitudes of negative values, divided by the sum of the magnitudes of all values.
    """
    return share > NEGATIVE_SHARE


def report_learning_rate(images: Path) -> None:
    """Log the learning rate that a set was distilled with, if a file such as `lr_best.pt` beside the images holds it.

    Args:
        images: file that holds the images.
    """
    name = re.sub(r"^images", "lr", images.name)
    path = next((place for place in (images.with_name(name), images.with_name(f"syn_{name}")) if place.is_file()), None)
    if path is None or path.suffix != ".pt" or name == images.name:
        return
    try:
        rate = load_archive(path, WEIGHT_GLOBALS)
    except InputError as error:
        log.info("images  the learning rate of the set is not known: %s", error)
        return
    if isinstance(rate, torch.Tensor) and rate.numel() == 1:
        rate = rate.item()
    if isinstance(rate, int | float):
        log.info(
            "images  %s: the set was distilled with a learning rate of %g; say -lr %g to train with it",
            path,
            rate,
            rate,
        )
