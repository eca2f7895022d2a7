"""Define image sets, and load their images. An image is a file, or a part of an archive, a table or a tensor.

An image is referred to by an `ImageRef`: the path of an image file, or a `Member` of a `Container`. A loaded image is a
`Pixels`: a PIL image with 8 bits per channel, or, if the set holds floating-point numbers, a tensor float32 [C, H, W].
"""

import io
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from utils.system.errors import InputError, clause
from utils.system.machine import cores

T = TypeVar("T")
SAMPLED_SIZES = 500  # approximate number of images whose sizes `ImageSet.side` compares
Pixels = Image.Image | torch.Tensor
# pixel format of a set. bytes: integers from 0 to 255; unit: floating-point numbers, roughly from 0 to 1; normalised:
# floating-point numbers after subtraction of the mean and division by the standard deviation
Values = Literal["bytes", "unit", "normalised"]
SUBMITTED_AHEAD = 256  # number of images that `map_images` submits to its threads at a time
PROBED = 16  # approximate number of image files whose headers are read to find out whether a set is grey
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")


class Container(ABC):
    """Base class of archives, tables and tensors that hold the images of a set.

    Worker processes get a copy of the container, by fork or by pickle. A container must therefore keep no file open:
    several processes would share the position in that file.

    Attributes:
        path: file or folder that holds the images, for error messages.
        holds_files: whether `read` returns the bytes of an image file, not the values of pixels.
        soft_labels: float32 [N, C], class probabilities or logits stored with the N images; None if there are none.
    """

    path: str
    holds_files: bool = True
    soft_labels: torch.Tensor | None = None

    @abstractmethod
    def name(self, number: int) -> str:
        """Return the name of image `number`, unique within the set and the same in every run."""

    @abstractmethod
    def read(self, number: int) -> bytes:
        """Return the content of image `number`: the bytes of an image file, or the values of its pixels."""

    def load(self, number: int) -> Pixels:
        """Decode image `number`. A PIL image may have any mode, which `load_image` then converts."""
        return Image.open(io.BytesIO(self.read(number)))

    def size(self, number: int) -> tuple[int, int]:
        """Return (width, height) of image `number` in pixels, without decoding it if possible."""
        image = self.load(number)
        return image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])

    def num_bytes(self, number: int) -> int:
        """Return the number of bytes of the content of image `number`."""
        return len(self.read(number))


class InMemory(Container):
    """Base class of images of one size that are held in memory as one array or tensor.

    Attributes:
        shape: (N, H, W, C), with C = 1 if the images are grey.
        item_bytes: number of bytes of one value.
    """

    holds_files = False
    shape: tuple[int, int, int, int]
    item_bytes: int = 1

    def name(self, number: int) -> str:
        """Return the image's number, padded with zeros, so that names sort in the order of the numbers."""
        return f"{number:0{len(str(self.shape[0] - 1))}}"

    def size(self, number: int) -> tuple[int, int]:
        """Return (width, height) of the image in pixels."""
        return self.shape[2], self.shape[1]

    def num_bytes(self, number: int) -> int:
        """Return the number of bytes of the image's values."""
        return math.prod(self.shape[1:]) * self.item_bytes


@dataclass(frozen=True, eq=False)
class Member:
    """Reference to one image of a `Container`.

    Attributes:
        container: the archive, table or tensor that holds the image.
        number: index of the image in the container, from 0.
    """

    container: Container
    number: int

    def __str__(self) -> str:
        return f"{self.container.path}: {self.container.name(self.number)}"


ImageRef = str | Member
Samples = list[tuple[ImageRef, int]]  # (image, class) of every image


@dataclass
class ImageSet:
    """Classes and images of a set.

    Attributes:
        root: file or folder that the set was opened from.
        classes: name of each class. For image folders these are the names of the sub-folders, sorted.
        samples: (image, index in `classes`) of every image.
        named: False if the set does not name its classes, so that `classes` holds their numbers.
        channels: 1 if the images are grey, else 3; see `channels_of_files` for image files.
        normalised: whether mean and standard deviation have been applied to the images already; only a set of
            floating-point images can be normalised.
        layout: how the set is stored, in words, for the log; empty for folders of image files.
        answers: kind of the soft labels that are stored with the images: `probabilities` or `logits`; None if there
            are none.
        numbers: None until `renumber` is called. Then, for each class of the set as it was opened, its new number,
            or None if the class was removed. Column k of the stored soft labels belongs to item k of `numbers`.
    """

    root: str
    classes: list[str]
    samples: Samples
    named: bool = True
    channels: int = 3
    normalised: bool = False
    layout: str = ""
    answers: str | None = None
    numbers: list[int | None] | None = None

    def renumber(self, numbers: Sequence[int | None]) -> None:
        """Replace class k by `numbers[k]` in all samples; remove the images of class k if `numbers[k]` is None.

        Call this method at most once.
        """
        renumbered = [(image, numbers[place]) for image, place in self.samples]
        self.samples = [(image, number) for image, number in renumbered if number is not None]
        self.numbers = list(numbers)

    @property
    def targets(self) -> list[int]:
        """Return the class of every image, in the order of `samples`."""
        return [target for _, target in self.samples]

    @property
    def values(self) -> Values:
        """Return the format of the pixels, see `Values`. The first image is decoded to determine it."""
        if isinstance(load_image(self.samples[0][0]), Image.Image):
            return "bytes"
        return "normalised" if self.normalised else "unit"

    @property
    def side(self) -> int | None:
        """Return the side of the images in pixels if they are square and all of one size; None otherwise.

        Image files outside a `Container` also give None, because such sets are often resized. In a large set, only a
        sample of the images is checked.
        """
        if not isinstance(self.samples[0][0], Member):
            return None
        sizes = {image_size(image) for image, _ in self.samples[:: max(1, len(self.samples) // SAMPLED_SIZES)]}
        width, height = next(iter(sizes))
        return width if len(sizes) == 1 and width == height else None


def first_images(samples: Samples, per_class: int | None) -> Samples:
    """Return the first `per_class` items of each class in `samples`; return all items if `per_class` is None."""
    seen: Counter[int] = Counter()
    kept = []
    for image, target in samples:
        seen[target] += 1
        if per_class is None or seen[target] <= per_class:
            kept.append((image, target))
    return kept


def soft_labels_of(samples: Samples) -> torch.Tensor | None:
    """Return the soft labels that are stored with the images, float32 [N, C]; None if an image has none."""
    rows = []
    for image, _ in samples:
        if not isinstance(image, Member) or image.container.soft_labels is None:
            return None
        rows.append(image.container.soft_labels[image.number])
    return torch.stack(rows)


def image_name(image: ImageRef, root: str) -> str:
    """Return an image's name within its set: the path relative to the folder `root`, or the name in its container."""
    if isinstance(image, Member):
        return image.container.name(image.number)
    return image.removeprefix(os.path.join(root, ""))


def map_images(function: Callable[[ImageRef], T], samples: Samples) -> Iterator[T]:
    """Yield `function(image)` for every image of `samples`, in order.

    One thread per core calls the function. Threads suffice, because PIL and hashlib release the GIL.
    """
    images = iter([image for image, _ in samples])
    with ThreadPoolExecutor(cores()) as pool:
        while ahead := list(islice(images, SUBMITTED_AHEAD)):
            yield from pool.map(function, ahead)


def read_image(image: ImageRef) -> bytes:
    """Return the content of an image: the bytes of its file, or the values of its pixels.

    Raises:
        InputError: the image cannot be read.
    """
    with reading(image):
        return image.container.read(image.number) if isinstance(image, Member) else Path(image).read_bytes()


def image_bytes(image: ImageRef) -> int:
    """Return the number of bytes of an image's content. For an image file, only the file size is looked up.

    Raises:
        InputError: the image cannot be read.
    """
    if not isinstance(image, Member):
        return file_status(image).st_size
    with reading(image):
        return image.container.num_bytes(image.number)


def file_status(image: str) -> os.stat_result:
    """Return the result of `os.stat` for an image file; raise InputError if the file is missing or a broken link."""
    with reading(image):
        return os.stat(image)


def load_image(image: ImageRef, channels: int = 3, content: bytes | None = None) -> Pixels:
    """Decode an image, and convert it to `channels` channels.

    Args:
        image: the image.
        channels: 3 for RGB; grey values are then repeated in all channels. 1 for grey.
        content: content of the image from `read_image`, if it has been read already; None to read it.

    Returns:
        a PIL image of mode RGB or L, or, from a set of floating-point images, a tensor float32 [channels, H, W].

    Raises:
        InputError: the image cannot be decoded, or it has colours and `channels` is 1. The message names the image.
    """
    with decoding(image):
        loaded: Pixels
        if content is not None and (not isinstance(image, Member) or image.container.holds_files):
            loaded = Image.open(io.BytesIO(content))
        elif isinstance(image, Member):
            loaded = image.container.load(image.number)
        else:
            loaded = Image.open(image)
        if isinstance(loaded, torch.Tensor):
            return with_channels(loaded, channels)
        with loaded:
            if Image.MAX_IMAGE_PIXELS and loaded.width * loaded.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"its header states {loaded.width} x {loaded.height} pixels, more than PIL's limit")
            if channels == 1:
                if loaded.mode not in GREY_MODES:
                    raise ValueError("it has colours, but the first images of its set are grey")
                return to_rgb(loaded).getchannel(0)
            return to_rgb(loaded)


def with_channels(image: torch.Tensor, channels: int) -> torch.Tensor:
    """Convert an image [C, H, W] to `channels` channels: repeat a grey image; raise ValueError for a colour image."""
    if len(image) == channels:
        return image
    if len(image) != 1:
        raise ValueError(f"it has {len(image)} channels, not {channels}")
    return image.expand(channels, -1, -1)


def height_and_width(image: Pixels) -> tuple[int, int]:
    """Return (height, width) of a loaded image in pixels."""
    return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[1], image.shape[2])


@contextmanager
def reading(image: ImageRef) -> Iterator[None]:
    """Turn an OSError of the `with` block into an InputError that names the image and the reason."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{image} cannot be read ({error.strerror or clause(error)}); replace the image") from None


@contextmanager
def decoding(image: ImageRef) -> Iterator[None]:
    """Turn every error of the `with` block into an InputError that names the image and the reason."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UnidentifiedImageError):
            reason = "it is empty, or of a type that PIL does not know"
        else:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else clause(error)
        raise InputError(f"{image} cannot be decoded ({reason}); replace the image") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL image to 8-bit RGB.

    16-bit grey values are reduced to their high byte, as PIL does with 16-bit colours. (PIL would clip grey values at
    255.) An image that was made by multiplying 8-bit values by 256 or 257 gets its 8-bit values back.

    Raises:
        ValueError: the pixels are 32-bit integers or floats, whose range is unknown; or the image is 16-bit grey and
            would become black, because all its values are below 256 (but not all are 0).
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image.convert("I"))
        if 0 < values.max() < 256:
            raise ValueError("its 16-bit grey values are all below 256 and would be black; save it in 8 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its pixels are {kind}, whose range is not known; save it in 8 bits")
    return image.convert("RGB")


def image_size(image: ImageRef) -> tuple[int, int]:
    """Return (width, height) of an image from its header; raise InputError if the header cannot be read."""
    with decoding(image):
        if isinstance(image, Member):
            return image.container.size(image.number)
        with Image.open(image) as opened:
            return opened.size


def channels_of_files(samples: Samples) -> int:
    """Return the number of channels of a set of image files: 1 if all checked images are grey, else 3.

    About PROBED images are checked, evenly spread over `samples`; they may also lie in an archive or a table.
    A file whose header cannot be read counts as coloured, because loading it raises an error later.
    """
    for image, _ in samples[:: max(1, len(samples) // PROBED)]:
        try:
            with Image.open(io.BytesIO(read_image(image)) if isinstance(image, Member) else image) as opened:
                if opened.mode not in GREY_MODES:
                    return 3
        except Exception:
            return 3
    return 1


def image_sizes(samples: Samples) -> torch.Tensor:
    """Return (H, W) of every image in a list of (image, class), read from the headers: int32 [N, 2]."""
    return torch.tensor([image_size(image)[::-1] for image, _ in samples], dtype=torch.int32)
