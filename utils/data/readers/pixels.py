"""Hold the images of a set that stores uncompressed 8-bit pixels, such as CIFAR or MNIST."""

import numpy as np
from PIL import Image

from utils.data.images import ImageSet, InMemory, Member, Samples
from utils.system.errors import InputError
from utils.system.log import log


class PixelArray(InMemory):
    """8-bit images of one size, held in memory as an array.

    Args:
        path: file or folder that the pixels were read from, for error messages.
        pixels: uint8 [N, H, W] for grey images, or [N, H, W, 3] for RGB.
    """

    def __init__(self, path: str, pixels: np.ndarray):
        self.path = path
        self.pixels = pixels
        count, height, width, *colours = pixels.shape
        self.shape = (count, height, width, *(colours or [1]))

    def read(self, number: int) -> bytes:
        """Return the bytes of the image's pixels, row by row."""
        return self.pixels[number].tobytes()

    def load(self, number: int) -> Image.Image:
        """Return the image, of mode L or RGB."""
        return Image.fromarray(self.pixels[number])


def set_of_pixels(
    path: str, pixels: np.ndarray, labels: list[int], classes: list[str], layout: str, named: bool
) -> ImageSet:
    """Return the `ImageSet` of an array of pixels.

    Args:
        path: file or folder that the set was opened from.
        pixels: uint8 [N, H, W] or [N, H, W, 3].
        labels: class number of each of N images.
        classes: names of the classes.
        layout: description of the layout, for the log.
        named: True if `classes` holds names; False if it holds numbers as text.

    Raises:
        InputError: there are no images; there are more or fewer labels than images; or a label is no class number.
    """
    if not len(pixels):
        raise InputError(f"{path} holds no images; copy it again")
    if len(labels) != len(pixels):
        raise InputError(f"{path} holds {len(pixels)} images, but {len(labels)} labels; copy it again")
    if any(type(label) is not int or not 0 <= label < len(classes) for label in labels):
        raise InputError(f"{path} has a label that is none of its {len(classes)} classes; copy it again")
    container = PixelArray(path, pixels)
    samples: Samples = [(Member(container, number), label) for number, label in enumerate(labels)]
    return ImageSet(path, classes, samples, named, channels=1 if pixels.ndim == 3 else 3, layout=layout)


def log_part(path: str, flag: str, part: str, other: str = "test") -> None:
    """Log that an image set has two parts, and which part `flag` reads.

    Args:
        path: file or folder that holds the set.
        flag: command-line flag that gave the path.
        part: `train` or `val`, the part that was asked for.
        other: name in the log of the part that is not for training.
    """
    taken = "train" if part == "train" else other
    log.info("images  %s holds a train and a %s part: %s takes the %s part", path, other, flag, taken)
