"""Format `hald`: files `epoch_{e}.tar`, each with all batches of one epoch, and `sampler_indices_dict.pt`.

The files hold probabilities, softmax(logits / T) in half precision, instead of logits. They do not state the
temperature T. `sampler_indices_dict.pt` lists the images of every epoch. HALD: arXiv 2512.15647.
"""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from utils.labels.batch_items import parse_items, read_saved_indices, small_items
from utils.labels.digests import ImageDigests, read_image_digests
from utils.labels.store import SHUFFLED, LabelStore, empty_folder
from utils.labels.types import BatchLabels, values_of
from utils.labels.views import index_of
from utils.system.errors import InputError
from utils.system.safe_load import load_archive, save_archive

INDICES = "sampler_indices_dict.pt"
EPOCH_FILE = re.compile(r"epoch_(\d+)\.tar")


def is_hald(path: Path) -> bool:
    """Return whether a folder holds labels of format `hald`."""
    return (path / INDICES).exists() or any(EPOCH_FILE.fullmatch(name) for name in os.listdir(path))


class HaldStore(LabelStore):
    """A label folder in HALD's format, which holds probabilities.

    If training draws batches from all epochs, every epoch that was read stays in memory.

    Args:
        path: the folder given as --fkd-path.
        fkd_seed: seed of the random batch order of training; this class only reports it, in `provenance`.
        verify: must be False, because the files have no digests.

    Raises:
        InputError: the epoch files do not match the list of images, the first epoch cannot be used, or `verify` is
            True.
    """

    dialect, answers, logits_dtype, label_order = "hald", "probabilities", torch.float16, SHUFFLED
    described = ("dialect", "answers", "epochs", "batch_size", "num_images", "num_classes", "mix_type", "fkd_seed")

    def __init__(self, path: str | Path, fkd_seed: int = 42, verify: bool = False) -> None:
        super().__init__(path, fkd_seed, verify)
        self.image_list = self.path / INDICES
        self.images = read_saved_indices(self.image_list)
        stored = {int(m[1]) for m in map(EPOCH_FILE.fullmatch, os.listdir(self.path)) if m}
        self.set_epochs(stored)
        unknown = stored ^ self.images.keys()
        if unknown or not self.epochs:
            raise InputError(
                f"{self.path} does not hold an epoch_{{e}}.tar for each epoch of {INDICES} (epoch "
                f"{min(unknown, default=0)} is in one of them only); copy the labels again"
            )
        self.num_images = len(self.images[0])
        self._check_images()
        self.image_digests = read_image_digests(self.path, self.num_images)
        items = self._items(0)
        first = self._parse(items[0], 0, 0)
        self.batch_size, self.num_classes = values_of(first.logits).shape
        self.keep_topk, self.mix_type = self.num_classes, first.mix.type
        self.batches_per_epoch = -(-self.num_images // self.batch_size)

    def _check_images(self) -> None:
        """Raise InputError unless every epoch visits every image once."""
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
        """Read an epoch and return its batches, with the image numbers filled in.

        Raises:
            InputError: the numbers of rows in the batches contradict the list of images; or the number of classes or
                the type of mixing differs from the first epoch.
        """
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
        indices = torch.tensor(self.images[epoch]).split(self.batch_size)
        indexed = [replace(labels, index=index) for labels, index in zip(batches, indices, strict=True)]
        return self.keep_open(epoch, indexed)

    def name(self, epoch: int, _batch: int) -> str:
        """Return the name of the file that holds an epoch."""
        return f"epoch_{epoch}.tar"

    def read(self, epoch: int, batch: int) -> BatchLabels:
        """Return one batch, with log probabilities in place of logits; raise InputError if its file is damaged."""
        return self._open(epoch)[batch]


class HaldWriter:
    """Writer of a label folder in HALD's format. The batches to write must hold log probabilities in place of logits.

    Args:
        path: the folder; it is created if it does not exist.
        image_digests: digests of the images, written to a file beside the labels; None if they are unknown.

    Raises:
        InputError: the folder is not empty.
    """

    def __init__(self, path: str | Path, image_digests: ImageDigests | None = None) -> None:
        self.path = empty_folder(path, image_digests)
        self.images: dict[str, list[int]] = {}

    def write(self, epoch: int, batches: list[BatchLabels]) -> None:
        """Write all batches of one epoch to `epoch_{epoch}.tar`."""
        items = []
        for labels in batches:
            coords, flip, *_ = small_items(labels)
            partner, lam, box = labels.mix
            mix_items = [None if partner is None else partner.clone(), lam, None if box is None else list(box)]
            items.append([coords, flip, *mix_items, values_of(labels.logits).exp().half()])
        save_archive(self.path / f"epoch_{epoch}.tar", items)
        self.images[str(epoch)] = [image for labels in batches for image in index_of(labels).tolist()]

    def finish(self) -> None:
        """Write `sampler_indices_dict.pt`, the list of each epoch's images. Call this after the last epoch."""
        save_archive(self.path / INDICES, self.images)
