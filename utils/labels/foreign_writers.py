"""Write the folders of LPLD, LPQLD and HALD, in their dtypes, file for file as their readers expect them."""

import json
from pathlib import Path
from typing import Any

import torch

from utils.labels.batch import BatchLabels, TopK, values_of
from utils.labels.format_hald import INDICES as HALD_INDICES
from utils.labels.format_lpqld import INDICES as FLAT_INDICES
from utils.labels.image_digests import ImageDigests, write_image_digests
from utils.labels.packed_codec import refuse_beyond_half
from utils.system.archive import save_archive
from utils.system.errors import InputError
from utils.system.files import atomic_file, make_folder


def empty_folder(path: str | Path, image_digests: ImageDigests | None) -> Path:
    """Make a folder, which must be empty, and write into it which images its labels are about, where it is known."""
    path = Path(path)
    make_folder(path)
    if any(path.iterdir()):
        raise InputError(f"{path} is not empty; give a new folder, or delete the labels in it")
    if image_digests is not None:
        write_image_digests(path, image_digests)
    return path


def small_items(labels: BatchLabels) -> list[Any]:
    """The first five items of a batch, in the small dtypes of LPLD."""
    partner, lam, box = labels.mix
    coords, flip = labels.coords.half(), labels.flip.clone()  # a slice would be saved with all that it is a slice of
    return [
        coords,
        flip,
        None if partner is None else partner.to(torch.uint8 if len(labels) <= 256 else torch.int64),
        lam,
        None if box is None else [torch.tensor(n, dtype=torch.uint8) if n < 256 else n for n in box],
    ]


def images_of(labels: BatchLabels) -> list[int]:
    """Which image each row is."""
    return [] if labels.index is None else labels.index.tolist()


class FlatWriter:
    """Writes the flat folder of LPLD, or of LPQLD where only the k largest logits are kept.

    Args:
        path: the folder; made if it does not exist.
        image_digests: which images the labels are about, written beside them, where no other program looks for it.

    Raises:
        InputError: the folder holds files.
    """

    def __init__(self, path: str | Path, image_digests: ImageDigests | None = None) -> None:
        self.path = empty_folder(path, image_digests)
        self.images: list[list[int]] = []

    def write(self, _epoch: int, batches: list[BatchLabels]) -> None:
        """Write batches after those that are there."""
        for labels in batches:
            refuse_beyond_half(values_of(labels.logits), "logit", "train on the packed labels as they are")
            items = small_items(labels)
            if isinstance(labels.logits, TopK):
                values, order = labels.logits.values.sort(dim=1, descending=True)
                items += [values.half(), labels.logits.classes.gather(1, order).short()]
            else:
                items.append(labels.logits.half().clone())
            save_archive(self.path / f"batch_{len(self.images)}.tar", items)
            self.images.append(images_of(labels))

    def finish(self) -> None:
        """Write the list of images."""
        with atomic_file(self.path / FLAT_INDICES) as temporary:
            Path(temporary).write_text(json.dumps({str(n): images for n, images in enumerate(self.images)}))


class HaldWriter:
    """Writes HALD's folder, from logs of probabilities.

    Args:
        path, image_digests: as `FlatWriter`'s.

    Raises:
        InputError: the folder holds files.
    """

    def __init__(self, path: str | Path, image_digests: ImageDigests | None = None) -> None:
        self.path = empty_folder(path, image_digests)
        self.images: dict[str, list[int]] = {}

    def write(self, epoch: int, batches: list[BatchLabels]) -> None:
        """Write one epoch."""
        items = []
        for labels in batches:
            coords, flip, *_ = small_items(labels)
            partner, lam, box = labels.mix
            mix_items = [None if partner is None else partner.clone(), lam, None if box is None else list(box)]
            items.append([coords, flip, *mix_items, values_of(labels.logits).exp().half()])
        save_archive(self.path / f"epoch_{epoch}.tar", items)
        self.images[str(epoch)] = [image for labels in batches for image in images_of(labels)]

    def finish(self) -> None:
        """Write the list of images."""
        save_archive(self.path / HALD_INDICES, self.images)
