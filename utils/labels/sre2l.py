"""Formats `sre2l`, `prism`, `wmdd` and `edc`: one file `epoch_{e}/batch_{b}.tar` per batch, saved with `torch.save`.

A batch is a list of items. `dialect_of` tells which format a batch has.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from utils.labels.batch_items import parse_items, read_json_indices, second_item
from utils.labels.digests import ImageDigests, read_image_digests, read_settings
from utils.labels.packed_codec import refuse_beyond_half
from utils.labels.store import LabelStore, empty_folder
from utils.labels.types import BatchLabels, values_of
from utils.labels.views import ReferenceOrder, index_of
from utils.system.errors import InputError
from utils.system.files import digest_of
from utils.system.safe_load import load_archive, save_archive

ORDER = "sampler_indices_epoch.json"  # LPLD's file {"EPOCH": [image, …]}: the order of the images in each epoch
EPOCH_FOLDER = re.compile(r"epoch_(\d+)")
BATCH_FILE = re.compile(r"batch_(\d+)\.tar")
WITHOUT_INDEX = "sre2l", "wmdd"  # formats whose files do not state image numbers


def dialect_of(items: list[Any]) -> str:
    """Return the format of a batch: `sre2l`, `prism`, `wmdd` or `edc`.

    6 items: `sre2l`. 7 items: `sre2l` if the 7th item is None, `wmdd` if it holds weights, else `prism`. 8 items:
    `edc`. The items must have passed `parse_items`.
    """
    if len(items) == 8:
        return "edc"
    if len(items) == 6 or items[6] is None:
        return "sre2l"
    return "wmdd" if items[6].is_floating_point() else "prism"


class TarStore(LabelStore):
    """A label folder in the format of SRe2L, PRISM, WMDD or EDC: files `epoch_{e}/batch_{b}.tar`.

    Args:
        path: the folder given as --fkd-path.
        fkd_seed: seed that determines the order of images, if no file in the folder states the order.
        verify: must be False, because the files have no digests.

    Raises:
        InputError: the folder holds no labels, the first epoch cannot be used, or `verify` is True.
    """

    described = ("dialect", "epochs", "batch_size", "num_images", "num_classes", "mix_type", "fkd_seed")

    def __init__(self, path: str | Path, fkd_seed: int = 42, verify: bool = False) -> None:
        super().__init__(path, fkd_seed, verify)
        self.set_epochs({int(m[1]) for m in map(EPOCH_FOLDER.fullmatch, os.listdir(self.path)) if m})
        batches = self._batch_numbers(0) if self.epochs else set()
        if 0 not in batches:
            raise InputError(
                f"--fkd-path {self.path} holds no epoch_0/batch_0.tar; give the folder that holds epoch_0, epoch_1, …"
            )
        missing = next(batch for batch in range(len(batches) + 1) if batch not in batches)
        if missing < len(batches):
            raise InputError(f"{self.file(0, missing)} is missing; copy the labels again or run relabel_FKD.py")
        self.batches_per_epoch = len(batches)
        items = load_archive(self.file(0, 0))
        first = parse_items(items, self.file(0, 0))
        last = first
        if self.batches_per_epoch > 1:
            last = parse_items(load_archive(self.file(0, max(batches))), self.file(0, max(batches)))
        if not isinstance(first.logits, torch.Tensor):
            raise InputError(f"{self.file(0, 0)} holds class ids, which only a flat folder may; copy the labels again")
        self.dialect = dialect_of(items)
        self.batch_size, self.num_classes = first.logits.shape
        self.num_images = self.batch_size * max(batches) + len(last)
        self.mix_type = first.mix.type
        self.has_weights, self.has_cutouts = first.weights is not None, first.augment is not None
        self.logits_dtype = first.logits.dtype
        self.keep_topk = self.num_classes
        self.image_digests = read_image_digests(self.path, self.num_images)
        self.settings = read_settings(self.path)
        self.class_list = self.settings.get("classes")
        self.order: Callable[[int], torch.Tensor] = ReferenceOrder(self.num_images, fkd_seed)
        if self.dialect == "sre2l" and (self.path / ORDER).exists():
            self.image_list = self.path / ORDER
            self.order = self._listed_order(self.image_list)

    def _listed_order(self, file: Path) -> Callable[[int], torch.Tensor]:
        """Read LPLD's file that lists the images of each epoch in order.

        Returns:
            a function that takes an epoch and returns the epoch's image numbers in order, int64 [N].

        Raises:
            InputError: the file cannot be read, or an epoch skips or repeats an image.
        """
        listed = read_json_indices(file)
        for epoch in range(self.epochs):
            if sorted(listed.get(epoch, [])) != list(range(self.num_images)):
                raise InputError(
                    f"{file}: epoch {epoch} does not visit each of {self.num_images} images once; copy the labels again"
                )
        return {epoch: torch.tensor(listed[epoch]) for epoch in range(self.epochs)}.__getitem__

    def name(self, epoch: int, batch: int) -> str:
        """Return the path of the file that holds a batch, relative to the label folder."""
        return f"epoch_{epoch}/batch_{batch}.tar"

    def epoch_name(self, epoch: int) -> str:
        """Return the name of the folder that holds the batch files of an epoch."""
        return f"epoch_{epoch}"

    def _batch_numbers(self, epoch: int) -> set[int]:
        try:
            names = os.listdir(self.path / f"epoch_{epoch}")
        except OSError as error:
            raise InputError(
                f"{self.path / f'epoch_{epoch}'} cannot be read ({error.strerror}); copy the labels again"
            ) from None
        return {int(m[1]) for m in map(BATCH_FILE.fullmatch, names) if m}

    def check_complete(self, epochs: Iterable[int]) -> None:
        """Raise InputError if one of `epochs` lacks a batch file, or has more batch files than the first epoch."""
        for epoch in epochs:
            found, wanted = self._batch_numbers(epoch), set(range(self.batches_per_epoch))
            missing, more = wanted - found, found - wanted
            if missing:
                raise InputError(
                    f"{self.file(epoch, min(missing))} is missing ({len(missing)} of {self.batches_per_epoch} "
                    "batch files of this epoch); copy the labels again or run relabel_FKD.py"
                )
            if more:
                raise InputError(
                    f"{self.file(epoch, min(more))} is one batch more than {self.file(0, 0).parent} holds; that epoch "
                    "is incomplete, or the folder mixes two label sets, so copy the labels again"
                )

    def read(self, epoch: int, batch: int) -> BatchLabels:
        """Return one batch with its image numbers.

        Raises:
            InputError: the batch file is missing or damaged, or disagrees with the rest of the labels.
        """
        items = load_archive(self.file(epoch, batch))
        labels = parse_items(items, self.file(epoch, batch))
        cut = labels.augment is not None
        stated = (self.rows(epoch, batch), self.num_classes, self.mix_type, self.dialect, self.has_cutouts)
        found = (len(labels), values_of(labels.logits).shape[1], labels.mix.type, dialect_of(items), cut)
        if found != stated:
            raise InputError(
                f"{self.file(epoch, batch)} disagrees with the rest of the labels: (rows, classes, mix type, dialect, "
                f"cutouts) is {found}, expected {stated}; the folder mixes two label sets, so make them again"
            )
        if labels.index is None:
            start = batch * self.batch_size
            index = self.order(epoch)[start : start + len(labels)]
            return replace(labels, index=index)
        if labels.index.max() >= self.num_images:
            raise InputError(
                f"{self.file(epoch, batch)} names image {labels.index.max().item()}, but the labels cover "
                f"{self.num_images} images; the file belongs to another label set"
            )
        return labels

    def check(self, epoch: int) -> None:
        """Read all batches of an epoch.

        Raises:
            InputError: a batch is faulty, or the epoch skips or repeats an image.
        """
        index = torch.cat([index_of(self.read(epoch, batch)) for batch in range(self.batches_per_epoch)])
        if len(index.unique()) != self.num_images:
            raise InputError(f"{self.file(epoch, 0).parent} does not visit every image once; get the epoch again")

    def legacy_digest(self) -> str:
        """Return the digest that earlier releases computed: it covers only the first batch file.

        The list of images, if the folder has one, is left out, because earlier releases did not read it.
        """
        return digest_of(self.file(0))


class TarWriter:
    """Writer of `epoch_{e}/batch_{b}.tar` files. A killed process leaves no partial file.

    Args:
        path: the folder to write to; it is created if it does not exist.
        dtype: dtype of the stored logits, float16 or float32.
        with_index: whether to store a 7th item: the weights of the rows if the batches have any, else the image
            numbers.
        leads: True for the process that creates and checks the folder; False for all other processes.
        image_digests: digests of the images, written to a file beside the labels; None if they are unknown.
        settings: settings with which the labels are made, written to the same file as the digests.

    Raises:
        InputError: the folder holds other files, or cannot be written to.
    """

    def __init__(
        self,
        path: str | Path,
        dtype: torch.dtype = torch.float16,
        with_index: bool = True,
        leads: bool = True,
        image_digests: ImageDigests | None = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.dtype, self.with_index = Path(path), dtype, with_index
        if not leads:
            return
        empty_folder(self.path, image_digests, settings)

    def missing(self, epochs: int) -> list[int]:
        """Return all epochs from 0 to `epochs` - 1, because this writer always starts with an empty folder."""
        return list(range(epochs))

    def write(self, epoch: int, batches: Sequence[BatchLabels]) -> None:
        """Write the files of one epoch. `batches` holds the `BatchLabels` of each batch, in order.

        Raises:
            InputError: a logit does not fit in half precision; no file of this epoch is then written.
        """
        if self.dtype == torch.float16:
            for labels in batches:
                refuse_beyond_half(values_of(labels.logits), "logit")
        folder = self.path / f"epoch_{epoch}"
        folder.mkdir(exist_ok=True)
        for batch, labels in enumerate(batches):
            mix = labels.mix
            box = None if mix.box is None else list(mix.box)
            items = [labels.coords, second_item(labels), mix.partner, mix.lam, box]
            items += [
                values_of(labels.logits).to(self.dtype),
                labels.index if labels.weights is None else labels.weights,
            ]
            # a tensor may be a slice of a whole epoch's tensor; without clone, torch.save would store the whole epoch
            items = [item.clone() if isinstance(item, torch.Tensor) else item for item in items]
            save_archive(folder / f"batch_{batch}.tar", items if self.with_index else items[:6])

    def finish(self) -> None:
        """Do nothing, because this format has no manifest to complete after the last epoch."""
