"""Patch PyTorch's map-style fetcher so that it loads the labels of a batch before its images.

The reference code (SRe2L, PRISM) asks users to edit `torch/utils/data/_utils/fetch.py` by hand.
This module patches it at run time instead. For a dataset that has `load_batch_config`, the fetcher
calls `dataset.load_batch_config(first_position)` once per batch, in the worker, then fetches the
images as usual, and returns `(collated images, mix_index, mix_lam, mix_bbox, soft_label)`. All
other datasets are fetched as before.

    python -m patches.fetch_patch      prints whether this PyTorch is supported

`apply()` can be called any number of times, `revert()` undoes it. With spawn and forkserver, worker
processes import an unpatched PyTorch, so a DataLoader needs a `worker_init_fn` that calls
`apply()`. If the user's PyTorch has been edited by hand, `apply()` does nothing: the edited
fetcher returns the same tuple for a dataset whose `mode` is `fkd_load`.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data._utils import fetch

ORIGINAL = "original"  # attribute of the patched fetch method that holds PyTorch's own


class UnsupportedPyTorch(RuntimeError):
    """The fetcher of this PyTorch differs from the one that the patch supports."""


def is_applied() -> bool:
    """Return whether the run-time patch is active in this process."""
    return hasattr(fetch._MapDatasetFetcher.fetch, ORIGINAL)


def is_hand_edited() -> bool:
    """Return whether PyTorch's source was edited to load label batches, as the reference's README asks."""
    return not is_applied() and "load_batch_config" in inspect.getsource(_fetch_method())


def _fetch_method() -> Callable[..., Any]:
    """Return PyTorch's fetch method, or raise UnsupportedPyTorch."""
    method = getattr(getattr(fetch, "_MapDatasetFetcher", None), "fetch", None)
    if method is None or list(inspect.signature(method).parameters) != ["self", "possibly_batched_index"]:
        raise UnsupportedPyTorch(
            f"PyTorch {torch.__version__} fetches batches in a way that patches/fetch_patch.py does not support; "
            "use a PyTorch that the README lists"
        )
    return method


def apply() -> None:
    """Patch the fetcher of this process; do nothing if it is patched already or was edited by hand.

    Raises:
        UnsupportedPyTorch: the patch does not support the fetcher of this PyTorch.
    """
    original = _fetch_method()
    if is_applied() or is_hand_edited():
        return

    @functools.wraps(original)
    def fetch_with_labels(self: Any, possibly_batched_index: Any) -> Any:
        load = getattr(self.dataset, "load_batch_config", None)
        if load is None:
            return original(self, possibly_batched_index)
        config = load(possibly_batched_index[0])  # first, because the labels hold the crops of the images
        return original(self, possibly_batched_index), *config

    setattr(fetch_with_labels, ORIGINAL, original)
    fetch._MapDatasetFetcher.fetch = fetch_with_labels  # type: ignore[method-assign]  # the patch


def revert() -> None:
    """Restore PyTorch's own fetcher; do nothing if the patch is not applied."""
    if is_applied():
        original = getattr(fetch._MapDatasetFetcher.fetch, ORIGINAL)
        fetch._MapDatasetFetcher.fetch = original  # type: ignore[method-assign]  # as in apply()


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
