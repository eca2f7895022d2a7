"""Open an image set of any layout: folders of image files, archives, tables or tensors.

The layout is recognised by the content of the file or folder. These layouts are tried in this order:

1. a root with parts: a folder with two sub-folders, `train` and one of `val`, `validation` and `test`, if no image lies
   directly in `train`. The sub-folder of the requested part is then opened by the same rules;
2. the layouts of the readers in READERS, each a module of utils/data/readers;
3. a folder with one sub-folder of images per class (`open_folder`).
"""

import os
from dataclasses import replace
from pathlib import Path

from utils.data.folders import is_debris, open_folder
from utils.data.images import ImageSet, channels_of_files
from utils.data.readers import cifar, flat, idx, parquet, shards, tensors
from utils.data.readers.flat import REMEDY, visible
from utils.data.readers.pixels import log_part
from utils.system.errors import InputError, listing
from utils.system.log import log

READERS = (cifar, idx, tensors, parquet, shards, flat)
HELD_OUT = ("val", "validation", "test")  # names of the part that is not for training, in order of preference
TAKEN = (
    "give a folder with one sub-folder of images per class, or another layout that docs/images.md lists (CIFAR, MNIST, "
    "tensors, parquet, webdataset, ImageNet's validation images with their table)"
)


def open_images(
    path: Path | str | None,
    flag: str,
    part: str = "train",
    normalised: str = "auto",
    labels: str | None = None,
) -> ImageSet:
    """Open the image set at `path`; its layout is recognised by its content.

    Args:
        path: file or folder that holds the set.
        flag: command-line flag that gave the path, for error messages.
        part: `train` or `val`, the part to take if `path` holds several. If there is no validation part, `val` means
            the test part.
        normalised: whether floating-point images have been normalised: `yes`, `no`, or `auto` to infer it from their
            values.
        labels: value of --val-labels, a file with the classes of images in one folder; None if it was not given.

    Raises:
        InputError: the set cannot be read, or its layout is unknown.
    """
    if not path or not os.path.exists(path):
        raise InputError(f"{flag} {path} does not exist; {TAKEN}")
    inner = part_of_root(path, part)
    if inner is not None:
        log_part(os.fspath(path), flag, part, os.path.basename(held_out(path) or ""))
        return open_images(inner, flag, part, normalised, labels)
    if labels is not None:
        found = flat.read(path, flag, part, normalised, labels)
    else:
        reader = next((reader for reader in READERS if reader.recognise(path)), None)
        if reader is None:
            refuse_unknown(path, flag)
            folders = open_folder(path, flag)
            return replace(folders, channels=channels_of_files(folders.samples))
        found = reader.read(path, flag, part, normalised)
    log.info("images  %s %s: %s", flag, path, found.layout)
    return found


def part_of_root(path: Path | str, part: str) -> str | None:
    """Return the path of the sub-folder that holds `part`; None if the folder `path` is no root with parts.

    If image files lie directly in the sub-folder `train`, it is not a part, but the folder of a class called train.
    """
    train, other = os.path.join(path, "train"), held_out(path)
    if other is None or not os.path.isdir(train) or visible(train)[0]:
        return None
    return train if part == "train" else other


def held_out(path: Path | str) -> str | None:
    """Return the path of the first sub-folder of `path` that is named in HELD_OUT; None if there is none."""
    return next(filter(os.path.isdir, (os.path.join(path, name) for name in HELD_OUT)), None)


def refuse_unknown(path: Path | str, flag: str) -> None:
    """Raise InputError unless `path` is a folder with sub-folders; the message says what was found instead."""
    if not os.path.isdir(path):
        raise InputError(f"{flag} {path} is a file of a layout that is not known; {TAKEN}")
    images, folders = visible(os.fspath(path))
    if folders:
        return
    if images:
        raise InputError(f"{flag} {path} holds images, but no sub-folders and no table of their classes; {REMEDY}")
    try:
        names = sorted(name for name in os.listdir(path) if not is_debris(name))
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be read ({error.strerror}); make it readable") from None
    content = f"no layout that is known ({listing(names, 3)})" if names else "nothing"
    raise InputError(f"{flag} {path} holds {content}; {TAKEN}")
