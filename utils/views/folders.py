"""Image folders: classes, files, decoded images."""

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

# those of torchvision's ImageFolder, and two more names of JPEG files
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# torchvision leaves these out, so labels of its image order do not count them; they may well be a part of the set
OTHER_IMAGES = (".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".svg", ".npy")
LEFT_BY_SYSTEMS = {"__macosx", "thumbs.db", "desktop.ini"}


@dataclass
class ImageSet:
    """An image folder with one sub-folder per class, in the order of torchvision's ImageFolder.

    Attributes:
        root: the folder.
        classes: names of the sub-folders, sorted.
        samples: (path, class) of every image: classes in order, in each the folders sorted by path, files by name.
    """

    root: str
    classes: list[str]
    samples: Samples

    @property
    def targets(self) -> list[int]:
        """The class of every image."""
        return [target for _, target in self.samples]


def open_folder(path: Path | str | None, flag: str) -> ImageSet:
    """Scan an image folder with one sub-folder per class, classes in the order of sorted names.

    Links are followed, but not to a folder that they are in. Hidden files and folders (`._0001.png`,
    `.ipynb_checkpoints`), those that Windows and macOS leave behind and files that are no images are left out and
    named in the log.

    Raises:
        InputError: names `flag` and what is missing.
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
        which = "no class folder" if len(empty) == len(classes) else listing(empty)
        verb = "holds" if len(empty) in (1, len(classes)) else "hold"
        raise InputError(
            f"{flag} {path}: {which} {verb} {'an image' if len(empty) == len(classes) else 'no images'} "
            f"({', '.join(SUFFIXES)}); every sub-folder must hold the images of one class"
        )
    report_skipped(skipped, root, flag)
    return ImageSet(root, classes, [(file, target) for target, own in enumerate(files) for file in own])


def images_below(folder: str, root: str, skipped: list[str]) -> list[str]:
    """Return the paths of all images in and below a class folder; those of what is left out go to `skipped`."""

    def place_of(path: str) -> tuple[int, int]:
        status = os.stat(path)
        return status.st_dev, status.st_ino

    found: list[tuple[str, list[str]]] = []
    waiting = [(folder, frozenset([place_of(root)]))]
    while waiting:
        folder, above = waiting.pop()
        place = place_of(folder)
        if place in above:  # a link to a folder that it is in: every image would come again and again
            skipped.append(folder)
            continue
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_debris(entry.name):
                    skipped.append(entry.path)
                elif entry.is_dir() if not entry.is_symlink() else os.path.isdir(entry.path):
                    waiting.append((entry.path, above | {place}))
                elif entry.name.lower().endswith(SUFFIXES) and is_file(entry):
                    names.append(entry.name)
                else:
                    skipped.append(entry.path)
        found.append((folder, names))
    return [os.path.join(place, name) for place, names in sorted(found) for name in sorted(names)]


def is_debris(name: str) -> bool:
    """Whether a file or folder is hidden, or left behind by Windows or macOS."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def is_file(entry: os.DirEntry) -> bool:
    """Whether a folder's entry is a file, or a dead link: decoding refuses it, it is not left out in silence."""
    return entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path) or is_dead_link(entry)


def is_dead_link(entry: os.DirEntry) -> bool:
    """Whether a folder's entry is a link to nothing."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def report_skipped(paths: list[str], root: str, flag: str) -> None:
    """Log what was left out of an image folder; warn where it is an image of a type that is not read."""
    names = sorted(os.path.relpath(path, root) for path in paths)
    images = [name for name in names if name.lower().endswith(OTHER_IMAGES) and not is_debris(Path(name).name)]
    others = [name for name in names if name not in set(images)]
    if others:
        what = "file or folder that is no image" if len(others) == 1 else "files or folders that are no images"
        log.info("skipped %d %s in %s %s: %s", len(others), what, flag, root, listing(others, 3))
    if images:
        log.warning(
            "WARNING: skipped %d images of types that are not read in %s %s: %s; convert them to PNG if they belong "
            "to the set",
            *(len(images), flag, root, listing(images, 3)),
        )


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
            return to_rgb(image)
    except Exception as error:
        raise InputError(f"{path} cannot be decoded ({why_undecodable(error)}); replace the image") from None


def why_undecodable(error: Exception) -> str:
    """Return why PIL refused a file, without the name of the file or of the object that it was read from."""
    if isinstance(error, UnidentifiedImageError):
        return "it is empty, or of a type that PIL does not know"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return clause(error)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL image to 8-bit RGB; grey values of 16 bits, which PIL would clip at 255, keep their high byte.

    PIL takes the high byte of 16-bit colours as well. It is v again where an 8-bit v was saved as v * 257 or v * 256.

    Raises:
        ValueError: the range of its grey values is not known, so they have no brightness.
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
    """Return (width, height) of an image file without decoding it."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise InputError(f"{path} cannot be decoded ({why_undecodable(error)}); replace the image") from None


def image_sizes(samples: Samples) -> torch.Tensor:
    """Read the size of every image of a list of (path, class) from its header: int32 [N, 2], (H, W)."""
    return torch.tensor([header_size(path)[::-1] for path, _ in samples], dtype=torch.int32)
