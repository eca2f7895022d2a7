"""Scan image folders for classes and image files, and decode the images."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from utils.system.errors import InputError, clause, listing
from utils.system.log import log

Samples = list[tuple[str, int]]  # (path, class) of every image

# suffixes of the image files that are read: those of torchvision's ImageFolder, and two more for JPEG
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# suffixes of image types that are not read: such files are skipped with a warning
OTHER_IMAGES = (".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".svg", ".npy")
SYSTEM_FILES = {"__macosx", "thumbs.db", "desktop.ini"}


@dataclass
class ImageSet:
    """Classes and files of an image folder with one sub-folder per class, in the order of torchvision's ImageFolder.

    Attributes:
        root: the folder.
        classes: names of the sub-folders, sorted.
        samples: (path, class) of every image, ordered by class, then folder path, then file name.
    """

    root: str
    classes: list[str]
    samples: Samples

    @property
    def targets(self) -> list[int]:
        """Return the class of every image, in the order of `samples`."""
        return [target for _, target in self.samples]


def open_folder(path: Path | str | None, flag: str) -> ImageSet:
    """Scan an image folder with one sub-folder per class; return its classes and image files.

    Symbolic links are followed. Hidden files and folders, system files and files that are not images are skipped.

    Args:
        path: the folder.
        flag: command-line flag that gave the path, for error messages.

    Raises:
        InputError: `path` is not a folder, cannot be read, has no sub-folders, or has a sub-folder without images.
    """
    if not path or not os.path.isdir(path):
        raise InputError(f"{flag} {path} is not a folder; give a folder with one sub-folder of images per class")
    root = os.fspath(path)
    skipped: list[str] = []
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
        skipped += [entry.path for entry in entries if is_debris(entry.name) or is_dead_link(entry)]
        classes = [entry.name for entry in entries if os.path.isdir(entry.path) and not is_debris(entry.name)]
        files = [images_below(os.path.join(root, name), root, skipped) for name in classes]
    except OSError as error:
        raise InputError(
            f"{flag} {path}: {error.filename} cannot be read ({error.strerror}); make it readable, or remove it"
        ) from None
    if not classes:
        loose = any(entry.name.lower().endswith(SUFFIXES) for entry in entries)
        content = "images, but no sub-folders" if loose else "no sub-folders"
        raise InputError(f"{flag} {path} holds {content}; give a folder with one sub-folder of images per class")
    empty = [name for name, own in zip(classes, files, strict=True) if not own]
    if empty:
        if len(empty) == len(classes):
            problem = "no class folder holds an image"
        else:
            problem = f"{listing(empty)} {'holds' if len(empty) == 1 else 'hold'} no images"
        raise InputError(
            f"{flag} {path}: {problem} ({', '.join(SUFFIXES)}); every sub-folder must hold the images of one class"
        )
    report_skipped(skipped, root, flag)
    return ImageSet(root, classes, [(file, target) for target, own in enumerate(files) for file in own])


def images_below(folder: str, root: str, skipped: list[str]) -> list[str]:
    """Return the paths of all images in and below a class folder; append paths of other files to `skipped`."""

    def identity_of(path: str) -> tuple[int, int]:
        status = os.stat(path)
        return status.st_dev, status.st_ino

    found: list[tuple[str, list[str]]] = []
    # (path, parents) of each folder that is still to be scanned; parents: (device, inode) of each folder above it
    waiting = [(folder, frozenset([identity_of(root)]))]
    while waiting:
        folder, parents = waiting.pop()
        identity = identity_of(folder)
        if identity in parents:  # a symbolic link to one of its own parent folders: following it would never end
            skipped.append(folder)
            continue
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_debris(entry.name):
                    skipped.append(entry.path)
                elif entry.is_dir() if not entry.is_symlink() else os.path.isdir(entry.path):
                    waiting.append((entry.path, parents | {identity}))
                elif entry.name.lower().endswith(SUFFIXES) and is_file(entry):
                    names.append(entry.name)
                else:
                    skipped.append(entry.path)
        found.append((folder, names))
    return [os.path.join(folder, name) for folder, names in sorted(found) for name in sorted(names)]


def is_debris(name: str) -> bool:
    """Return whether a file or folder is hidden, or a system file of Windows or macOS."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def is_file(entry: os.DirEntry) -> bool:
    """Return whether a folder's entry counts as a file.

    A dead link counts as a file, and decoding it raises an error. If dead links were skipped, nobody would notice that
    images are missing.
    """
    return entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path) or is_dead_link(entry)


def is_dead_link(entry: os.DirEntry) -> bool:
    """Return whether a folder's entry is a symbolic link to a path that does not exist."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def report_skipped(paths: list[str], root: str, flag: str) -> None:
    """Log how many files of an image folder were skipped, with examples; warn about images of unsupported types."""
    names = sorted(os.path.relpath(path, root) for path in paths)
    images = [name for name in names if name.lower().endswith(OTHER_IMAGES) and not is_debris(Path(name).name)]
    others = [name for name in names if name not in set(images)]
    if others:
        kind = "file or folder that is no image" if len(others) == 1 else "files or folders that are no images"
        log.info("skipped %d %s in %s %s: %s", len(others), kind, flag, root, listing(others, 3))
    if images:
        log.warning(
            "WARNING: skipped %d images of types that are not read in %s %s: %s; convert them to PNG if they belong "
            "to the set",
            len(images),
            flag,
            root,
            listing(images, 3),
        )


def first_images(samples: Samples, per_class: int | None) -> Samples:
    """Return the first `per_class` items of each class in `samples`; return all items if `per_class` is None."""
    seen: Counter[int] = Counter()
    kept = []
    for path, target in samples:
        seen[target] += 1
        if per_class is None or seen[target] <= per_class:
            kept.append((path, target))
    return kept


def load_rgb(path: Path | str, file: BinaryIO | None = None) -> Image.Image:
    """Decode an image file to a PIL RGB image.

    Args:
        path: the image file.
        file: binary stream with the content of the file, if it has been read already.

    Raises:
        InputError: the file cannot be decoded. The message names the path.
    """
    try:
        with Image.open(file or path) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"it claims {image.width} x {image.height} pixels")
            return to_rgb(image)
    except Exception as error:
        raise InputError(f"{path} cannot be decoded ({why_undecodable(error)}); replace the image") from None


def why_undecodable(error: Exception) -> str:
    """Return the reason why PIL could not decode a file, as a part of an error message."""
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, or of a type that PIL does not know"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return clause(error)


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


def header_size(path: Path | str) -> tuple[int, int]:
    """Return (width, height) of an image file from its header; raise InputError if the header cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise InputError(f"{path} cannot be decoded ({why_undecodable(error)}); replace the image") from None


def image_sizes(samples: Samples) -> torch.Tensor:
    """Return (H, W) of every image in a list of (path, class), read from the file headers: int32 [N, 2]."""
    return torch.tensor([header_size(path)[::-1] for path, _ in samples], dtype=torch.int32)
