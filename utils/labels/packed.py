"""Packed labels: one safetensors file per epoch and one `manifest.json`. Nothing is pickled.

Layout of a folder with the labels of N images:

    manifest.json             description of the labels, and the digest of every epoch file
    images.safetensors        digests of the images: pixel_digests u8 [N, 8], file_digests u8 [N, 8];
                              if views are drawn, also sizes (H, W): i32 [N, 2], or [1, 2] if all sizes are equal
    epoch_0000.safetensors    one file per epoch, with rows in the order of training;
                              utils/labels/packed_tensors.py describes the tensors

Three options (`Codec`) save space. They can be combined:

* fewer bits per value;
* only the k largest logits;
* drawn views. Crops, flips and mixes are not stored. Reading the labels draws them again from a seed.

Other versions of numpy may draw other views. The manifest therefore holds a digest of sample views. Labels are refused
if the installed numpy draws other sample views.

Every file is written under a temporary name, fsynced and renamed. A killed process thus leaves no partial file.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from utils.labels.batch_items import all_finite, cutouts_are_sound, parse_items, second_item, weights_are_sound
from utils.labels.digests import (
    IMAGES,
    NAMES,
    ImageDigests,
    digest_of_file,
    digest_of_labels,
    find_differences,
    read_image_digests,
)
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import (
    EPOCH_FILE,
    HELD,
    MANIFEST,
    batches_per_epoch,
    digest_of_draws,
    epoch_name,
    images_tensors,
    kind_of,
    read_manifest,
    refuse_differences,
    rows_of,
    shape_of,
)
from utils.labels.packed_tensors import Shape, Tensors, expand, expected_tensors, read_tensors, shrink
from utils.labels.store import LabelStore
from utils.labels.types import Answers, BatchLabels, Mix, TopK, values_of
from utils.labels.views import DrawnViews, ReferenceOrder, ViewPolicy, index_of
from utils.system.errors import InputError
from utils.system.files import atomic_file, digest_of, digest_of_text, make_folder, write_json
from utils.system.log import log


def unpack_small(tensors: Tensors) -> dict[str, Any]:
    """Convert the image numbers and the mixes of an epoch to the types that `read` returns.

    Image numbers and mix partners become int64, mixing ratios floats, and boxes tuples of integers. Other tensors do
    not change.

    Returns:
        all tensors and converted values by name.
    """
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
    """Return whether every box (y1, x1, y2, x2), int32 [n, 4], satisfies 0 <= y1 <= y2 and 0 <= x1 <= x2."""
    return bool(((boxes[:, :2] >= 0) & (boxes[:, 2:] >= boxes[:, :2])).all())


def last_slots(form: Shape) -> torch.Tensor:
    """Return the highest valid mix partner of each row: int64 [N].

    A mix partner is a position in the row's batch, so the highest valid one is the last position of that batch.
    """
    starts = torch.arange(form.rows) // form.batch_size * form.batch_size
    return (form.rows - starts).clamp_max(form.batch_size) - 1


class PackedStore(LabelStore):
    """A folder of packed labels, opened for reading.

    Args:
        path: the folder given as --fkd-path.
        fkd_seed: seed that determines the order of images if the labels do not state image numbers.
        verify: whether each epoch file is compared with its digest when it is opened.

    Raises:
        InputError: the manifest or a needed file cannot be used.
    """

    dialect, file_digests = "packed", True
    described = (
        "dialect",
        "answers",
        "label_order",
        "epochs",
        "batch_size",
        "num_images",
        "num_classes",
        "keep_topk",
        "mix_type",
        "fkd_seed",
    )

    def __init__(self, path: str | Path, fkd_seed: int = 42, verify: bool = False) -> None:
        super().__init__(path, fkd_seed, verify)
        self.manifest = manifest = read_manifest(path)
        self.codec = Codec(**manifest["codec"])
        self.logits_dtype = torch.float16 if self.codec.bits == 16 else torch.float32
        self.num_images, self.num_classes = manifest["num_images"], manifest["num_classes"]
        self.batch_size, self.mix_type = manifest["batch_size"], manifest["mix_type"]
        kind = kind_of(manifest)
        self.answers, self.label_order = kind["answers"], kind["label_order"]
        self.has_epochs, self.num_classes_stated = kind["batches"] is None, kind["num_classes_stated"]
        self.has_weights, self.has_cutouts = (manifest.get(name, False) for name in HELD)
        self.batches_per_epoch, self.keep_topk = batches_per_epoch(manifest), shape_of(manifest).kept
        # the policy of random views holds further settings, for example input_size
        self.settings = {**manifest["settings"], **(manifest["policy"] or {})}
        self.class_list, self.class_names = manifest["settings"].get("classes"), manifest["settings"].get("class_names")
        stored = {int(m[1]) for m in map(EPOCH_FILE.fullmatch, os.listdir(path)) if m}
        self.set_epochs(stored, [int(m[1]) for m in map(EPOCH_FILE.fullmatch, manifest["digests"]) if m])
        if not self.epochs:
            raise InputError(f"{self.path} holds no {epoch_name(0)}; run relabel_FKD.py again to finish the labels")
        self.order = ReferenceOrder(self.num_images, fkd_seed)
        self.drawn = self._open_drawn() if self.codec.views == "drawn" else None
        self.image_digests = self._read_image_digests()

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
        # if all images have the same size, it is stored once; `expand` repeats it without copying
        sizes = sizes.expand(self.num_images, 2)
        return DrawnViews(policy, self.num_images, self.batch_size), sizes

    def _read_image_digests(self) -> ImageDigests | None:
        """Return the stored digests of the images, or None if the manifest states that no digests are stored."""
        stated = images_tensors(self.manifest)
        if not self.manifest.get("has_image_digests"):
            return None
        digests = read_image_digests(self.path, self.num_images, stated - set(NAMES))
        if digests is None:
            raise InputError(f"{self.path / IMAGES} is missing; copy the labels again")
        return digests

    def name(self, epoch: int, _batch: int) -> str:
        """Return the name of the file that holds an epoch."""
        return epoch_name(epoch)

    def batches(self, epoch: int) -> int:
        """Return the number of batches of a stored epoch.

        Labels of LPLD and LPQLD are one long list of batches, cut into epochs. The last epoch may have fewer batches.
        """
        return math.ceil(rows_of(self.manifest, epoch) / self.batch_size)

    def rows(self, epoch: int, batch: int) -> int:
        """Return the number of rows of a batch; the last batch of an epoch may be smaller."""
        return min(self.batch_size, rows_of(self.manifest, epoch) - batch * self.batch_size)

    def open(self, epoch: int) -> dict[str, Any]:
        """Memory-map and check the file of an epoch, and return its tensors by name.

        The tensors are cached (see `keep_open`): opening the same epoch again does not read the file again.
        """
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
        return self.keep_open(epoch, unpack_small(tensors))

    def _check_values(self, path: Path, tensors: Tensors, form: Shape) -> None:
        """Raise InputError if values of an epoch are not finite or not in their valid range."""

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
            "weights": "weights" not in tensors or weights_are_sound(tensors["weights"], form.batch_size),
            "cutouts": "cutouts" not in tensors or cutouts_are_sound(tensors["cutouts"]),
        }
        wrong = [name for name, fine in sound.items() if not fine]
        if wrong:
            raise InputError(f"{path} holds impossible {' and '.join(wrong)}; copy the labels again")

    def read(self, epoch: int, batch: int) -> BatchLabels:
        """Return one batch with its image numbers; views that are not stored are drawn again.

        Raises:
            InputError: the epoch file is missing or damaged, or disagrees with the manifest.
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
        weights, cutouts = (tensors[name][rows] if name in tensors else None for name in ("weights", "cutouts"))
        return BatchLabels(tensors["coords"][rows], tensors["flip"][rows], mix, logits, index, weights, cutouts)

    def check(self, epoch: int) -> None:
        """Read all batches of an epoch and check each with `parse_items`, as readers of other formats do.

        Raises:
            InputError: a batch is faulty.
        """
        for batch in range(self.batches(epoch)):
            labels = self.read(epoch, batch)
            logits = values_of(labels.logits)
            logits = logits.exp() if self.answers == "probabilities" else logits
            last = labels.index if labels.weights is None else labels.weights
            parse_items([labels.coords, second_item(labels), *labels.mix, logits, last], self.file(epoch))

    def digest(self, epochs: Iterable[int] | None = None) -> str:
        """Return a digest that identifies the labels: it covers the manifest and the digests of the epoch files.

        Args:
            epochs: epochs whose files the digest covers (default: all stored epochs).
        """
        entered = self.manifest["digests"]
        stated = {key: value for key, value in self.manifest.items() if key != "digests"}
        names = map(epoch_name, range(self.epochs) if epochs is None else epochs)
        files = {name: entered.get(name) or digest_of_file(self.path / name) for name in names}
        return digest_of_labels(self.path, [], json.dumps([stated, files], sort_keys=True))

    def legacy_digest(self) -> str:
        """Return the digest that earlier releases computed from the manifest and the digest of the first epoch file."""
        stated = {key: value for key, value in self.manifest.items() if key != "digests"}
        return digest_of_text(json.dumps([stated, self.manifest["digests"].get(epoch_name(0))], sort_keys=True))

    def provenance(self) -> dict[str, Any]:
        """Return a description of these labels for summary.json, with the manifest's codec, policy and settings."""
        return super().provenance() | {key: self.manifest[key] for key in ("codec", "policy", "settings")}


def digests_of_started(path: str | Path) -> ImageDigests | None:
    """Return the image digests that a partly written folder of packed labels holds; None if it holds none.

    A relabelling run that resumes uses these digests, so that it need not decode the images again.
    """
    if not (Path(path) / MANIFEST).exists():
        return None
    manifest = read_manifest(path)
    if not manifest.get("has_image_digests"):
        return None
    return read_image_digests(Path(path), manifest["num_images"], images_tensors(manifest) - set(NAMES))


class PackedWriter:
    """Writer of packed labels, one epoch at a time. It also resumes a folder that was written only in part.

    Args:
        path: the folder; it is created if it does not exist.
        manifest: the manifest that `make_manifest` returns.
        sizes: (H, W) of every image, int32 [N, 2]; needed only if views are drawn.
        leads: whether this process is the first one. The first process creates and checks the folder and writes the
            manifest; the others write only epoch files.
        image_digests: digests of the images; None if they are unknown, for example for labels of other projects.
        names: path of each image relative to the image folder, for error messages (default: `image 0`, `image 1`, …).

    Raises:
        InputError: the folder holds other files, or labels that were made with other settings or from other images. The
            message names the differences.
    """

    def __init__(
        self,
        path: str | Path,
        manifest: dict[str, Any],
        sizes: torch.Tensor | None = None,
        leads: bool = True,
        image_digests: ImageDigests | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self.path, self.leads = Path(path), leads
        self.manifest = manifest | {"has_image_digests": image_digests is not None}
        self.codec = Codec(**manifest["codec"])
        if not leads:
            return
        make_folder(self.path)
        if (self.path / MANIFEST).exists():
            stored = read_manifest(self.path)
            refuse_differences(path, stored, manifest)
            self.manifest = stored
            self._refuse_other_images(sizes, image_digests, names)
        elif any(not name.startswith(".") and name != IMAGES for name in os.listdir(self.path)):
            raise InputError(f"{path} is not empty; give a new folder, or delete what is in it")
        else:
            # The folder is new, or it holds only images.safetensors because a writer was killed before it wrote the
            # manifest.
            tensors = {"sizes": shortest(sizes)} if sizes is not None else {}
            tensors |= image_digests.tensors() if image_digests is not None else {}
            if tensors:
                self._save(IMAGES, tensors)
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()
        self.finish()

    def _refuse_other_images(
        self, sizes: torch.Tensor | None, found: ImageDigests | None, names: Sequence[str] | None
    ) -> None:
        """Raise InputError if the labels already in the folder were made from other images than those given now."""
        where = f"{self.path} holds labels of other images"
        remedy = "give the images that they were started with, or another folder"
        tensors = images_tensors(self.manifest)
        if "sizes" in tensors and sizes is not None:
            stored = read_tensors(self.path / IMAGES, tensors)["sizes"]
            if not torch.equal(stored, shortest(sizes)):
                raise InputError(f"{where}, whose sizes in pixels are not those of these; {remedy}")
        if not self.manifest.get("has_image_digests"):
            if found is not None:
                log.info("%s was started without digests of its images; it is continued without them", self.path)
            return
        if found is None:
            raise InputError(
                f"{self.path} knows its images, and those of the labels to be added are not known; give another folder"
            )
        known = read_image_digests(self.path, self.manifest["num_images"], tensors - set(NAMES))
        if known is None:
            raise InputError(f"{self.path / IMAGES} is missing; copy the labels again")
        clause = find_differences(known, found, names or [f"image {number}" for number in range(len(found))])
        if clause:
            raise InputError(f"{where}: {clause}; {remedy}")

    def finish(self) -> None:
        """Add missing digests of epoch files to the manifest, and write the manifest.

        A digest is missing if another process wrote the file, or if a process was killed before it added the digest.
        """
        for epoch in range(self.manifest["epochs"]):
            name = epoch_name(epoch)
            if name not in self.manifest["digests"] and (self.path / name).exists():
                self._enter(name)
        write_json(self.path / MANIFEST, self.manifest)

    def _enter(self, name: str) -> None:
        self.manifest["digests"][name] = digest_of(self.path / name)
        self.manifest["digests"] = dict(sorted(self.manifest["digests"].items()))

    def _save(self, name: str, tensors: Tensors) -> None:
        with atomic_file(self.path / name) as temporary:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, temporary)

    def missing(self, epochs: int) -> list[int]:
        """Return the epochs below `epochs` whose file does not exist or is not in the manifest, in ascending order."""
        done = {name for name in self.manifest["digests"] if (self.path / name).exists()}
        return [e for e in range(epochs) if epoch_name(e) not in done]

    def write(self, epoch: int, batches: Sequence[BatchLabels]) -> None:
        """Write the file of one epoch. `batches` holds the `BatchLabels` of each batch, in the order of training.

        The first process also lists the file's digest in the manifest.
        """
        logs = self.manifest["answers"] == "probabilities"
        tensors = (self.codec.encode_logs if logs else self.codec.encode)(join([labels.logits for labels in batches]))
        if self.codec.views == "stored":
            tensors["coords"] = torch.cat([labels.coords for labels in batches])
            tensors["flip"] = torch.cat([labels.flip for labels in batches])
            if self.manifest["has_index"]:
                tensors["index"] = torch.cat([index_of(labels) for labels in batches])
            tensors |= self._mixes(batches)
            held = {"weights": [one.weights for one in batches], "cutouts": [one.augment for one in batches]}
            for key, rows in held.items():
                if self.manifest.get(f"has_{key}"):
                    tensors[key] = torch.cat([row for row in rows if row is not None])
        name = epoch_name(epoch)
        self._save(name, shrink(tensors, shape_of(self.manifest, epoch)))
        if self.leads:
            self._enter(name)
            write_json(self.path / MANIFEST, self.manifest)

    def _mixes(self, batches: Sequence[BatchLabels]) -> Tensors:
        tensors = {}
        partners = [labels.mix.partner for labels in batches if labels.mix.partner is not None]
        if partners:
            tensors["mix_index"] = torch.cat(partners)
        if batches[0].mix.lam is not None:
            tensors["mix_lam"] = torch.tensor([labels.mix.lam for labels in batches], dtype=torch.float64)
        if batches[0].mix.box is not None:
            tensors["mix_bbox"] = torch.tensor([labels.mix.box for labels in batches], dtype=torch.int32)
        return tensors


def shortest(sizes: torch.Tensor) -> torch.Tensor:
    """Return image sizes in the form to be stored: int32 [N, 2], or [1, 2] if all images have the same size."""
    return (sizes[:1] if bool((sizes == sizes[:1]).all()) else sizes).int()


def join(answers: list[Answers]) -> Answers:
    """Concatenate the logits of several batches into one tensor [N, C], or into one `TopK` of N rows."""
    kept = [one for one in answers if isinstance(one, TopK)]
    if not kept:
        return torch.cat([one for one in answers if isinstance(one, torch.Tensor)])
    rests = [one.rest for one in kept if one.rest is not None]
    values, classes = torch.cat([one.values for one in kept]), torch.cat([one.classes for one in kept])
    return TopK(values, classes, torch.cat(rests) if rests else None)
