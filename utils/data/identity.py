"""Compute digests of the images in a folder, which identify the images even if files are renamed."""

import hashlib
from dataclasses import dataclass

import torch

from utils.data.images import (
    ImageRef,
    Pixels,
    Samples,
    height_and_width,
    image_name,
    load_image,
    map_images,
    read_image,
)
from utils.labels.digests import DIGEST_BYTES, ImageDigests, find_differences
from utils.system.distributed import ALONE, World


def file_digest(data: bytes) -> bytes:
    """Return the digest (8-byte blake2b) of a file's content."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def pixel_digest(image: Pixels) -> bytes:
    """Return the digest (8-byte blake2b) of the size and the pixels of an image.

    Pixels are hashed in row-major order if the image is a PIL image, and in the order [C, H, W] if it is a tensor.
    """
    height, width = height_and_width(image)
    digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=DIGEST_BYTES)
    digest.update(image.numpy().tobytes() if isinstance(image, torch.Tensor) else image.tobytes())
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


def know_images(root: str, samples: Samples, known: ImageDigests | None = None, world: World = ALONE) -> KnownImages:
    """Return the names and digests of all images of a folder; the ranks share the work.

    Args:
        root: the folder.
        samples: list of (path, class).
        known: digests computed earlier, see `identify`.
        world: processes of the run. Every rank must call this function; all ranks get the same result.
    """
    own = identify(samples[world.rank :: world.size], known) if world.rank < len(samples) else None
    shares = world.all_gather_object(own)
    pixels = torch.empty(len(samples), DIGEST_BYTES, dtype=torch.uint8)
    files = torch.empty_like(pixels)
    for rank, share in enumerate(shares):
        if share is not None:
            pixels[rank :: world.size] = share.pixels
            files[rank :: world.size] = share.files
    return KnownImages(relative_names(root, samples), ImageDigests(pixels, files))


def relative_names(root: str, samples: Samples) -> list[str]:
    """Return the name of each image relative to the image set `root`; `samples` is a list of (image, class)."""
    return [image_name(image, root) for image, _ in samples]


def identify(samples: Samples, known: ImageDigests | None = None) -> ImageDigests:
    """Return the file digest and the pixel digest of each image; a pool of threads computes them.

    Args:
        samples: list of (path, class).
        known: digests computed earlier, such as those stored with labels. If `known` contains the digest of a file, the
            digest of its pixels is taken from `known` too, so that the image need not be decoded.

    Raises:
        InputError: a file cannot be read or decoded.
    """
    pixels_of: dict[bytes, bytes] = {}
    if known is not None:
        rows = zip(known.files.numpy(), known.pixels.numpy(), strict=True)
        pixels_of = {file.tobytes(): pixels.tobytes() for file, pixels in rows}

    def both(image: ImageRef) -> tuple[bytes, bytes]:
        data = read_image(image)
        file = file_digest(data)
        return pixels_of.get(file) or pixel_digest(load_image(image, content=data)), file

    pixels, files = (b"".join(column) for column in zip(*map_images(both, samples), strict=True))
    return ImageDigests(digest_rows(pixels), digest_rows(files))


def digest_rows(digests: bytes) -> torch.Tensor:
    """Return the concatenated 8-byte digests of N images as a tensor, uint8 [N, 8]."""
    return torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, DIGEST_BYTES)
