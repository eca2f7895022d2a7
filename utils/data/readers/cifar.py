"""Read CIFAR-10 and CIFAR-100 from the Python pickles that the authors of these sets publish.

A file is a pickle (protocol 2, written by Python 2) of a dict whose keys are bytes:

* `data`: uint8 [N, 3072]. A row is an image [3, 32, 32] (red, green, blue), flattened;
* `labels` (CIFAR-10) or `fine_labels` (CIFAR-100): class number of each of N images.

CIFAR-10 has five files of 10,000 training images. The file `batches.meta` (CIFAR-10) or `meta` (CIFAR-100) holds the
names of the classes.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.data.images import ImageSet
from utils.data.readers.pixels import log_part, set_of_pixels
from utils.system.errors import InputError, listing
from utils.system.safe_load import PickledArray, load_pickle

SIDE = 32  # width and height of every image in pixels


@dataclass(frozen=True)
class Version:
    """Names of files and keys of one of the two data sets.

    Attributes:
        name: name of the data set.
        folder: name of the folder in the published archive.
        archive: file name of the published archive.
        parts: part (`train`, `val`) -> names of its files, in order.
        meta: name of the file that names the classes.
        labels: key of the class numbers in a file of images.
        names: key of the class names in the file that `meta` names.
    """

    name: str
    folder: str
    archive: str
    parts: dict[str, tuple[str, ...]]
    meta: str
    labels: bytes
    names: bytes


VERSIONS = (
    Version(
        "CIFAR-10",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "val": ("test_batch",)},
        "batches.meta",
        b"labels",
        b"label_names",
    ),
    Version(
        "CIFAR-100",
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        {"train": ("train",), "val": ("test",)},
        "meta",
        b"fine_labels",
        b"fine_label_names",
    ),
)


def find(path: Path) -> list[tuple[Version, Path]]:
    """Return every version of CIFAR at `path`, with its folder: `path` itself or a sub-folder."""
    places = [(version, place) for version in VERSIONS for place in (path, path / version.folder)]
    return [(version, place) for version, place in places if is_version(version, place)]


def is_version(version: Version, folder: Path) -> bool:
    """Return whether a folder holds the file of class names, and at least one file of images."""
    images = [folder / name for names in version.parts.values() for name in names]
    return os.path.isfile(folder / version.meta) and any(map(os.path.isfile, images))


def packed(path: Path) -> Path | None:
    """Return the path of a CIFAR archive: `path` itself, or a file in the folder `path`; None if there is none."""
    archives = [place for version in VERSIONS for place in (path, path / version.archive)]
    known = {version.archive for version in VERSIONS}
    return next((place for place in archives if place.name in known and os.path.isfile(place)), None)


def recognise(path: Path | str) -> bool:
    """Return whether `path` is a folder of CIFAR's pickles, CIFAR's archive, or a folder that contains one of them."""
    return bool(find(Path(path))) or packed(Path(path)) is not None


def read(path: Path | str, flag: str, part: str, normalised: str) -> ImageSet:
    """Read CIFAR-10 or CIFAR-100.

    Args:
        path: the folder.
        flag: command-line flag that gave the path, for error messages.
        part: `train` or `val`; `val` is the test set.
        normalised: has no effect, because the pixels have 8 bits.

    Raises:
        InputError: a file is missing or damaged, or would run code; the archive has not been unpacked; or the folder
            holds both CIFAR-10 and CIFAR-100.
    """
    found = find(Path(path))
    if not found:
        archive = packed(Path(path))
        raise InputError(f"{flag} {path}: {archive} is packed; unpack it with tar -xzf, and give the folder")
    if len(found) > 1:
        folders = listing(str(folder) for _, folder in found)
        raise InputError(f"{flag} {path} holds CIFAR-10 and CIFAR-100; give one of the folders {folders}")
    version, folder = found[0]
    meta = load_pickle(folder / version.meta)
    names = meta.get(version.names) if isinstance(meta, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes) and name for name in names):
        raise InputError(f"{folder / version.meta} names no classes; copy it again")
    classes = [name.decode("utf-8", "surrogateescape") for name in names]
    if len(set(classes)) < len(classes):
        raise InputError(f"{folder / version.meta} names a class twice; copy it again")
    files = [read_file(folder / name, version) for name in version.parts[part]]
    pixels = np.concatenate([pixels for pixels, _ in files])
    labels = [label for _, own in files for label in own]
    if any(os.path.isfile(folder / name) for name in version.parts["val" if part == "train" else "train"]):
        log_part(str(folder), flag, part)
    return set_of_pixels(str(folder), pixels, labels, classes, f"{version.name} in Python pickles", named=True)


def read_file(path: Path, version: Version) -> tuple[np.ndarray, list[int]]:
    """Read one file of images.

    Returns:
        (pixels uint8 [N, 32, 32, 3], class number of each of N images).

    Raises:
        InputError: the file is missing or damaged, or its images do not have 32 x 32 pixels.
    """
    content = load_pickle(path)
    data = content.get(b"data") if isinstance(content, dict) else None
    labels = content.get(version.labels) if isinstance(content, dict) else None
    if not isinstance(data, PickledArray) or data.array is None or not isinstance(labels, list):
        raise InputError(f"{path} does not hold images and labels of {version.name}; copy it again")
    if data.array.dtype != np.uint8 or data.array.shape != (len(labels), 3 * SIDE * SIDE):
        raise InputError(
            f"{path} does not hold images of {SIDE} x {SIDE} pixels, one for each of {len(labels)} labels; copy it "
            "again"
        )
    return data.array.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels
