"""Compute and compare digests of label files, and of the images from which labels were made.

Two images count as the same if their files are equal or if their decoded pixels are equal. A PNG that was written again
has the same pixels, but other bytes. A JPEG that another library decodes has the same bytes, but other pixels.

The digests of the images are in the file `images.safetensors` in the folder of the labels. It holds two digests (8-byte
blake2b) of each of N images, in the order of the image numbers:

* `pixel_digests`, uint8 [N, 8]: digests of the text `WIDTHxHEIGHT` followed by the decoded RGB bytes, row by row.
* `file_digests`, uint8 [N, 8]: digests of the bytes of the image files.

Packed labels state the settings of relabelling (`input_size`, `mean`, `std`, `classes` and the teachers) in a manifest.
Unpacked labels have no manifest, so their `images.safetensors` has these settings as JSON in the metadata entry
`settings`.
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

from utils.config import NEW_LABEL_DIGEST
from utils.labels.packed_tensors import read_tensors
from utils.system.errors import InputError
from utils.system.files import atomic_file, digest_of, digest_of_text, utf8_path

# number of bytes that are read from the end of a zip file; in most files they hold the whole central directory
TAIL = 4096
# last record of a zip file: signature, size and offset of the central directory, length of the comment
END = struct.Struct("<4s8xIIH")
# entry of the central directory: signature, CRC-32, packed size, size, lengths of the three fields that follow
ENTRY = struct.Struct("<4s12xIIIHHH12x")
# number of label files that are read at a time; each of the THREADS threads takes an equal part
AHEAD = 4096
# number of threads that read label files; useful even with fewer cores, because a network disk makes threads wait
THREADS = 8


def digest_of_labels(folder: Path, names: Iterable[str], *stated: str) -> str:
    """Return one digest of a label set. It also covers the image digests if the folder holds any.

    Args:
        folder: folder of the labels.
        names: paths of the label files whose content the digest covers, relative to the folder.
        *stated: further texts that the digest covers, for example the manifest.

    Raises:
        InputError: a file is missing or cannot be read.
    """
    images = digest_of(folder / IMAGES) if (folder / IMAGES).exists() else ""
    return NEW_LABEL_DIGEST + digest_of_text("\n".join([digest_of_files(folder, names), images, *stated]))


def digest_of_files(folder: Path, names: Iterable[str]) -> str:
    """Return one digest of the names and the contents of label files.

    The content of each file is represented by its `digest_of_archive`.

    Args:
        folder: folder of the files.
        names: paths of the files relative to the folder. The order affects the digest.

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
    """Return a digest of a label file that was written by `torch.save`.

    Such a file is a zip file. Its central directory holds the name, size and CRC-32 of every record. To save time, only
    the directory is digested. `load_archive` later checks the records against their CRC-32. If the file has no
    directory or no CRC-32, the whole file is digested.

    Raises:
        InputError: the file is missing or cannot be read.
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
    """Return the InputError to raise if a label file cannot be read."""
    return InputError(f"{path} cannot be read ({error.strerror}); copy the labels again")


def read_directory(path: Path) -> bytes | None:
    """Read the central directory of a zip file. Return its bytes, or None if the file has no readable directory."""
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
    """Return whether the central directory of a zip file is intact and has a CRC-32 for every record with content."""
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
        pixels: uint8 [N, 8], digest of the decoded pixels of each image.
        files: uint8 [N, 8], digest of the file of each image.
    """

    pixels: torch.Tensor
    files: torch.Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return both tensors of digests as {name: tensor}, with the names that `images.safetensors` uses."""
        return dict(zip(NAMES, (self.pixels.contiguous(), self.files.contiguous()), strict=True))

    def rows(self, places: Sequence[int]) -> "ImageDigests":
        """Return the digests of some images. `places` lists the image numbers, and the result has the same order."""
        return ImageDigests(self.pixels[list(places)], self.files[list(places)])

    def same(self, other: "ImageDigests") -> np.ndarray:
        """Compare each image with the image of the same number in `other`, which also has N images.

        Returns:
            bool [N], True if the files or the pixels of the two images are equal.
        """
        return ((self.pixels == other.pixels).all(dim=1) | (self.files == other.files).all(dim=1)).numpy()

    def digest(self) -> str:
        """Return one digest of the pixels of all images, in order. It does not depend on paths or file formats."""
        return digest_of_text(self.pixels.numpy().tobytes().hex())


def read_image_digests(
    folder: Path, num_images: int | None = None, beside: Collection[str] = ()
) -> ImageDigests | None:
    """Read the digests of the images from a label folder.

    Args:
        folder: the label folder.
        num_images: N, the number of images that the labels refer to. None: any number is accepted.
        beside: names of further tensors that the file must hold.

    Returns:
        the digests; None if the folder has no file of digests, as in labels of other projects.

    Raises:
        InputError: the file is damaged, lacks a tensor, has an unexpected tensor, or holds digests of more or fewer
            than N images.
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
    """Write the digests of the images to a file in a label folder, atomically.

    Args:
        folder: the label folder.
        digests: the digests.
        settings: settings of relabelling, which are written to the same file as JSON. None or empty: no settings.
    """
    metadata = {"settings": json.dumps(settings)} if settings else None
    with atomic_file(folder / IMAGES) as temporary:
        save_file(digests.tensors(), temporary, metadata)


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of relabelling that `write_image_digests` wrote: `input_size`, `mean`, `classes` and so on.

    Returns:
        the settings by name; empty if the folder states none, as in labels of other projects.

    Raises:
        InputError: the file is damaged, or a setting has an impossible value.
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
    """Compare stored image digests with the digests of the images that are in a folder now.

    Args:
        stored: digests stored by labels or by a run.
        found: digests of the images in the folder.
        names: path of each image in the folder, relative to the folder.
        of: owner of the stored digests, `labels` or `run`. The returned text names the owner.

    Returns:
        None if all images are the same; otherwise a text that says how they differ. The text is part of a sentence
        about the folder, for example "it holds 9 images and the labels were made for 10".
    """
    if len(stored) == len(found) and stored.same(found).all():
        return None
    both = range(min(len(stored), len(found)))
    kept = {number for number, same in enumerate(stored.rows(both).same(found.rows(both))) if same}
    # if the folder holds an image twice, a moved image is the copy that is not at its own number
    order = sorted(range(len(found)), key=lambda place: (place not in kept, -place))
    places: dict[bytes, int] = {}
    for digests in (found.files.numpy(), found.pixels.numpy()):
        places |= {digests[place].tobytes(): place for place in order}
    pairs = list(zip(stored.files.numpy(), stored.pixels.numpy(), strict=True))
    # for each stored image, its number in the folder now; None if it is not there
    now = [places.get(file.tobytes(), places.get(pixels.tobytes())) for file, pixels in pairs]
    gone = [number for number, place in enumerate(now) if place is None]
    began, owners = {
        "labels": ("the labels were made for", "the labels'"),
        "run": ("the run began with", "the run's"),
    }[of]
    if len(gone) == len(stored):
        return f"none of its images is one of those that {began}"
    moved = [n for n, place in enumerate(now) if place is not None and n not in kept and place not in kept]
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
    # no stored image is missing, but several stored images are equal to the same image of the folder
    if not clauses:
        most, times = Counter(place for place in now if place is not None).most_common(1)[0]
        clauses.append(f"{names[most]} stands for {times} of {owners} images")
    return " and ".join(clauses)
