"""`LabelStore`: the base class of all label formats."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from utils.labels.digests import ImageDigests, digest_of_labels, write_image_digests
from utils.labels.types import BatchLabels
from utils.labels.views import Views
from utils.system.errors import InputError
from utils.system.files import digest_of, digest_of_text, make_folder

STORED, SAMPLED, SHUFFLED = "stored", "sampled", "shuffled"
NAMED = 3  # number of missing epochs that an error message lists by name


class ViewSource(Protocol):
    """Batches of views, with a teacher's answers or without: a `LabelStore`, or `DrawnViews`."""

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""

    @property
    def batch_size(self) -> int:
        """Return the number of images in a full batch."""

    @property
    def num_images(self) -> int:
        """Return the number of images that the views show."""

    def rows(self, epoch: int, batch: int, /) -> int:
        """Return the number of images in a batch."""

    def read(self, epoch: int, batch: int, /) -> Views:
        """Return one batch."""


class LabelStore(ABC):
    """A folder of labels: `epochs` stored epochs of `batches_per_epoch` batches.

    Each format is a subclass, which overrides methods as needed. Its constructor sets the attributes without a default.

    Attributes:
        path: the folder.
        fkd_seed: seed of the image order of labels without an index, and of random orders.
        dialect: name of the format.
        answers: kind of the stored answers: `logits`, or `probabilities`; `BatchLabels.logits` then holds their logs.
        label_order: order in which the project that made the labels visits batches, one of `config.LABEL_ORDERS`.
        has_epochs: whether each stored epoch visits every image once. Otherwise the stored epochs are stretches of a
            pool of batches.
        epochs: number of epochs stored without a gap from 0.
        gap: names of epochs that are missing before a later one, or None; see `refuse_gap`.
        batches_per_epoch: number of batches of an epoch; without `has_epochs`, the last one may have fewer.
        batch_size: number of rows of a batch; the last batch of an epoch may be shorter.
        num_images: number of images that the labels refer to; without `has_epochs`, the least possible number.
        num_classes: C.
        num_classes_stated: False if the labels do not say C: then `num_classes` is the least possible number, until
            `state_classes` is called.
        keep_topk: number of answers stored per image; C for all.
        logits_dtype: dtype of the stored answers.
        mix_type: `cutmix`, `mixup` or `none`.
        image_digests: digests of the labels' images; None if none are stored (labels of other projects).
        image_list: file beside the batches that lists their images; None if there is no such file.
        settings: how the labels were made; empty for labels of other projects.
        class_list: names of the class folders that the labels were made for, in order, or None.
        class_names: digest of these names, or None.
        opened: contents of the epochs that are in memory or memory-mapped, by epoch.
        keeps_all: whether every opened epoch stays open; otherwise only the last one does.
    """

    dialect: str
    epochs: int
    batches_per_epoch: int
    batch_size: int
    num_images: int
    num_classes: int
    keep_topk: int
    logits_dtype: torch.dtype
    mix_type: str
    answers: str = "logits"
    label_order: str = STORED
    has_epochs: bool = True
    num_classes_stated: bool = True
    gap: str | None = None
    image_digests: ImageDigests | None = None
    image_list: Path | None = None
    class_list: list[str] | None = None
    class_names: str | None = None
    file_digests: bool = False  # whether the labels hold digests of their files, which `verify` compares
    described: Sequence[str] = ()  # attributes that `provenance` states

    def __init__(self, path: str | Path, fkd_seed: int, verify: bool) -> None:
        if verify and not self.file_digests:
            raise InputError(f"--verify-labels needs packed labels, which have digests; pack {path} first")
        self.path, self.fkd_seed, self.verify = Path(path), fkd_seed, verify
        self.settings: dict[str, Any] = {}
        self.opened: dict[int, Any] = {}
        self.keeps_all = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": {}}  # each data-loading worker opens the files itself

    @abstractmethod
    def name(self, epoch: int, batch: int) -> str:
        """Return the path of the file that holds a batch, relative to the folder."""

    @abstractmethod
    def read(self, epoch: int, batch: int) -> BatchLabels:
        """Return one batch, which includes its image `index`.

        Raises:
            InputError: its file is missing, damaged, or disagrees with the rest of the labels.
        """

    def file(self, epoch: int, batch: int = 0) -> Path:
        """Return the file that holds a batch."""
        return self.path / self.name(epoch, batch)

    def names(self, epochs: Iterable[int]) -> Iterator[str]:
        """Yield the path of every file of some epochs, relative to the folder."""
        names = (self.name(epoch, batch) for epoch in epochs for batch in range(self.batches(epoch)))
        return (name for name, _ in itertools.groupby(names))  # a file may hold all batches of an epoch

    def batches(self, epoch: int) -> int:
        """Return the number of batches of a stored epoch: `batches_per_epoch`, or fewer in the last one of a pool."""
        return self.batches_per_epoch

    def stored_batches(self) -> int:
        """Return the number of batches of all stored epochs."""
        return sum(map(self.batches, range(self.epochs)))

    def rows(self, epoch: int, batch: int) -> int:
        """Return the number of images in a batch; the last one of an epoch may be shorter."""
        return min(self.batch_size, self.num_images - batch * self.batch_size)

    def random_access(self) -> None:
        """Keep every opened epoch open from now on, for reading batches in any order."""
        self.keeps_all = True

    def keep_open(self, epoch: int, content: Any) -> Any:
        """Cache the content of an opened epoch, drop other epochs unless `keeps_all`, and return the content."""
        if not self.keeps_all:
            self.opened.clear()
        self.opened[epoch] = content
        return content

    def set_epochs(self, stored: set[int], stated: Iterable[int] = ()) -> None:
        """Set `epochs` and `gap` from the numbers of the stored epochs and of the epochs that a manifest states."""
        self.epochs, self.gap = epochs_without_gap(stored), find_gap(stored, self.epoch_name, stated)

    def epoch_name(self, epoch: int) -> str:
        """Return the name of an epoch's file or folder."""
        return self.name(epoch, 0)

    def refuse_gap(self) -> None:
        """Raise InputError if epochs are missing from the middle of the stored ones.

        Otherwise a reader would silently use only the epochs before the gap.
        """
        if self.gap:
            raise InputError(
                f"{self.path} lacks {self.gap} (epochs stored before that: {self.epochs}); copy the labels again, or "
                "run relabel_FKD.py again to finish them"
            )

    def check_complete(self, epochs: Iterable[int]) -> None:
        """Raise InputError for the first missing file that `epochs` need; open no file."""
        for name in self.names(epochs):
            if not (self.path / name).is_file():
                raise InputError(f"{self.path / name} is missing; copy the labels again or run relabel_FKD.py")

    def check(self, epoch: int) -> None:
        """Read all batches of an epoch; raise InputError at the first fault."""
        for batch in range(self.batches(epoch)):
            self.read(epoch, batch)

    def state_classes(self, num_classes: int) -> None:
        """Set the number of classes of labels that do not state it."""
        self.num_classes, self.num_classes_stated = num_classes, True

    def provenance(self) -> dict[str, Any]:
        """Return the description of these labels in summary.json."""
        return {"path": str(self.path)} | {key: getattr(self, key) for key in self.described}

    def digest(self, epochs: Iterable[int] | None = None) -> str:
        """Return a digest that identifies the label set independently of its path.

        Args:
            epochs: epochs that the digest covers (default: all stored); other epochs may be added or changed.

        Raises:
            InputError: a file of these epochs is missing.
        """
        names = self.names(range(self.epochs) if epochs is None else epochs)
        return digest_of_labels(self.path, names, *([] if self.image_list is None else [digest_of(self.image_list)]))

    def legacy_digest(self) -> str:
        """Return the digest of earlier releases, which covered only the first file and the list of images."""
        first = digest_of(self.file(0))
        return first if self.image_list is None else digest_of_text(first + digest_of(self.image_list))


def epochs_without_gap(stored: set[int]) -> int:
    """Return the number of epochs, from 0, before the first one that is not in `stored`."""
    return next(epoch for epoch in itertools.count() if epoch not in stored)


def find_gap(stored: set[int], name: Callable[[int], str], stated: Iterable[int] = ()) -> str | None:
    """Return as text the names of the epochs that are missing before the last known one; None if none is missing.

    Args:
        stored: numbers of the stored epochs.
        name: returns the name of an epoch's file or folder.
        stated: numbers of the epochs that a manifest states, whose files may be gone.
    """
    number = max(stored.union(stated), default=-1) + 1 - len(stored)
    missing = (name(epoch) for epoch in itertools.count() if epoch not in stored)
    shown = ", ".join(itertools.islice(missing, min(number, NAMED)))
    return (f"{shown} and {number - NAMED} more" if number > NAMED else shown) or None


def empty_folder(path: str | Path, image_digests: ImageDigests | None, settings: dict[str, Any] | None = None) -> Path:
    """Make the empty folder of a new label set and write the image digests into it; return its path.

    Args:
        path: the folder; made if it does not exist.
        image_digests: digests of the labels' images, written into the folder; None if the images are unknown.
        settings: settings of relabelling, written with the digests.

    Raises:
        InputError: the folder is not empty, or cannot be made.
    """
    path = Path(path)
    make_folder(path)
    if any(path.iterdir()):
        raise InputError(f"{path} is not empty; give a new folder, or delete the labels in it")
    if image_digests is not None:
        write_image_digests(path, image_digests, settings)
    return path
