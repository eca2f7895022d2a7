"""Write packed labels, epoch by epoch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from utils.labels.batch import Answers, BatchLabels, TopK
from utils.labels.drawn import index_of
from utils.labels.image_digests import IMAGES, NAMES, ImageDigests, find_differences, read_image_digests
from utils.labels.packed_codec import Codec
from utils.labels.packed_manifest import (
    MANIFEST,
    epoch_name,
    images_tensors,
    read_manifest,
    refuse_differences,
    shape_of,
)
from utils.labels.packed_tensors import Tensors, read_tensors, shrink
from utils.system.errors import InputError
from utils.system.files import atomic_file, digest_of, make_folder, write_json
from utils.system.log import log


def digests_of_started(path: str | Path) -> ImageDigests | None:
    """Return which images a started store is about, so that `identify` need not decode them again; None without one."""
    if not (Path(path) / MANIFEST).exists():
        return None
    manifest = read_manifest(path)
    if not manifest.get("has_image_digests"):
        return None
    return read_image_digests(Path(path), manifest["num_images"], images_tensors(manifest) - set(NAMES))


class PackedWriter:
    """Writes a packed store epoch by epoch; one that was interrupted goes on where it stopped.

    Args:
        path: the folder; made if it does not exist.
        manifest: from `make_manifest`.
        sizes: int32 [N, 2] image sizes (H, W), for drawn views.
        leads: make and check the folder and write the manifest; False in a process that another one
            leads, which writes epoch files alone.
        image_digests: which images the labels are about; None where nobody knows, as for labels of strangers.
        names: path of each image relative to its folder, for errors (default: its number).

    Raises:
        InputError: the folder holds something else, or a store with other settings or of other images (which are
            named).
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
        else:  # images.safetensors alone is what a writer leaves that was killed before it wrote the manifest
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
        """Raise InputError where the labels that are continued were started on other images."""
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
        """Enter epochs that other processes wrote, or whose file was renamed right before a kill."""
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
        """Those of `epochs` epochs that are still to be written, in order."""
        return [e for e in range(epochs) if epoch_name(e) not in self.manifest["digests"]]

    def write(self, epoch: int, batches: Sequence[BatchLabels]) -> None:
        """Write one epoch: a list of `BatchLabels`, one per batch in order."""
        logs = self.manifest["answers"] == "probabilities"
        tensors = (self.codec.encode_logs if logs else self.codec.encode)(join([labels.logits for labels in batches]))
        if self.codec.views == "stored":
            tensors["coords"] = torch.cat([labels.coords for labels in batches])
            tensors["flip"] = torch.cat([labels.flip for labels in batches])
            if self.manifest["has_index"]:
                tensors["index"] = torch.cat([index_of(labels) for labels in batches])
            tensors |= self._mixes(batches)
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
    """Image sizes [N, 2] as they are stored, int32: [1, 2] where all are equal."""
    return (sizes[:1] if bool((sizes == sizes[:1]).all()) else sizes).int()


def join(answers: list[Answers]) -> Answers:
    """One batch's answers below the other's."""
    kept = [one for one in answers if isinstance(one, TopK)]
    if not kept:
        return torch.cat([one for one in answers if isinstance(one, torch.Tensor)])
    rests = [one.rest for one in kept if one.rest is not None]
    values, classes = torch.cat([one.values for one in kept]), torch.cat([one.classes for one in kept])
    return TopK(values, classes, torch.cat(rests) if rests else None)
