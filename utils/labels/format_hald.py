"""Format `hald`: `epoch_{e}.tar`, a list of the epoch's batches, and `sampler_indices_dict.pt`.

HALD (2025) stores probabilities, softmax(logits / T) in half precision, not logits; T is not in the files.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from utils.labels.batch import BatchLabels, values_of
from utils.labels.batch_items import parse_items
from utils.labels.file_digests import digest_of_labels
from utils.labels.image_digests import read_image_digests
from utils.labels.image_indices import read_saved_indices
from utils.labels.store import SHUFFLED, epochs_without_gap, find_gap
from utils.system.archive import load_archive
from utils.system.errors import InputError
from utils.system.files import digest_of, digest_of_text

INDICES = "sampler_indices_dict.pt"
EPOCH_FILE = re.compile(r"epoch_(\d+)\.tar")


def is_hald(path: Path) -> bool:
    """Whether a folder is of this format."""
    return (path / INDICES).exists() or any(EPOCH_FILE.fullmatch(name) for name in os.listdir(path))


class HaldStore:
    """A folder of HALD's epoch files; a `LabelStore` of probabilities.

    Epochs that were read stay in memory where batches are drawn from all of them.

    Args:
        path: the folder given as --fkd-path.
        fkd_seed: seed of the drawing, for the record.
        verify: refused, since there are no digests.

    Raises:
        InputError: files and list of images disagree, or the first epoch cannot be used.
    """

    dialect, answers, logits_dtype = "hald", "probabilities", torch.float16
    class_names = class_list = None  # not stated by this format
    label_order, has_epochs, num_classes_stated = SHUFFLED, True, True

    def __init__(self, path: str | Path, fkd_seed: int = 42, verify: bool = False) -> None:
        if verify:
            raise InputError(f"--verify-labels needs packed labels, which have digests; pack {path} first")
        self.path, self.fkd_seed = Path(path), fkd_seed
        self.images = read_saved_indices(self.path / INDICES)
        stored = {int(m[1]) for m in map(EPOCH_FILE.fullmatch, os.listdir(self.path)) if m}
        self.epochs, self.gap = epochs_without_gap(stored), find_gap(stored, "epoch_{}.tar".format)
        unknown = stored ^ self.images.keys()
        if unknown or not self.epochs:
            raise InputError(
                f"{self.path} does not hold an epoch_{{e}}.tar for each epoch of {INDICES} (epoch "
                f"{min(unknown, default=0)} is in one of them only); copy the labels again"
            )
        self.num_images = len(self.images[0])
        self._check_images()
        self.image_digests = read_image_digests(self.path, self.num_images)
        self.opened: dict[int, list[BatchLabels]] = {}
        self.keeps_all = False
        items = self._items(0)
        first = self._parse(items[0], 0, 0)
        self.batch_size, self.num_classes = values_of(first.logits).shape
        self.keep_topk, self.mix_type = self.num_classes, first.mix.type
        self.batches_per_epoch = -(-self.num_images // self.batch_size)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": {}}  # a worker reads the files itself

    def _check_images(self) -> None:
        """Every epoch must visit every image once."""
        for epoch, images in self.images.items():
            if sorted(images) != list(range(self.num_images)):
                raise InputError(
                    f"{self.path / INDICES}: epoch {epoch} does not visit each of {self.num_images} images once; copy "
                    "the labels again"
                )

    def _items(self, epoch: int) -> list[Any]:
        path = self.file(epoch)
        items = load_archive(path)
        if not isinstance(items, list) or not items:
            raise InputError(f"{path} is not a list of batches; copy the labels again")
        return items

    def _parse(self, items: Any, epoch: int, batch: int) -> BatchLabels:
        return parse_items(items, f"{self.file(epoch)} (batch {batch})", self.answers)

    def _open(self, epoch: int) -> list[BatchLabels]:
        """Read an epoch whole, and check it against the first one."""
        if epoch in self.opened:
            return self.opened[epoch]
        batches = [self._parse(items, epoch, batch) for batch, items in enumerate(self._items(epoch))]
        stated = [(self.rows(epoch, batch), self.num_classes, self.mix_type) for batch in range(self.batches_per_epoch)]
        found = [(len(labels), values_of(labels.logits).shape[1], labels.mix.type) for labels in batches]
        if found != stated:
            raise InputError(
                f"{self.file(epoch)} disagrees with {INDICES} or with epoch_0.tar in its batches' (rows, classes, mix "
                "type); the folder mixes two label sets, so copy it again"
            )
        if not self.keeps_all:
            self.opened.clear()
        indices = torch.tensor(self.images[epoch]).split(self.batch_size)
        self.opened[epoch] = [replace(labels, index=index) for labels, index in zip(batches, indices, strict=True)]
        return self.opened[epoch]

    def random_access(self) -> None:
        """As `LabelStore.random_access`."""
        self.keeps_all = True

    def batches(self, _epoch: int) -> int:
        """As `LabelStore.batches`."""
        return self.batches_per_epoch

    def rows(self, _epoch: int, batch: int) -> int:
        """As `LabelStore.rows`."""
        return min(self.batch_size, self.num_images - batch * self.batch_size)

    def file(self, epoch: int, _batch: int | None = None) -> Path:
        """As `LabelStore.file`."""
        return self.path / f"epoch_{epoch}.tar"

    def check_complete(self, epochs: Iterable[int]) -> None:
        """As `LabelStore.check_complete`; opening has looked for all."""

    def read(self, epoch: int, batch: int) -> BatchLabels:
        """As `LabelStore.read`."""
        return self._open(epoch)[batch]

    def check(self, epoch: int) -> None:
        """As `LabelStore.check`."""
        self._open(epoch)

    def state_classes(self, num_classes: int) -> None:
        """As `LabelStore.state_classes`: they are stated."""

    def provenance(self) -> dict[str, Any]:
        """As `LabelStore.provenance`."""
        keys = ("dialect", "answers", "epochs", "batch_size", "num_images", "num_classes", "mix_type", "fkd_seed")
        return {"path": str(self.path)} | {key: getattr(self, key) for key in keys}

    def digest(self, epochs: Iterable[int] | None = None) -> str:
        """As `LabelStore.digest`; the list of images belongs to it."""
        names = (self.file(epoch).name for epoch in (range(self.epochs) if epochs is None else epochs))
        return digest_of_labels(self.path, names, digest_of(self.path / INDICES))

    def legacy_digest(self) -> str:
        """As `LabelStore.legacy_digest`: of the first epoch and of the list of images."""
        return digest_of_text(digest_of(self.file(0)) + digest_of(self.path / INDICES))
