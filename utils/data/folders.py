"""Scan folders of image files that have one sub-folder per class."""

import os
from pathlib import Path

from utils.data.images import ImageSet
from utils.system.errors import InputError, listing
from utils.system.log import log

# suffixes of the image files that are read: those of torchvision's ImageFolder, and two more for JPEG
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# suffixes of image types that are not read: such files are skipped with a warning
OTHER_IMAGES = (".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga", ".svg", ".npy")
BOXES = "_boxes.txt"  # suffix of Tiny-ImageNet's bounding-box files, which are skipped silently
SYSTEM_FILES = {"__macosx", "thumbs.db", "desktop.ini"}


def open_folder(path: Path | str | None, flag: str) -> ImageSet:
    """Scan an image folder with one sub-folder per class; return its classes and image files.

    Symbolic links are followed. Hidden files and folders, system files and files that are not images are skipped.
    Images may lie in sub-folders of a class folder, as in Tiny-ImageNet's `CLASS/images`.

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
                elif not entry.name.endswith(BOXES):
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
