"""Read webdataset shards: tar archives in which the files of a sample share the name up to the first full stop.

    n01440764_18.jpg     the image: jpg, jpeg, png or webp
    n01440764_18.cls     the class: a number, or a name; or:
    n01440764_18.json    an object with the class at `label`, `class`, `cls` or `class_id`

A tar archive consists of blocks of 512 bytes. A file has a header block, then its content, padded with zeros to whole
blocks. Two blocks of zeros end the archive. All headers are read once, to find the offset of each image. To read an
image, the archive is opened anew, so that processes share no open file.

Python's `tarfile` is not used, because it takes damage in the middle of an archive for the end of the archive.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.data.images import Container, ImageSet
from utils.data.readers.labels import labelled_set
from utils.data.readers.parts import files_with, of_part
from utils.system.errors import InputError, clause, listing, one_line, shorten

BLOCK = 512
IMAGES = ("jpg", "jpeg", "png", "webp")  # suffixes of image files
LABELS = ("cls", "cls.txt", "json")  # suffixes of files that hold the class; the first one that a sample has is used
KEYS = ("label", "class", "cls", "class_id")  # keys of the class in a JSON object; the first one present is used
MOST_LABEL_BYTES = 2**20  # maximum size of a file that holds a class, and of a pax header
MOST_NAME_BYTES = 4096
WITHOUT_CONTENT = b"123456"  # types of tar entries without content: links, devices, folders and pipes
TORCH = (b"PK\x03\x04", b"\x80\x02")  # first bytes of files that `torch.save` wrote


@dataclass
class Sample:
    """The files of one sample.

    Attributes:
        name: folder in the archive and name that the files share, as one printable line.
        images: suffix of each image -> (offset of its content in the archive, number of bytes).
        labels: suffix of each file that may hold the class -> its content.
    """

    name: str
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)


class Shards(Container):
    """Images in tar archives.

    Args:
        path: the archive, or the folder of the archives, for error messages.
        files: paths of the archives.
        names: name of each image in its archive.
        places: int64 [N, 3]; for each image the index of its archive, then offset and length of its content in bytes.
    """

    def __init__(self, path: str, files: list[str], names: list[str], places: np.ndarray):
        self.path, self.files, self.names, self.places = path, files, names, places

    def name(self, number: int) -> str:
        """Return `ARCHIVE/NAME`: the archive's name without suffix, and the image's name in the archive."""
        return f"{Path(self.files[self.places[number, 0]]).stem}/{self.names[number]}"

    def read(self, number: int) -> bytes:
        """Return the bytes of the image file."""
        shard, place, length = self.places[number].tolist()
        with open(self.files[shard], "rb") as file:
            content = os.pread(file.fileno(), length, place)
        if len(content) < length:
            raise OSError(f"{self.files[shard]} ends early")
        return content

    def num_bytes(self, number: int) -> int:
        """Return the number of bytes of the image file."""
        return int(self.places[number, 2])


def recognise(path: Path | str) -> bool:
    """Return whether `path` is a tar archive, a folder of archives, or a folder of soft labels (refused by `read`)."""
    path = Path(path)
    if path.is_file():
        return path.suffix == ".tar"
    return bool(files_with(path, ".tar")) or (path / "epoch_0" / "batch_0.tar").is_file()


def read(path: Path | str, flag: str, part: str, normalised: str) -> ImageSet:
    """Read webdataset shards.

    Args:
        path: an archive, or the folder that holds the archives.
        flag: command-line flag that gave the path, for error messages.
        part: `train` or `val`; used only if the names of the archives mention a part.
        normalised: has no effect, because the images have 8 bits.

    Raises:
        InputError: an archive is damaged; a sample has no image, several images or no class; or the folder holds soft
            labels instead of images.
    """
    path = Path(path)
    if path.is_file():
        files = [str(path)]
    else:
        files = [str(path / name) for name in of_part(files_with(path, ".tar"), part, path, flag)]
    if not files:
        raise InputError(f"{flag} {path} holds soft labels, not images; give the folder of the images")
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    labels: list[int | str] = []
    for shard, file in enumerate(files):
        for sample in samples_of(file):
            suffix = only_image(sample, file)
            names.append(f"{sample.name}.{suffix}")
            places.append((shard, *sample.images[suffix]))
            labels.append(label_of(sample, file))
    if not names:
        raise InputError(f"{flag} {path} holds no images ({', '.join(IMAGES)}); copy it again")
    container = Shards(str(path), files, names, np.array(places, np.int64))
    return labelled_set(container, labels, f"{len(files)} webdataset shard{'s' if len(files) > 1 else ''}")


def samples_of(path: str) -> list[Sample]:
    """Return the samples of an archive, in the order of their first files.

    Raises:
        InputError: the archive cannot be read, is damaged, or holds a file twice.
    """
    found: dict[str, Sample] = {}
    try:
        with open(path, "rb") as file:
            if os.pread(file.fileno(), 4, 0).startswith(TORCH):
                raise ValueError("it was written by torch.save; soft labels belong to --fkd-path")
            for name, place, length in members(file):
                folder, _, base = name.removeprefix("./").rpartition("/")
                stem, _, suffix = base.partition(".")
                if not stem or not suffix or stem.startswith("__"):
                    continue  # a hidden file, a file without suffix, or `__NAME`, which describes the shard
                key, suffix = os.path.join(folder, stem), suffix.lower()
                is_image = suffix.rpartition(".")[2] in IMAGES
                if not is_image and suffix not in LABELS:
                    continue
                sample = found.setdefault(key, Sample(one_line(key)))
                if suffix in sample.images or suffix in sample.labels:
                    raise ValueError(f"it holds {shorten(base, 60)} twice")
                if is_image:
                    sample.images[suffix] = place, length
                elif length > MOST_LABEL_BYTES:
                    raise ValueError(f"{shorten(base, 60)} is too long for a class")
                else:
                    sample.labels[suffix] = os.pread(file.fileno(), length, place)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it readable") from None
    except ValueError as error:
        raise InputError(f"{path} is no archive of images ({clause(error)}); copy it again") from None
    return [sample for sample in found.values() if sample.images or sample.labels]


def members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset of the content, number of bytes) of every regular file in a tar archive.

    A name of more than 100 bytes is read from POSIX's field `prefix`, from a GNU entry of type `L`, or from a pax
    header.

    Raises:
        ValueError: the archive is damaged, or holds sparse files, which are not supported.
    """
    handle, end = file.fileno(), os.fstat(file.fileno()).st_size
    place, long_name, long_size = 0, None, None
    while (header := header_at(handle, place)) is not None:
        length, kind = number_in(header[124:136]), header[156:157]
        place += BLOCK
        if kind in WITHOUT_CONTENT:
            length = 0
        elif long_size is not None and kind not in b"gxKL":
            length = long_size
        if place + length > end:
            raise ValueError("it is cut off in the middle of a file")
        if kind == b"L":
            long_name = os.pread(handle, min(length, MOST_NAME_BYTES), place).partition(b"\0")[0]
        elif kind == b"x":
            record = pax_record(os.pread(handle, min(length, MOST_LABEL_BYTES), place))
            long_name, long_size = record.get(b"path", long_name), as_size(record.get(b"size"))
        elif kind == b"S":
            raise ValueError("it holds sparse files")
        elif kind not in b"gK":
            if kind in b"0\x007":
                name = name_in(header) if long_name is None else long_name
                yield os.fsdecode(name[:MOST_NAME_BYTES]), place, length
            long_name, long_size = None, None
        place += -(-length // BLOCK) * BLOCK


def header_at(handle: int, place: int) -> bytes | None:
    """Return the header block at the offset `place` of an open archive; None if a block of zeros marks the end there.

    Raises:
        ValueError: the archive ends without a block of zeros, or the header's checksum is wrong.
    """
    header = os.pread(handle, BLOCK, place)
    if len(header) < BLOCK:
        raise ValueError("it is cut off: the blocks of zeros at its end are missing")
    if header == bytes(BLOCK):
        return None
    # the checksum is the sum of the header's bytes, in which the 8 bytes of the checksum itself count as spaces
    if number_in(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        raise ValueError(f"its header at byte {place} is damaged")
    return header


def name_in(header: bytes) -> bytes:
    """Return the file name in a header block. If the name is split (POSIX), join the field `prefix` and the name."""
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def number_in(value: bytes) -> int:
    """Return the value of a number field of a tar header: octal digits, or binary after a byte 0x80 (GNU).

    Raises:
        ValueError: the field is in neither format, or the number is negative.
    """
    if value[0] == 0x80:
        return int.from_bytes(value[1:], "big")
    digits = value.partition(b"\0")[0].strip()
    if not re.fullmatch(rb"[0-7]*", digits):
        raise ValueError("a number in its headers is damaged")
    return int(digits or b"0", 8)


def as_size(value: bytes | None) -> int | None:
    """Convert a size in a pax header to an int; return None for None. Raise ValueError if it is no whole number."""
    if value is not None and not re.fullmatch(rb"\d{1,18}", value):
        raise ValueError("a size in its headers is damaged")
    return None if value is None else int(value)


def pax_record(content: bytes) -> dict[bytes, bytes]:
    """Return the entries {key: value} of a pax header, whose lines are `LENGTH KEY=VALUE`.

    Raises:
        ValueError: the header is damaged.
    """
    entries = {}
    while content:
        length, _, rest = content.partition(b" ")
        if not re.fullmatch(rb"\d{1,9}", length) or not len(length) + 3 <= int(length) <= len(content):
            raise ValueError("a pax header is damaged")
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        entries[key] = value
        content = content[int(length) :]
    return entries


def only_image(sample: Sample, path: str) -> str:
    """Return the suffix of the only image of a sample.

    A suffix such as `mask.png` counts only if the sample has no plain suffix such as `png`.

    Raises:
        InputError: the sample has no image, or several.
    """
    plain = [suffix for suffix in sample.images if suffix in IMAGES] or list(sample.images)
    if len(plain) != 1:
        problem = f"several images ({listing(plain)})" if plain else f"no image ({', '.join(IMAGES)})"
        raise InputError(
            f"{path}: the sample {shorten(sample.name, 100)} has {problem}; write the shard again with exactly one "
            "image per sample"
        )
    return plain[0]


def label_of(sample: Sample, path: str) -> int | str:
    """Return the class of a sample, as a number or a name.

    Raises:
        InputError: the sample has no class, or one that cannot be read.
    """
    suffix = next((suffix for suffix in LABELS if suffix in sample.labels), None)
    label: object = None
    try:
        if suffix == "json":
            fields = json.loads(sample.labels[suffix])
            label = next((fields[key] for key in KEYS if key in fields), None) if isinstance(fields, dict) else None
        elif suffix is not None:
            text = sample.labels[suffix].decode("utf-8").strip()
            label = int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else text
    except (ValueError, RecursionError):
        pass  # the check below raises an InputError
    if type(label) is not int and (not isinstance(label, str) or not label):
        raise InputError(
            f"{path}: the sample {shorten(sample.name, 100)} has no class; write the shard anew with a .cls file, or "
            f"with a .json file that has one of the keys {', '.join(KEYS)}"
        )
    return label
