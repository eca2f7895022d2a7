"""`LabelStore`, the base class of the classes that read label folders; each format has one subclass."""

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
    """Interface of a source of training batches: stored views with soft labels, or views drawn at random.

    `LabelStore` provides stored views, and `DrawnViews` provides random views.
    """

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""

    @property
    def batch_size(self) -> int:
        """Return the number of images in a full batch."""

    @property
    def num_images(self) -> int:
        """Return the number of images from which the views are made."""

    def rows(self, epoch: int, batch: int, /) -> int:
        """Return the number of rows of a batch, one row per image."""

    def read(self, epoch: int, batch: int, /) -> Views:
        """Return the views of one batch, together with soft labels if the source has them."""


class LabelStore(ABC):
    """A label folder, opened for reading. It holds `epochs` epochs of `batches_per_epoch` batches each.

    Each format has a subclass, whose constructor sets all attributes that have no default here.

    Attributes:
        path: the label folder.
        fkd_seed: seed that determines the order of images, if the labels do not state image numbers.
        dialect: name of the format.
        answers: kind of the stored values: `logits`, or `probabilities`. In the second case, `BatchLabels.logits` holds
            the logs of the probabilities.
        label_order: default order of the batches in training, one of `config.LABEL_ORDERS`. It is the order used by
            the project that made the labels.
        has_epochs: whether the labels are grouped into epochs, each of which visits every image once. If False, the
            stored epochs are only consecutive sections of one long list of batches.
        epochs: number of epochs before the first missing one. If epochs 0, 1 and 3 are stored, `epochs` is 2.
        gap: text that names the missing epochs, from `find_gap`; None if no epoch is missing.
        batches_per_epoch: number of batches of an epoch. If `has_epochs` is False, the last epoch may have fewer.
        batch_size: number of rows of a batch. The last batch of an epoch may be smaller.
        num_images: number of images that the labels refer to. If `has_epochs` is False, this is a lower bound.
        num_classes: C, the number of classes.
        num_classes_stated: whether the labels state C. If False, `num_classes` is a lower bound until `state_classes`
            sets it.
        keep_topk: number of logits stored per image; C if all are stored.
        logits_dtype: dtype of the stored logits.
        mix_type: `cutmix`, `mixup` or `none`.
        has_weights: whether the labels hold a weight of each row for the loss (WMDD).
        has_cutouts: whether a coloured cutout is drawn into each view (LPLD and LPQLD for ImageNet-21K).
        image_digests: digests of the images from which the labels were made; None if the folder has none.
        image_list: file in the folder that lists the images of each batch or epoch; None if there is no such file.
        settings: settings with which the labels were made; empty for labels of other projects.
        class_list: names of the class folders for which the labels were made, in order; None if unknown.
        class_names: digest of the names of the class folders; None if unknown.
        opened: content of the epochs that are in memory or memory-mapped, by epoch.
        keeps_all: whether `opened` keeps every epoch that was read. If False, it keeps only the latest one.
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
    has_weights: bool = False
    has_cutouts: bool = False
    image_digests: ImageDigests | None = None
    image_list: Path | None = None
    class_list: list[str] | None = None
    class_names: str | None = None
    file_digests: bool = False  # whether the folder has digests of the label files; --verify-labels needs them
    described: Sequence[str] = ()  # names of the attributes that `provenance` reports

    def __init__(self, path: str | Path, fkd_seed: int, verify: bool) -> None:
        if verify and not self.file_digests:
            raise InputError(f"--verify-labels needs packed labels, which have digests; pack {path} first")
        self.path, self.fkd_seed, self.verify = Path(path), fkd_seed, verify
        self.settings: dict[str, Any] = {}
        self.opened: dict[int, Any] = {}
        self.keeps_all = False

    def __getstate__(self) -> dict[str, Any]:
        # do not send opened files to data-loading worker processes: each worker opens the files itself
        return self.__dict__ | {"opened": {}}

    @abstractmethod
    def name(self, epoch: int, batch: int) -> str:
        """Return the path of the file that holds a batch, relative to the label folder."""

    @abstractmethod
    def read(self, epoch: int, batch: int) -> BatchLabels:
        """Return the labels of one batch. The image numbers, `index`, are always filled in.

        Raises:
            InputError: the file is missing or damaged, or disagrees with the rest of the labels.
        """

    def file(self, epoch: int, batch: int = 0) -> Path:
        """Return the path of the file that holds a batch."""
        return self.path / self.name(epoch, batch)

    def names(self, epochs: Iterable[int]) -> Iterator[str]:
        """Yield the path of every file that holds batches of `epochs`, relative to the label folder."""
        names = (self.name(epoch, batch) for epoch in epochs for batch in range(self.batches(epoch)))
        # if one file holds all batches of an epoch, yield its name only once
        return (name for name, _ in itertools.groupby(names))

    def batches(self, epoch: int) -> int:
        """Return the number of batches of a stored epoch.

        Labels of LPLD and LPQLD are one long list of batches, cut into epochs; their last epoch may have fewer.
        """
        return self.batches_per_epoch

    def stored_batches(self) -> int:
        """Return the number of batches of all stored epochs."""
        return sum(map(self.batches, range(self.epochs)))

    def rows(self, epoch: int, batch: int) -> int:
        """Return the number of rows of a batch; the last batch of an epoch may be smaller."""
        return min(self.batch_size, self.num_images - batch * self.batch_size)

    def random_access(self) -> None:
        """Keep in the cache every epoch that is opened from now on, so that batches can be read in any order."""
        self.keeps_all = True

    def keep_open(self, epoch: int, content: Any) -> Any:
        """Cache the content of an epoch and return the content.

        All other epochs are first dropped from the cache, unless `keeps_all` is True.
        """
        if not self.keeps_all:
            self.opened.clear()
        self.opened[epoch] = content
        return content

    def set_epochs(self, stored: set[int], stated: Iterable[int] = ()) -> None:
        """Set `epochs` and `gap` (see the class) from the stored epochs and those that a manifest lists.

        Args:
            stored: numbers of the stored epochs.
            stated: numbers of the epochs that a manifest lists, whether their files are stored or not.
        """
        self.epochs, self.gap = epochs_without_gap(stored), find_gap(stored, self.epoch_name, stated)

    def epoch_name(self, epoch: int) -> str:
        """Return the name of the file or folder that holds an epoch, for messages."""
        return self.name(epoch, 0)

    def refuse_gap(self) -> None:
        """Raise InputError if `gap` names missing epochs.

        Without this check, training would silently use only the epochs before the gap.
        """
        if self.gap:
            raise InputError(
                f"{self.path} lacks {self.gap} (epochs stored before that: {self.epochs}); copy the labels again, or "
                "run relabel_FKD.py again to finish them"
            )

    def check_complete(self, epochs: Iterable[int]) -> None:
        """Raise InputError if a file that holds batches of `epochs` is missing. No file is opened."""
        for name in self.names(epochs):
            if not (self.path / name).is_file():
                raise InputError(f"{self.path / name} is missing; copy the labels again or run relabel_FKD.py")

    def check(self, epoch: int) -> None:
        """Read all batches of an epoch; raise InputError if a batch is faulty."""
        for batch in range(self.batches(epoch)):
            self.read(epoch, batch)

    def state_classes(self, num_classes: int) -> None:
        """Set the number of classes, for labels whose files do not state this number."""
        self.num_classes, self.num_classes_stated = num_classes, True

    def provenance(self) -> dict[str, Any]:
        """Return a description of these labels, to be written to summary.json."""
        held = {name: True for name in ("has_weights", "has_cutouts") if getattr(self, name)}
        return {"path": str(self.path)} | {key: getattr(self, key) for key in self.described} | held

    def digest(self, epochs: Iterable[int] | None = None) -> str:
        """Return a digest that identifies the labels independently of the folder's path.

        Args:
            epochs: epochs that the digest covers (default: all stored). The digest does not depend on other epochs.

        Raises:
            InputError: a file of these epochs is missing.
        """
        names = self.names(range(self.epochs) if epochs is None else epochs)
        return digest_of_labels(self.path, names, *([] if self.image_list is None else [digest_of(self.image_list)]))

    def legacy_digest(self) -> str:
        """Return the digest that earlier releases computed from only the first label file and the list of images."""
        first = digest_of(self.file(0))
        return first if self.image_list is None else digest_of_text(first + digest_of(self.image_list))


def epochs_without_gap(stored: set[int]) -> int:
    """Return the number of epochs before the first missing one: 2 if epochs 0, 1 and 3 are stored."""
    return next(epoch for epoch in itertools.count() if epoch not in stored)


def find_gap(stored: set[int], name: Callable[[int], str], stated: Iterable[int] = ()) -> str | None:
    """Return a text that names the missing epochs; return None if none is missing.

    All epochs from 0 to the highest number in `stored` and `stated` are expected; those not in `stored` are missing.

    Args:
        stored: numbers of the stored epochs.
        name: function that returns the name of an epoch's file or folder.
        stated: numbers of the epochs that a manifest lists.
    """
    number = max(stored.union(stated), default=-1) + 1 - len(stored)
    missing = (name(epoch) for epoch in itertools.count() if epoch not in stored)
    shown = ", ".join(itertools.islice(missing, min(number, NAMED)))
    return (f"{shown} and {number - NAMED} more" if number > NAMED else shown) or None


def empty_folder(path: str | Path, image_digests: ImageDigests | None, settings: dict[str, Any] | None = None) -> Path:
    """Prepare the folder of new labels: create it if needed, and write the image digests into it. Return its path.

    Args:
        path: the folder, which must be empty or not exist yet.
        image_digests: digests of the images; None if unknown. If None, neither digests nor settings are written.
        settings: settings with which the labels are made, written to the same file as the digests.

    Raises:
        InputError: the folder is not empty, or cannot be created.
    """
    path = Path(path)
    make_folder(path)
    if any(path.iterdir()):
        raise InputError(f"{path} is not empty; give a new folder, or delete the labels in it")
    if image_digests is not None:
        write_image_digests(path, image_digests, settings)
    return path
