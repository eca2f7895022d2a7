"""Formats `lpld` and `lpqld`: one file `batch_{n}.tar` per batch in one folder, and `sampler_indices_batch.json`.

LPLD (Xiao and He, NeurIPS 2024) prunes labels: it stores fewer batches than training needs, and training uses each
batch several times. LPQLD also drops all but the k largest logits of each row. The stored batches are not grouped into
epochs; each epoch of training draws its batches from all of them. The JSON file lists the images of each batch. Labels
for ImageNet-21K hold coloured cutouts in place of flips.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from utils.labels.batch_items import parse_items, read_json_indices, small_items
from utils.labels.digests import ImageDigests, read_image_digests
from utils.labels.packed_codec import refuse_beyond_half
from utils.labels.store import SAMPLED, LabelStore, empty_folder
from utils.labels.types import Answers, BatchLabels, TopK, values_of
from utils.labels.views import index_of
from utils.system.errors import InputError
from utils.system.files import atomic_file
from utils.system.safe_load import load_archive, save_archive

INDICES = "sampler_indices_batch.json"
BATCH_FILE = re.compile(r"batch_(\d+)\.tar")


def is_flat(path: Path) -> bool:
    """Return whether a folder holds labels of format `lpld` or `lpqld`."""
    return (path / INDICES).exists() or any(BATCH_FILE.fullmatch(name) for name in os.listdir(path))


def kind_of(answers: Answers) -> str:
    """Return the format of a batch: `lpqld` if only the k largest logits of a row are stored, else `lpld`."""
    return "lpqld" if isinstance(answers, TopK) else "lpld"


def highest_class(answers: Answers) -> int:
    """Return the highest class that has a logit: C - 1 if all logits are stored, else the highest id in the `TopK`."""
    return int(answers.classes.max()) if isinstance(answers, TopK) else values_of(answers).shape[1] - 1


class FlatStore(LabelStore):
    """A label folder in the format of LPLD or LPQLD: batch files that are not grouped into epochs.

    The interface of a `LabelStore` needs epochs. A stored epoch is therefore defined as num_images // batch_size (at
    least 1) consecutive batches; the last stored epoch may have fewer.

    Args:
        path: the folder given as --fkd-path.
        fkd_seed: seed of the random batch order of training; this class only reports it, in `provenance`.
        verify: must be False, because the files have no digests.

    Raises:
        InputError: the batch files do not match the list of images, the first batch cannot be used, or `verify` is
            True.
    """

    label_order, has_epochs = SAMPLED, False
    described = ("dialect", "batch_size", "num_images", "num_classes", "keep_topk", "mix_type", "fkd_seed")

    def __init__(self, path: str | Path, fkd_seed: int = 42, verify: bool = False) -> None:
        super().__init__(path, fkd_seed, verify)
        self.image_list = self.path / INDICES
        images = read_json_indices(self.image_list)
        self.numbers = list(images)
        self._compare_files(set(images))
        self.images = list(images.values())
        self.batch_size = max(map(len, self.images))
        self.num_images = max(map(max, self.images)) + 1
        self.batches_per_epoch = max(1, min(self.num_images // self.batch_size, len(self.images)))
        self.epochs = -(-len(self.images) // self.batches_per_epoch)
        self.image_digests = read_image_digests(self.path, self.num_images)
        first = self._load(0)
        values = values_of(first.logits)
        self.dialect, self.mix_type, self.keep_topk = kind_of(first.logits), first.mix.type, values.shape[1]
        self.logits_dtype, self.has_cutouts = values.dtype, first.augment is not None
        self.num_classes = highest_class(first.logits) + 1
        self.num_classes_stated = self.dialect == "lpld"
        if self.num_classes < self.keep_topk:
            raise InputError(f"{self.file(0, 0)} keeps {self.keep_topk} logits of fewer classes; copy the labels again")

    def _compare_files(self, listed: set[int]) -> None:
        """Raise InputError unless the folder holds exactly the batch files whose numbers are in `listed`."""
        stored = {int(m[1]) for m in map(BATCH_FILE.fullmatch, os.listdir(self.path)) if m}
        missing, unknown = listed - stored, stored - listed
        if missing:
            raise InputError(
                f"{self.path / f'batch_{min(missing)}.tar'} is missing ({len(missing)} of {len(listed)} batches that "
                f"{INDICES} lists); copy the labels again"
            )
        if unknown:
            raise InputError(
                f"{self.path / INDICES} lists no images for batch_{min(unknown)}.tar ({len(unknown)} of {len(stored)} "
                "files); they belong to different label sets, so copy the labels again"
            )

    def _place(self, epoch: int, batch: int) -> int:
        return epoch * self.batches_per_epoch + batch

    def batches(self, epoch: int) -> int:
        """Return the number of batches of a stored epoch; the last stored epoch may have fewer than the others."""
        return min(self.batches_per_epoch, len(self.images) - epoch * self.batches_per_epoch)

    def rows(self, epoch: int, batch: int) -> int:
        """Return the number of rows of a batch: the number of images that the JSON file lists for the batch."""
        return len(self.images[self._place(epoch, batch)])

    def name(self, epoch: int, batch: int) -> str:
        """Return the name of the file that holds a batch."""
        return f"batch_{self.numbers[self._place(epoch, batch)]}.tar"

    def _load(self, place: int) -> BatchLabels:
        path = self.file(*divmod(place, self.batches_per_epoch))
        labels = parse_items(load_archive(path), path)
        if labels.weights is not None:
            raise InputError(f"{path} holds weights (7th item), which only epoch folders may; copy the labels again")
        return labels

    def read(self, epoch: int, batch: int) -> BatchLabels:
        """Return one batch with its image numbers.

        Raises:
            InputError: the batch file is missing or damaged, or disagrees with the rest of the labels.
        """
        labels = self._load(self._place(epoch, batch))
        kind, width = kind_of(labels.logits), values_of(labels.logits).shape[1]
        found = (len(labels), width, kind, labels.mix.type, labels.augment is not None)
        stated = (self.rows(epoch, batch), self.keep_topk, self.dialect, self.mix_type, self.has_cutouts)
        if found != stated:
            raise InputError(
                f"{self.file(epoch, batch)} disagrees with {INDICES} or the others: (rows, answers a row, dialect, mix "
                f"type, cutouts) is {found}, expected {stated}; the folder mixes two label sets, so copy it again"
            )
        if self.num_classes_stated and highest_class(labels.logits) >= self.num_classes:
            raise InputError(
                f"{self.file(epoch, batch)} names class {highest_class(labels.logits)}, beyond the "
                f"{self.num_classes} classes of the student; give --num-classes, the number of the teacher's classes"
            )
        return replace(labels, index=torch.tensor(self.images[self._place(epoch, batch)]))

    def check(self, epoch: int) -> None:
        """Read all batches of a stored epoch; raise InputError if a batch is faulty or holds an image twice."""
        for batch in range(self.batches(epoch)):
            self.read(epoch, batch)
            images = self.images[self._place(epoch, batch)]
            if len(set(images)) < len(images):
                raise InputError(f"{self.path / INDICES} names an image twice in {self.file(epoch, batch).name}")

    def provenance(self) -> dict[str, Any]:
        """Return a description of these labels for summary.json, including the number of stored batches."""
        return {"path": str(self.path), "batches": len(self.images)} | super().provenance()


class FlatWriter:
    """Writer of a label folder in LPLD's format, or in LPQLD's if the batches hold only the k largest logits.

    Args:
        path: the folder; it is created if it does not exist.
        image_digests: digests of the images, written to a file beside the labels; None if they are unknown.

    Raises:
        InputError: the folder is not empty.
    """

    def __init__(self, path: str | Path, image_digests: ImageDigests | None = None) -> None:
        self.path = empty_folder(path, image_digests)
        self.images: list[list[int]] = []

    def write(self, _epoch: int, batches: list[BatchLabels]) -> None:
        """Write each batch to the next file `batch_{n}.tar`.

        Raises:
            InputError: a logit does not fit in half precision.
        """
        for labels in batches:
            refuse_beyond_half(values_of(labels.logits), "logit", "train on the packed labels as they are")
            items = small_items(labels)
            if isinstance(labels.logits, TopK):
                values, order = labels.logits.values.sort(dim=1, descending=True)
                items += [values.half(), labels.logits.classes.gather(1, order).short()]
            else:
                items.append(values_of(labels.logits).half().clone())
            save_archive(self.path / f"batch_{len(self.images)}.tar", items)
            self.images.append(index_of(labels).tolist())

    def finish(self) -> None:
        """Write `sampler_indices_batch.json`, the list of each batch's images. Call this after the last batch."""
        with atomic_file(self.path / INDICES) as temporary:
            Path(temporary).write_text(json.dumps({str(n): images for n, images in enumerate(self.images)}))
