"""Open a label folder of any format; the files in it tell the format."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from utils.labels.hald import HaldStore, is_hald
from utils.labels.lpqld import FlatStore, is_flat
from utils.labels.packed import PackedStore
from utils.labels.packed_manifest import MANIFEST
from utils.labels.sre2l import TarStore
from utils.labels.store import LabelStore
from utils.system.errors import InputError


class Format(NamedTuple):
    """A test that recognises a format, and the class that reads it."""

    fits: Callable[[Path], bool]
    open: Callable[..., LabelStore]  # called with (path, fkd_seed, verify)


# The first format that fits is taken; the last one always fits, and its reader reports missing files.
FORMATS = [
    Format(lambda path: (path / MANIFEST).exists(), PackedStore),
    Format(is_hald, HaldStore),
    Format(is_flat, FlatStore),
    Format(lambda path: True, TarStore),
]


def open_labels(path: str | Path, fkd_seed: int = 42, verify: bool = False) -> LabelStore:
    """Open a label folder of any format.

    Args:
        path: the folder given as --fkd-path.
        fkd_seed: seed of the image order of labels without an index.
        verify: compare packed files with their digests when they are opened.

    Raises:
        InputError: the folder does not exist, or holds no labels.
    """
    if not os.path.isdir(path):
        raise InputError(f"--fkd-path {path} is not a folder; give the folder that holds the labels")
    path = Path(path)
    return next(known.open for known in FORMATS if known.fits(path))(path, fkd_seed, verify)
