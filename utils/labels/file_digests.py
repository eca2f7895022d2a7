"""Fast digests of many label files: only the directory of each zip file is read, which states every CRC-32."""

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from utils.labels.image_digests import IMAGES
from utils.system.errors import InputError
from utils.system.files import digest_of, digest_of_text

NEW = "v2:"  # prefix of digests of all files that a run needs; earlier digests (first file only) have none
TAIL = 4096  # bytes at the end of a file that hold the whole directory of most
END = struct.Struct("<4s8xIIH")  # the last record of a zip: mark, bytes and start of the directory, bytes of a comment
ENTRY = struct.Struct("<4s12xIIIHHH12x")  # of the directory: mark, CRC-32, packed bytes, bytes, lengths that follow
AHEAD = 4096  # files queued at a time
THREADS = 8  # more than cores, because the files may be on a network disk


def digest_of_labels(folder: Path, names: Iterable[str], *stated: str) -> str:
    """Return the digest of a label set: of its files, of the digests of its images, and of further text `stated`."""
    images = digest_of(folder / IMAGES) if (folder / IMAGES).exists() else ""
    return NEW + digest_of_text("\n".join([digest_of_files(folder, names), images, *stated]))


def digest_of_files(folder: Path, names: Iterable[str]) -> str:
    """Return one digest of the files of a folder: of their names and of what `digest_of_archive` says of each.

    Args:
        folder: the folder.
        names: paths relative to it, in order.

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
    """Return a digest of a `torch.save` file: of its directory, or of the whole file if that is not enough.

    The directory holds name, size and CRC-32 of every record, which the reader checks. It is not enough if
    PyTorch was told not to compute them (they are 0); files from before PyTorch 1.6 have no directory.
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
        InputError: it is missing or cannot be read.
    """
    try:
        return digest_of(path)
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> InputError:
    """Return the error of a label file that cannot be read."""
    return InputError(f"{path} cannot be read ({error.strerror}); copy the labels again")


def read_directory(path: Path) -> bytes | None:
    """Read the directory of a zip file; None if it is not found."""
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
    """Return whether every record of a directory that holds bytes has a CRC-32."""
    place = 0
    while place + ENTRY.size <= len(directory):
        mark, crc, _, size, *lengths = ENTRY.unpack_from(directory, place)
        if mark != b"PK\1\2" or (size and not crc):
            return False
        place += ENTRY.size + sum(lengths)
    return place == len(directory) > 0
