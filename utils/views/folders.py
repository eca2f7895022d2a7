"""Image folders: classes, files, decoded images."""

import os
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from utils.system.errors import InputError

Samples = list[tuple[str, int]]  # (path, class) of every image


def open_folder(path: Path | str | None, flag: str) -> ImageFolder:
    """Scan an image folder with one sub-folder per class, classes in the order of sorted names.

    Returns:
        torchvision ImageFolder; `.samples` is a list of (path, class).

    Raises:
        InputError: names `flag` and what is missing.
    """
    if not path or not os.path.isdir(path):
        raise InputError(f"{flag} {path} is not a folder; give a folder with one sub-folder of images per class")
    try:
        return ImageFolder(path)
    except FileNotFoundError as error:
        problem = str(error).split(". ")[0].replace("\n", " ")
        raise InputError(f"{flag} {path}: {problem}; every sub-folder must hold the images of one class") from None


def first_images(samples: Samples, per_class: int | None) -> Samples:
    """Keep the first `per_class` images of each class (IPC) of a list of (path, class); None keeps all."""
    seen: Counter[int] = Counter()
    kept = []
    for path, target in samples:
        seen[target] += 1
        if per_class is None or seen[target] <= per_class:
            kept.append((path, target))
    return kept


def load_rgb(path: Path | str, file: BinaryIO | None = None) -> Image.Image:
    """Decode an image file to a PIL RGB image, or raise InputError with its path; `file` is its content, if read."""
    try:
        with Image.open(file or path) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"it claims {image.width} x {image.height} pixels")
            return image.convert("RGB")
    except Exception as error:
        raise InputError(f"{path} cannot be decoded ({error or type(error).__name__}); replace the image") from None


def header_size(path: Path | str) -> tuple[int, int]:
    """Return (width, height) of an image file without decoding it."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise InputError(f"{path} cannot be decoded ({error or type(error).__name__}); replace the image") from None


def image_sizes(samples: Samples) -> torch.Tensor:
    """Read the size of every image of a list of (path, class) from its header: int32 [N, 2], (H, W)."""
    return torch.tensor([header_size(path)[::-1] for path, _ in samples], dtype=torch.int32)
