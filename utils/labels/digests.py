"""Digests of label files and of the images that labels belong to.

Two images are the same if their files or their pixels are equal: a rewritten PNG has other bytes but the same pixels,
and a JPEG has other pixels but the same bytes if another library decodes it.

`images.safetensors`, in a packed folder or beside the epochs of tar labels, holds two digests (8-byte blake2b) of each
of N images, in the order of their numbers. `pixel_digests` u8 [N, 8] cover `WIDTHxHEIGHT` and the decoded RGB bytes
(rows first); `file_digests` u8 [N, 8] cover the file. Beside tar labels, the metadata of `images.safetensors` has the
entry `settings`, JSON: the settings that a packed manifest states (`input_size`, `mean`, `std`, `classes` and the
teachers).
"""

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from utils.labels.packed_tensors import read_tensors
from utils.system.errors import InputError
from utils.system.files import atomic_file, digest_of, digest_of_text, utf8_path

NEW = "v2:"  # prefix of digests that cover all files; older digests cover the first file and have no prefix
TAIL = 4096  # bytes read from the end of a file; in most files they hold the whole zip directory
END = struct.Struct("<4s8xIIH")  # last record of a zip file: magic, directory size and offset, comment size
ENTRY = struct.Struct("<4s12xIIIHHH12x")  # directory entry: magic, CRC-32, packed size, size, 3 trailing lengths
AHEAD = 4096  # each thread takes AHEAD / THREADS files at a time
THREADS = 8  # more than cores, because the files may be on a network disk


def digest_of_labels(folder: Path, names: Iterable[str], *stated: str) -> str:
    """Return one digest of a label set's files, its image digests and the further texts `stated`."""
    images = digest_of(folder / IMAGES) if (folder / IMAGES).exists() else ""
    return NEW + digest_of_text("\n".join([digest_of_files(folder, names), images, *stated]))


def digest_of_files(folder: Path, names: Iterable[str]) -> str:
    """Return one digest of the names and the `digest_of_archive` of the files of a folder.

    Args:
        folder: the folder.
        names: paths relative to the folder, in order.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    digest, left = hashlib.blake2b(digest_size=16), iter(names)

    def lines(some: list[str]) -> bytes:
        return b"".join(f"{name} {digest_of_archive(folder / name)}\n".encode() for name in some)

    def parts() -> Iterator[list[str]]:
        while some := list(islice(left, AHEAD // THREADS)):
            yield some

    with ThreadPoolExecutor(THREADS) as pool:
        for part in pool.map(lines, parts()):
            digest.update(part)
    return digest.hexdigest()


def digest_of_archive(path: Path) -> str:
    """Return a digest of a `torch.save` file: of its zip directory if that has checksums, else of the whole file.

    The directory holds name, size and CRC-32 of every record; the reader checks the CRC-32. PyTorch may be told not to
    compute CRC-32 (the entries are 0), and files from before PyTorch 1.6 have no directory.
    """
    try:
        directory = read_directory(path)
    except OSError as error:
        raise unreadable(path, error) from None
    if directory is None or not states_checksums(directory):
        return digest_of_file(path)
    return hashlib.blake2b(directory, digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the digest of a whole label file.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    try:
        return digest_of(path)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the InputError for a label file that cannot be read."""
    return InputError(f"{path} cannot be read ({error.strerror}); copy the labels again")


def read_directory(path: Path) -> bytes | None:
    """Read the central directory of a zip file; return None if none is found."""
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        start = max(size - TAIL, 0)
        tail = os.pread(handle, TAIL, start)
        if len(tail) < END.size:
            return None
        mark, length, first, comment = END.unpack_from(tail, len(tail) - END.size)
        if mark != b"PK\5\6" or comment or first + length > size - END.size:
            return None
        if first >= start:
            return tail[first - start : first - start + length]
        return os.pread(handle, length, first)
    finally:
        os.close(handle)


def states_checksums(directory: bytes) -> bool:
    """Return whether a zip directory is sound and states a CRC-32 for every record that is not empty."""
    place = 0
    while place + ENTRY.size <= len(directory):
        mark, crc, _, size, *lengths = ENTRY.unpack_from(directory, place)
        if mark != b"PK\1\2" or (size and not crc):
            return False
        place += ENTRY.size + sum(lengths)
    return place == len(directory) > 0


IMAGES = "images.safetensors"
DIGEST_BYTES = 8
NAMES = "pixel_digests", "file_digests"


@dataclass(frozen=True)
class ImageDigests:
    """Digests of N images.

    Attributes:
        pixels: uint8 [N, 8], of the decoded pixels.
        files: uint8 [N, 8], of the files.
    """

    pixels: torch.Tensor
    files: torch.Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return both tensors by the names under which they are stored."""
        return dict(zip(NAMES, (self.pixels.contiguous(), self.files.contiguous()), strict=True))

    def rows(self, places: Sequence[int]) -> "ImageDigests":
        """Return the digests of the images at `places`."""
        return ImageDigests(self.pixels[list(places)], self.files[list(places)])

    def same(self, other: "ImageDigests") -> np.ndarray:
        """Compare with N others, image by image: return bool [N], True if the files or the pixels are equal."""
        return ((self.pixels == other.pixels).all(dim=1) | (self.files == other.files).all(dim=1)).numpy()

    def digest(self) -> str:
        """Return one digest of all pixels in order, which identifies the image set independently of its path."""
        return digest_of_text(self.pixels.numpy().tobytes().hex())


def read_image_digests(
    folder: Path, num_images: int | None = None, beside: Collection[str] = ()
) -> ImageDigests | None:
    """Read the image digests in a label folder; return None if it has no such file (labels of other projects).

    Args:
        folder: the label folder.
        num_images: N, the number of images that its labels refer to.
        beside: names of the other tensors in the file.

    Raises:
        InputError: the file is damaged, holds other tensors, or digests of another number of images.
    """
    path = folder / IMAGES
    if not path.exists():
        return None
    tensors = read_tensors(path, {*NAMES, *beside})
    digests = ImageDigests(*(tensors[name] for name in NAMES))
    shape = (*(digests.pixels.shape[:1] if num_images is None else [num_images]), DIGEST_BYTES)
    if any(tensor.dtype != torch.uint8 or tensor.shape != shape for tensor in digests.tensors().values()):
        count = "images" if num_images is None else f"{num_images} images, to which its labels refer"
        raise InputError(f"{path} does not hold the digests of {count}; copy the labels again")
    return digests


def write_image_digests(folder: Path, digests: ImageDigests, settings: dict[str, Any] | None = None) -> None:
    """Write image digests and, as JSON, the settings of relabelling into one file of a label folder, atomically."""
    metadata = {"settings": json.dumps(settings)} if settings else None
    with atomic_file(folder / IMAGES) as temporary:
        save_file(digests.tensors(), temporary, metadata)


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings that `write_image_digests` left beside tar labels: `input_size`, `mean`, `classes` and so on.

    Returns:
        the settings; empty for labels of other projects.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / IMAGES
    if not path.exists():
        return {}
    try:
        with utf8_path(path) as name, safe_open(name, "pt") as file:
            settings = json.loads((file.metadata() or {}).get("settings", "{}"))
        sound = (
            isinstance(settings, dict)
            and type(settings.get("input_size", 1)) is int
            and all(
                isinstance(settings.get(name, [0.5] * 3), list)
                and len(settings.get(name, [0.5] * 3)) == 3
                and all(isinstance(value, int | float) for value in settings.get(name, [0.5] * 3))
                for name in ("mean", "std")
            )
            and isinstance(settings.get("classes", []), list)
            and all(isinstance(name, str) for name in settings.get("classes", []))
        )
        if not sound:
            raise ValueError("it states impossible settings")
    except (OSError, SafetensorError, RuntimeError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged or not readable ({error}); copy the labels again") from None
    return settings


def find_differences(stored: ImageDigests, found: ImageDigests, names: Sequence[str], of: str = "labels") -> str | None:
    """Compare the images of labels, or the images at the start of a run, with the images of a folder.

    Args:
        stored: digests of the labels' or the run's images.
        found: digests of the folder's images.
        names: path of each of the folder's images, relative to it.
        of: `labels` or `run`: the owner of the stored digests, for the message.

    Returns:
        None if all are the same; else a clause that says how they differ, for the middle of a sentence.
    """
    if len(stored) == len(found) and stored.same(found).all():
        return None
    places: dict[bytes, int] = {}
    for digests in (found.files, found.pixels):
        places |= {row.tobytes(): place for place, row in reversed(list(enumerate(digests.numpy())))}
    pairs = list(zip(stored.files.numpy(), stored.pixels.numpy(), strict=True))
    # for each stored image its place in the folder, or None
    now = [places.get(file.tobytes(), places.get(pixels.tobytes())) for file, pixels in pairs]
    gone = [number for number, place in enumerate(now) if place is None]
    began, owners = {
        "labels": ("the labels were made for", "the labels'"),
        "run": ("the run began with", "the run's"),
    }[of]
    if len(gone) == len(stored):
        return f"none of its images is one of those that {began}"
    equal = stored.rows(range(min(len(stored), len(found)))).same(found.rows(range(min(len(stored), len(found)))))
    moved = [n for n, place in enumerate(now) if place is not None and not (n < len(equal) and equal[n])]
    clauses = []
    if len(stored) != len(found):
        clauses.append(f"it holds {len(found)} images and {began} {len(stored)}")
    if gone:
        first = f", image {gone[0]} first" if len(gone) > 1 else f" (image {gone[0]})"
        clauses.append(f"{len(gone)} of {owners} {len(stored)} images are not in it{first}")
    if moved:
        number = moved[0]
        clauses.append(
            f"{len(moved)} images have another number: image {number} of the {of} is now image {now[number]}, "
            f"{names[now[number] or 0]}"
        )
    if not clauses:  # all stored images are there, but some of them twice
        most, times = Counter(place for place in now if place is not None).most_common(1)[0]
        clauses.append(f"{names[most]} stands for {times} of {owners} images")
    return " and ".join(clauses)
