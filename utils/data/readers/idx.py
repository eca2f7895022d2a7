"""Read sets in the idx format of MNIST: MNIST, FashionMNIST, KMNIST and others, plain or gzipped.

An idx file begins with two zero bytes, a byte for the type of its values (8: uint8) and a byte for the number D of its
dimensions. D sizes follow (uint32, big-endian), then the values in row-major order. Each part of a set (train, test)
has a file of images [N, H, W] and a file of labels [N]. Classes have numbers, but no names.
"""

import gzip
import os
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.data.images import ImageSet
from utils.data.readers.pixels import log_part, set_of_pixels
from utils.system.errors import InputError, clause, listing

PARTS = {"train": "train", "val": "t10k"}  # part of a set -> word with which its file names begin
# names of image files, such as `train-images-idx3-ubyte`; some copies have a full stop in place of the second hyphen
IMAGES = re.compile(r"(?P<part>train|t10k)-images[-.]idx3-ubyte(\.gz)?")
UINT8 = 8  # type code of uint8 values, the only type that is read
BLOCK = 2**20  # number of bytes that are read at a time
LARGEST_RATIO = 1100  # upper bound of gzip's compression ratio


def files_of_parts(folder: Path) -> dict[str, Path]:
    """Return {`train` or `t10k`: path of the image file of this part}; prefer a plain file to a gzipped one."""
    try:
        names = sorted(os.listdir(folder))  # in this order, a plain file comes before its `.gz`
    except OSError:
        return {}
    found: dict[str, Path] = {}
    for name in names:
        match = IMAGES.fullmatch(name)
        if match and os.path.isfile(folder / name):
            found.setdefault(match["part"], folder / name)
    return found


def find(path: Path) -> list[Path]:
    """Return the folders with idx files: `path` itself, or its sub-folder `raw`, or else each sub-folder `NAME/raw`."""
    for folder in (path, path / "raw"):
        if files_of_parts(folder):
            return [folder]
    try:
        return sorted(raw for raw in path.glob("*/raw") if files_of_parts(raw))
    except OSError:
        return []


def recognise(path: Path | str) -> bool:
    """Return whether `path` is an idx file of images, a folder with such files, or a parent folder, see `find`."""
    path = Path(path)
    return IMAGES.fullmatch(path.name) is not None if os.path.isfile(path) else bool(find(path))


def read(path: Path | str, flag: str, part: str, normalised: str) -> ImageSet:
    """Read a set in idx files.

    Args:
        path: the folder, or the image file of one part.
        flag: command-line flag that gave the path, for error messages.
        part: `train`, or `val` for the test set; it has no effect if `path` is a file.
        normalised: has no effect, because the pixels have 8 bits.

    Raises:
        InputError: a file is missing or damaged, or the folder holds several sets.
    """
    path = Path(path)
    if path.is_file():
        images = path
    else:
        found = find(path)
        if len(found) > 1:
            raise InputError(f"{flag} {path} holds several sets; give one of the folders {listing(found)}")
        files = files_of_parts(found[0])
        if PARTS[part] not in files:
            raise InputError(
                f"{flag} {path} holds no {PARTS[part]}-images-idx3-ubyte, plain or with .gz, for the {part} part; copy "
                "it there"
            )
        images = files[PARTS[part]]
        if len(files) > 1:
            log_part(str(found[0]), flag, part)
    stem = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    labels = next((file for name in (stem, f"{stem}.gz") if (file := images.with_name(name)).is_file()), None)
    if labels is None:
        raise InputError(f"{images} has no labels; copy {stem} or {stem}.gz beside it")
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1).tolist()
    if not min(pixels.shape):
        raise InputError(f"{images} holds no images; copy it again")
    classes = [str(number) for number in range(max(numbers, default=-1) + 1)]
    return set_of_pixels(str(images), pixels, numbers, classes, "idx files (MNIST's format)", named=False)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read an idx file, plain or gzipped; return its values as a uint8 array with `dimensions` dimensions.

    Raises:
        InputError: the file cannot be read, or is damaged.
    """
    try:
        size = path.stat().st_size
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            values, shape = read_values(file, dimensions, size * (LARGEST_RATIO if path.suffix == ".gz" else 1))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or clause(error)}); copy it again") from None
    except (ValueError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged ({clause(error)}); copy it again") from None
    return np.frombuffer(values, np.uint8).reshape(shape)


def read_values(file: BinaryIO | gzip.GzipFile, dimensions: int, at_most: int) -> tuple[bytes, tuple[int, ...]]:
    """Read an open idx file.

    Args:
        file: the open file; reading it returns decompressed bytes, even if the file on disk is gzipped.
        dimensions: number of dimensions that the file must have.
        at_most: upper bound of the number of values, computed from the file size; a header that states a larger number
            is damaged.

    Returns:
        (values, shape).

    Raises:
        ValueError: the file is damaged.
    """
    header = file.read(4 + 4 * dimensions)
    if len(header) < 4 + 4 * dimensions or header[:3] != bytes([0, 0, UINT8]) or header[3] != dimensions:
        raise ValueError(f"it does not begin like an idx file of bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    count = 1
    for number in shape:
        count *= number
    if count > at_most:
        raise ValueError(f"its header states {count} values, more than a file of this size can hold")
    blocks, left = [], count + 1  # try to read one byte more, to detect bytes after the last value
    while left and (block := file.read(min(BLOCK, left))):
        blocks.append(block)
        left -= len(block)
    if left != 1:
        raise ValueError(f"it has {'more' if not left else 'fewer'} than the {count} values that its header states")
    return b"".join(blocks), shape
