"""Patch PyTorch's map-style fetcher so that it loads the labels of a batch before its images.

The reference code (SRe2L, PRISM) asks users to edit `torch/utils/data/_utils/fetch.py` by hand. This module patches the
fetcher at run time instead. `apply()` installs the patch, and `revert()` removes it.

The patch affects only datasets with a method `load_batch_config`. For each batch, the patched fetcher

1. calls `dataset.load_batch_config(first_position)`, which returns `(mix_index, mix_lam, mix_bbox, soft_label)`;
2. fetches the images as usual;
3. returns `(collated images, mix_index, mix_lam, mix_bbox, soft_label)`.

Worker processes that are started by spawn or forkserver need a `worker_init_fn` that calls `apply()`.

    python -m patches.fetch_patch      prints whether the installed PyTorch is supported
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data._utils import fetch

# the patched fetch method stores PyTorch's original method in an attribute of this name
ORIGINAL = "original"


class UnsupportedPyTorch(RuntimeError):
    """Error that is raised if the patch does not support the fetcher of the installed PyTorch."""


def is_applied() -> bool:
    """Return whether `apply` has patched PyTorch's fetcher in this process."""
    return hasattr(fetch._MapDatasetFetcher.fetch, ORIGINAL)


def is_hand_edited() -> bool:
    """Return whether the user edited PyTorch's fetcher by hand, as the README of the reference code asks."""
    return not is_applied() and "load_batch_config" in inspect.getsource(_fetch_method())


def _fetch_method() -> Callable[..., Any]:
    """Return the method with which PyTorch fetches a batch: the original, the hand-edited or the patched one.

    Raises:
        UnsupportedPyTorch: the method does not exist or has other parameters than the patch expects.
    """
    method = getattr(getattr(fetch, "_MapDatasetFetcher", None), "fetch", None)
    if method is None or list(inspect.signature(method).parameters) != ["self", "possibly_batched_index"]:
        raise UnsupportedPyTorch(
            f"PyTorch {torch.__version__} fetches batches in a way that patches/fetch_patch.py does not support; "
            "use a PyTorch that the README lists"
        )
    return method


def apply() -> None:
    """Patch PyTorch's fetcher in this process; do nothing if it is patched already or was edited by hand.

    Raises:
        UnsupportedPyTorch: the patch does not support the fetcher of the installed PyTorch.
    """
    original = _fetch_method()
    if is_applied() or is_hand_edited():
        return

    @functools.wraps(original)
    def fetch_with_labels(self: Any, possibly_batched_index: Any) -> Any:
        load = getattr(self.dataset, "load_batch_config", None)
        if load is None:
            return original(self, possibly_batched_index)
        # load the labels first, because the labels say how the images are cropped
        config = load(possibly_batched_index[0])
        return original(self, possibly_batched_index), *config

    setattr(fetch_with_labels, ORIGINAL, original)
    fetch._MapDatasetFetcher.fetch = fetch_with_labels  # type: ignore[method-assign]


def revert() -> None:
    """Restore PyTorch's original fetcher in this process; do nothing if it is not patched."""
    if is_applied():
        original = getattr(fetch._MapDatasetFetcher.fetch, ORIGINAL)
        fetch._MapDatasetFetcher.fetch = original  # type: ignore[method-assign]


def main() -> int:
    try:
        edited = is_hand_edited()
        apply()
    except UnsupportedPyTorch as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    how = "already edited by hand, so not patched" if edited else "supported; patched at run time"
    print(f"PyTorch {torch.__version__}: {how}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
