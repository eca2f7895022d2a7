"""Open a label folder of any format. The format is recognised by the files in the folder."""

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
    """One label format: a test that recognises a folder of this format, and the class that reads the folder."""

    fits: Callable[[Path], bool]
    open: Callable[..., LabelStore]  # called with (path, fkd_seed, verify)


# A folder is opened with the first format whose test it passes. Every folder passes the test of TarStore, the last one.
# If a folder holds no labels at all, TarStore reports the missing files.
FORMATS = [
    Format(lambda path: (path / MANIFEST).exists(), PackedStore),
    Format(is_hald, HaldStore),
    Format(is_flat, FlatStore),
    Format(lambda path: True, TarStore),
]


def open_labels(path: str | Path, fkd_seed: int = 42, verify: bool = False) -> LabelStore:
    """Open a label folder of any format and return the `LabelStore` that reads it.

    Args:
        path: the folder given as --fkd-path.
        fkd_seed: seed that determines the order of images if the labels do not state image numbers.
        verify: whether packed files are compared with their digests when they are opened.

    Raises:
        InputError: the folder does not exist, holds no usable labels, or has no digests although `verify` is True.
    """
    if not os.path.isdir(path):
        raise InputError(f"--fkd-path {path} is not a folder; give the folder that holds the labels")
    path = Path(path)
    return next(known.open for known in FORMATS if known.fits(path))(path, fkd_seed, verify)
