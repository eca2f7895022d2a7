"""Packed labels: one safetensors file per epoch and one `manifest.json`; no pickle anywhere.

Layout of a folder (N images, C classes, k columns stored per image, n batches per epoch):

    manifest.json             what the labels are, and a digest of every epoch file
    images.safetensors        which images the labels are about: pixel_digests u8 [N, 8], file_digests u8 [N, 8];
                              where views are drawn also sizes i32 [N, 2] (H, W), or [1, 2] if all are equal
    epoch_0000.safetensors    one file per epoch, rows in the order of training: see utils/labels/packed_tensors.py

Three independent savings (`Codec`): fewer bits per value, the k largest logits only, and *drawn*
views: what relabel_FKD.py drew is a pure function of (seed, epoch, batch), so crops, flips and mixes
need not be stored, only the image sizes, once. A digest of known draws guards against a library
that would draw differently.

Every file is written to a temporary name, fsynced and renamed: an epoch exists whole or not at all.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.labels.batch import BatchLabels, Mix, values_of
from utils.labels.batch_items import all_finite, parse_items
from utils.labels.drawn import DrawnViews
from utils.labels.file_digests import digest_of_file, digest_of_labels
from utils.labels.image_digests import IMAGES, NAMES, ImageDigests, read_image_digests
from utils.labels.image_order import ReferenceOrder
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import (
    EPOCH_FILE,
    MANIFEST,
    batches_per_epoch,
    digest_of_draws,
    epoch_name,
    images_tensors,
    kind_of,
    read_manifest,
    rows_of,
    shape_of,
)
from utils.labels.packed_tensors import Shape, Tensors, expand, expected_tensors, read_tensors
from utils.labels.store import epochs_without_gap, find_gap
from utils.labels.view_policy import ViewPolicy
from utils.system.errors import InputError
from utils.system.files import digest_of, digest_of_text


def unpack_small(tensors: Tensors) -> dict[str, Any]:
    """Turn what is small into what `read` returns, once per epoch: int64 indices, numbers, boxes."""
    ready: dict[str, Any] = dict(tensors)
    for name in ("index", "mix_index"):
        if name in ready:
            ready[name] = ready[name].long()
    if "mix_lam" in ready:
        ready["mix_lam"] = ready["mix_lam"].tolist()
    if "mix_bbox" in ready:
        ready["mix_bbox"] = [tuple(box) for box in ready["mix_bbox"].tolist()]
    return ready


def boxes_are_sound(boxes: torch.Tensor) -> bool:
    """Whether all (y1, x1, y2, x2) of int32 [n, 4] have their corners in order and none is negative."""
    return bool(((boxes[:, :2] >= 0) & (boxes[:, 2:] >= boxes[:, :2])).all())


def last_slots(form: Shape) -> torch.Tensor:
    """The highest slot of each row's batch: int64 [N]."""
    starts = torch.arange(form.rows) // form.batch_size * form.batch_size
    return (form.rows - starts).clamp_max(form.batch_size) - 1


class PackedStore:
    """Reads a packed folder; the interface of `TarStore`.

    Args:
        path: the folder given as --fkd-path.
        fkd_seed: seed of the image order where the labels have no index.
        verify: compare each epoch file with its digest when it is opened.

    Raises:
        InputError: the manifest or a needed file cannot be used.
    """

    dialect = "packed"

    def __init__(self, path: str | Path, fkd_seed: int = 42, verify: bool = False) -> None:
        self.path, self.fkd_seed, self.verify = Path(path), fkd_seed, verify
        self.manifest = manifest = read_manifest(path)
        self.codec = Codec(**manifest["codec"])
        self.logits_dtype = torch.float16 if self.codec.bits == 16 else torch.float32
        self.num_images, self.num_classes = manifest["num_images"], manifest["num_classes"]
        self.batch_size, self.mix_type = manifest["batch_size"], manifest["mix_type"]
        kind = kind_of(manifest)
        self.answers, self.label_order, self.pooled = kind["answers"], kind["label_order"], kind["batches"]
        self.has_epochs, self.num_classes_stated = self.pooled is None, kind["num_classes_stated"]
        self.batches_per_epoch, self.keep_topk = batches_per_epoch(manifest), shape_of(manifest).kept
        self.keeps_all = False
        stored = {int(m[1]) for m in map(EPOCH_FILE.fullmatch, os.listdir(path)) if m}
        self.epochs = epochs_without_gap(stored)
        entered = [int(m[1]) for m in map(EPOCH_FILE.fullmatch, manifest["digests"]) if m]
        self.gap = find_gap(stored, epoch_name, entered)
        if not self.epochs:
            raise InputError(f"{self.path} holds no {epoch_name(0)}; run relabel_FKD.py again to finish the labels")
        self.order = ReferenceOrder(self.num_images, fkd_seed)
        self.drawn = self._open_drawn() if self.codec.views == "drawn" else None
        self.image_digests = self._read_image_digests()
        self.opened: dict[int, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": {}}  # a worker maps the files itself

    def _open_drawn(self) -> tuple[DrawnViews, torch.Tensor]:
        try:
            policy = ViewPolicy(**self.manifest["policy"])
            same = digest_of_draws(policy) == self.manifest.get("draws")
        except (TypeError, ValueError, ArithmeticError, MemoryError):
            raise InputError(f"{self.path / MANIFEST} lacks the policy of its drawn views; copy it again") from None
        if not same:
            raise InputError(
                f"{self.path} leaves its views to be drawn again, and this numpy {np.__version__} draws others than "
                "the one that made it; use that numpy, or relabel with --views stored"
            )
        sizes = read_tensors(self.path / IMAGES, images_tensors(self.manifest))["sizes"]
        if sizes.dtype != torch.int32 or sizes.shape not in ((self.num_images, 2), (1, 2)) or (sizes < 1).any():
            raise InputError(f"{self.path / IMAGES} does not hold {self.num_images} image sizes; copy it again")
        sizes = sizes.expand(self.num_images, 2)  # one size is that of every image; takes no memory
        return DrawnViews(policy, self.num_images, self.batch_size), sizes

    def _read_image_digests(self) -> ImageDigests | None:
        """Read which images the labels are about, where the manifest says that it is known."""
        stated = images_tensors(self.manifest)
        if not self.manifest.get("has_image_digests"):
            return None
        digests = read_image_digests(self.path, self.num_images, stated - set(NAMES))
        if digests is None:
            raise InputError(f"{self.path / IMAGES} is missing; copy the labels again")
        return digests

    def file(self, epoch: int, _batch: int | None = None) -> Path:
        """Path of the file that holds an epoch."""
        return self.path / epoch_name(epoch)

    def check_complete(self, epochs: Iterable[int]) -> None:
        """Raise InputError for the first epoch file of `epochs` that is missing."""
        for epoch in epochs:
            if not self.file(epoch).is_file():
                raise InputError(f"{self.file(epoch)} is missing; copy the labels again or run relabel_FKD.py")

    def random_access(self) -> None:
        """As `LabelStore.random_access`: files stay mapped."""
        self.keeps_all = True

    def state_classes(self, num_classes: int) -> None:
        """As `LabelStore.state_classes`."""
        self.num_classes, self.num_classes_stated = num_classes, True

    def batches(self, epoch: int) -> int:
        """As `LabelStore.batches`."""
        return math.ceil(rows_of(self.manifest, epoch) / self.batch_size)

    def rows(self, epoch: int, batch: int) -> int:
        """Number of images in batch `batch`; the last one of an epoch may be shorter."""
        return min(self.batch_size, rows_of(self.manifest, epoch) - batch * self.batch_size)

    def open(self, epoch: int) -> dict[str, Any]:
        """Map an epoch's file and check it whole; the last one opened stays open."""
        if epoch in self.opened:
            return self.opened[epoch]
        form = shape_of(self.manifest, epoch)
        path, expected = self.file(epoch), expected_tensors(form)
        if self.verify and digest_of(path) != self.manifest["digests"].get(path.name):
            raise InputError(f"{path} does not match its digest in {MANIFEST}; copy the labels again")
        tensors = read_tensors(path, expected)
        for name, (dtypes, shape) in expected.items():
            if tensors[name].dtype not in dtypes or tuple(tensors[name].shape) != shape:
                found = f"{tensors[name].dtype} {list(tensors[name].shape)}"
                wanted = f"{' or '.join(map(str, dtypes))} {list(shape)}"
                raise InputError(f"{path}: {name} is {found}, not {wanted}; copy the labels again")
        try:
            tensors = expand(tensors, form)
        except ValueError as error:
            raise InputError(f"{path} holds impossible class ids: {error}; copy the labels again") from None
        self._check_values(path, tensors, form)
        if not self.keeps_all:
            self.opened.clear()
        self.opened[epoch] = unpack_small(tensors)
        return self.opened[epoch]

    def _check_values(self, path: Path, tensors: Tensors, form: Shape) -> None:
        """Raise InputError where an epoch's values are impossible."""

        def within(name: str, low: float, high: float | torch.Tensor) -> bool:
            return name not in tensors or bool(((tensors[name] >= low) & (tensors[name] <= high)).all())

        sound = {
            "non-finite values": all(all_finite(t) for t in tensors.values() if t.is_floating_point()),
            "image index": within("index", 0, self.num_images - 1),
            "class ids": within("classes", 0, form.classes - 1),
            "mixing ratios": within("mix_lam", 0, 1),
            "crop coords": within("coords", 0, 1 + 1e-4),
            "mix partners": within("mix_index", 0, last_slots(form)),
            "mix boxes": "mix_bbox" not in tensors or boxes_are_sound(tensors["mix_bbox"]),
        }
        wrong = [name for name, fine in sound.items() if not fine]
        if wrong:
            raise InputError(f"{path} holds impossible {' and '.join(wrong)}; copy the labels again")

    def read(self, epoch: int, batch: int) -> BatchLabels:
        """Return the `BatchLabels` of one batch, `index` filled in.

        Raises:
            InputError: the epoch's file is missing or damaged.
        """
        tensors = self.open(epoch)
        start = batch * self.batch_size
        rows = slice(start, start + self.rows(epoch, batch))
        logits = self.codec.decode(tensors, rows)
        if self.answers == "probabilities" and self.codec.holds_probabilities(self.num_classes):
            logits = values_of(logits).float().log()
        if self.drawn is not None:
            views, sizes = self.drawn
            drawn = views.read(epoch, batch)
            return drawn.labelled(logits, sizes[drawn.index].tolist())
        index = tensors["index"][rows] if "index" in tensors else self.order(epoch)[rows]
        mix = Mix()
        if self.mix_type != "none":
            box = tensors["mix_bbox"][batch] if self.mix_type == "cutmix" else None
            mix = Mix(tensors["mix_index"][rows], tensors["mix_lam"][batch], box)
        return BatchLabels(tensors["coords"][rows], tensors["flip"][rows], mix, logits, index)

    def check(self, epoch: int) -> None:
        """Check every batch of an epoch as strictly as a label file from a stranger."""
        for batch in range(self.batches(epoch)):
            labels = self.read(epoch, batch)
            logits = values_of(labels.logits)
            logits = logits.exp() if self.answers == "probabilities" else logits
            parse_items([labels.coords, labels.flip, *labels.mix, logits, labels.index], self.file(epoch))

    @property
    def class_names(self) -> str | None:
        """Digest of the class folder names that the labels were made for, or None."""
        return self.manifest["settings"].get("class_names")

    @property
    def settings(self) -> dict[str, Any]:
        """How the labels were made, the policy of their views included."""
        return {**self.manifest["settings"], **(self.manifest["policy"] or {})}

    @property
    def class_list(self) -> list[str] | None:
        """Names of the class folders that the labels were made for, in order, or None."""
        return self.manifest["settings"].get("classes")

    def digest(self, epochs: Iterable[int] | None = None) -> str:
        """As `LabelStore.digest`: of the manifest, and of the digests of files that it states."""
        entered = self.manifest["digests"]
        stated = {key: value for key, value in self.manifest.items() if key != "digests"}
        names = map(epoch_name, range(self.epochs) if epochs is None else epochs)
        files = {name: entered.get(name) or digest_of_file(self.path / name) for name in names}
        return digest_of_labels(self.path, [], json.dumps([stated, files], sort_keys=True))

    def legacy_digest(self) -> str:
        """As `LabelStore.legacy_digest`: of the manifest and of the first epoch."""
        stated = {key: value for key, value in self.manifest.items() if key != "digests"}
        return digest_of_text(json.dumps([stated, self.manifest["digests"].get(epoch_name(0))], sort_keys=True))

    def provenance(self) -> dict[str, Any]:
        """Return what summary.json says about these labels."""
        keys = (
            "dialect answers label_order epochs batch_size num_images num_classes keep_topk mix_type fkd_seed".split()
        )
        described = {key: self.manifest[key] for key in ("codec", "policy", "settings")}
        return {"path": str(self.path)} | {key: getattr(self, key) for key in keys} | described
