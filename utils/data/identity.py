"""Compute digests of the images in a folder, which identify the images even if files are renamed."""

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from utils.data.folders import Samples, load_rgb
from utils.labels.digests import DIGEST_BYTES, ImageDigests, find_differences
from utils.system.distributed import ALONE, World
from utils.system.errors import InputError
from utils.system.machine import cores

AHEAD = 256  # number of images that are submitted to the thread pool at a time


def file_digest(data: bytes) -> bytes:
    """Return the digest (8-byte blake2b) of a file's content."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def pixel_digest(image: Image.Image) -> bytes:
    """Return the digest (8-byte blake2b) of the size and the pixels of an RGB image; pixels are in row-major order."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=DIGEST_BYTES)
    digest.update(image.tobytes())
    return digest.digest()


@dataclass(frozen=True)
class KnownImages:
    """The names and digests of all images of a folder.

    Attributes:
        names: path of each image, relative to the folder.
        digests: `ImageDigests` of all images, in the order of `names`.
    """

    names: list[str]
    digests: ImageDigests

    def differences(self, stored: ImageDigests, of: str = "labels") -> str | None:
        """Return a clause that describes how the images of the folder differ from other images; None if they are equal.

        Args:
            stored: digests of the other images.
            of: owner of the other images, `labels` or `run`. The clause names the owner.
        """
        return find_differences(stored, self.digests, self.names, of)


def know_images(
    root: str, samples: Samples, workers: int, known: ImageDigests | None = None, world: World = ALONE
) -> KnownImages:
    """Return the names and digests of all images of a folder; several processes share the work.

    Args:
        root: the folder.
        samples: list of (path, class).
        workers, known: see `identify`.
        world: processes of the run. Every rank must call this function; all ranks get the same result.
    """
    own = identify(samples[world.rank :: world.size], workers, known) if world.rank < len(samples) else None
    shares = world.all_gather_object(own)
    pixels = torch.empty(len(samples), DIGEST_BYTES, dtype=torch.uint8)
    files = torch.empty_like(pixels)
    for rank, share in enumerate(shares):
        if share is not None:
            pixels[rank :: world.size] = share.pixels
            files[rank :: world.size] = share.files
    return KnownImages(relative_names(root, samples), ImageDigests(pixels, files))


def relative_names(root: str, samples: Sequence[tuple[str, int]]) -> list[str]:
    """Return the path of every image in `samples`, a list of (path, class), relative to the image folder `root`."""
    folder = os.path.join(root, "")
    return [path.removeprefix(folder) for path, _ in samples]


def identify(samples: Samples, workers: int, known: ImageDigests | None = None) -> ImageDigests:
    """Return the file digest and the pixel digest of each image; a pool of threads computes them.

    Args:
        samples: list of (path, class).
        workers: number of threads; if it is less than the number of cores, one thread per core is started.
        known: digests computed earlier, such as those stored with labels. If `known` contains the digest of a file, the
            digest of its pixels is taken from `known` too, so that the image need not be decoded.

    Raises:
        InputError: a file cannot be read or decoded.
    """
    pixels_of: dict[bytes, bytes] = {}
    if known is not None:
        rows = zip(known.files.numpy(), known.pixels.numpy(), strict=True)
        pixels_of = {file.tobytes(): pixels.tobytes() for file, pixels in rows}

    def both(path: str) -> tuple[bytes, bytes]:
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); replace the image") from None
        file = file_digest(data)
        return pixels_of.get(file) or pixel_digest(load_rgb(path, io.BytesIO(data))), file

    pairs: list[tuple[bytes, bytes]] = []
    paths = iter([path for path, _ in samples])
    with ThreadPoolExecutor(max(workers, cores())) as pool:
        while ahead := list(islice(paths, AHEAD)):
            pairs += pool.map(both, ahead)
    pixels, files = (b"".join(column) for column in zip(*pairs, strict=True))
    return ImageDigests(as_rows(pixels), as_rows(files))


def as_rows(digests: bytes) -> torch.Tensor:
    """Return the concatenated 8-byte digests of N images as a tensor, uint8 [N, 8]."""
    return torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, DIGEST_BYTES)
