"""Open an image set, whatever its layout: folders of image files, archives, tables or tensors."""

from pathlib import Path

from utils.data.folders import open_folder
from utils.data.images import ImageSet


def open_images(path: Path | str | None, flag: str, part: str = "train", normalised: str = "auto") -> ImageSet:
    """Open the image set at `path`; its layout is recognised by its content.

    Args:
        path: file or folder that holds the set.
        flag: command-line flag that gave the path, for error messages.
        part: `train` or `val`, the part to take from a place that holds both. The part `val` is the test set if there
            is no other.
        normalised: whether floating-point images have been normalised: `yes`, `no`, or `auto` to infer it from their
            values.

    Raises:
        InputError: the set cannot be read, or its layout is unknown.
    """
    return open_folder(path, flag)
