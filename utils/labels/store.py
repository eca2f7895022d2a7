"""`LabelStore`: what training, checks and tools ask of a folder of labels, whatever its format."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from utils.labels.batch import BatchLabels
from utils.labels.drawn import Views
from utils.labels.image_digests import ImageDigests
from utils.system.errors import InputError

NAMED = 3  # missing epochs that an error names


class ViewSource(Protocol):
    """What training asks for views, with a teacher's answers or without: a `LabelStore`, or `DrawnViews`."""

    batches_per_epoch: int
    batch_size: int
    num_images: int

    def rows(self, epoch: int, batch: int, /) -> int:
        """Number of images in a batch."""

    def read(self, epoch: int, batch: int, /) -> Views:
        """Return one batch."""


class LabelStore(Protocol):
    """A folder of labels: `epochs` stored epochs of `batches_per_epoch` batches, in the order of training.

    Attributes:
        path: the folder.
        dialect: name of the format.
        answers: what `BatchLabels.logits` are: `logits`, or `probabilities`, of which they are the natural logs.
        label_order: how the project that made the labels visits them: one of `config.LABEL_ORDERS`.
        has_epochs: whether the stored epochs are epochs, each of which visits every image once. Otherwise they are
            stretches of a pool of batches.
        epochs: stored without a gap from 0.
        gap: names of the epochs that are missing though later ones are there, or None; see `refuse_gap`.
        batches_per_epoch, batch_size: the last batch of an epoch may be shorter.
        num_images: images of the folder that the labels are about; without epochs, the least that there must be.
        num_classes: C.
        num_classes_stated: False where the labels do not say C: then `num_classes` is the least, and `state_classes`
            says it.
        keep_topk: answers stored per image; C for all.
        logits_dtype: of the answers.
        mix_type: `cutmix`, `mixup` or `none`.
        image_digests: which images the labels are about; None where they do not say, as those of other projects.
    """

    path: Path
    dialect: str
    answers: str
    label_order: str
    has_epochs: bool
    epochs: int
    gap: str | None
    batches_per_epoch: int
    batch_size: int
    num_images: int
    num_classes: int
    num_classes_stated: bool
    keep_topk: int
    logits_dtype: torch.dtype
    mix_type: str
    image_digests: ImageDigests | None

    @property
    def class_list(self) -> list[str] | None:
        """Names of the class folders that the labels were made for, in order, or None."""

    @property
    def class_names(self) -> str | None:
        """Digest of the class folder names that the labels were made for, or None."""

    def random_access(self) -> None:
        """Batches will be asked for in any order: keep open what was opened."""

    def batches(self, epoch: int, /) -> int:
        """Number of batches of a stored epoch: `batches_per_epoch`, or fewer in the last one of a pool."""

    def rows(self, epoch: int, batch: int, /) -> int:
        """Number of images in a batch."""

    def read(self, epoch: int, batch: int, /) -> BatchLabels:
        """Return one batch, `index` filled in.

        Raises:
            InputError: its file is missing, damaged, or disagrees with the rest of the labels.
        """

    def file(self, epoch: int, batch: int, /) -> Path:
        """The file that holds a batch; for errors."""

    def check_complete(self, epochs: Iterable[int], /) -> None:
        """Raise InputError for the first file that `epochs` need and that is missing; opens none."""

    def check(self, epoch: int) -> None:
        """Read all of an epoch; raise InputError for the first thing wrong with it."""

    def state_classes(self, num_classes: int) -> None:
        """Say how many classes there are, to a store that does not know."""

    def provenance(self) -> dict[str, Any]:
        """What summary.json says about these labels."""

    def digest(self, epochs: Iterable[int] | None = None, /) -> str:
        """Digest that tells label sets apart, wherever they lie.

        Args:
            epochs: those that count (default: all that are stored); others may be added or changed.

        Raises:
            InputError: a file of these epochs is missing.
        """

    def legacy_digest(self) -> str:
        """Digest of earlier releases, which covered the first file only; old checkpoints state it."""


def epochs_without_gap(stored: set[int]) -> int:
    """Return the number of epochs that are stored from 0 on before the first that is missing."""
    return next(epoch for epoch in itertools.count() if epoch not in stored)


def find_gap(stored: set[int], name: Callable[[int], str], stated: Iterable[int] = ()) -> str | None:
    """Name the epochs that are missing though later ones are there; None if there are none.

    Args:
        stored: numbers of the epochs that there are.
        name: returns the name of an epoch's file or folder.
        stated: numbers of the epochs that there were once, by a manifest.
    """
    number = max(stored.union(stated), default=-1) + 1 - len(stored)
    missing = (name(epoch) for epoch in itertools.count() if epoch not in stored)
    shown = ", ".join(itertools.islice(missing, min(number, NAMED)))
    return (f"{shown} and {number - NAMED} more" if number > NAMED else shown) or None


def refuse_gap(store: LabelStore) -> None:
    """Raise InputError if epochs are missing from the middle of the stored ones.

    A reader that takes the stored epochs for all there are would use those before the gap alone.
    """
    if store.gap:
        raise InputError(
            f"{store.path} lacks {store.gap} (epochs stored before that: {store.epochs}); copy the labels again, or "
            "run relabel_FKD.py again to finish them"
        )
