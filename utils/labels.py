"""The label store: FKD soft labels on disk, in whatever dialect, as one `BatchLabels` per batch.

Dialects (`epoch_{e}/batch_{b}.tar`, each a `torch.save` zip of one list in spite of its name):

* `sre2l`, 6 items: coords, flip, mix_index, mix_lam, mix_bbox, logits. Which image each row is
  follows from the sampler of the reference code, replayed by `ReferenceOrder`.
* `prism`, 7 items (PRISM, G-VBSM): the same, then index.
* `packed`, ours: utils/packed.py.

    python -m utils.labels info PATH           what is in a label folder
    python -m utils.labels pack SRC DST        .tar files -> packed
    python -m utils.labels unpack SRC DST      packed -> .tar files that other repositories read
    python -m utils.labels verify PATH         read and check everything

Shapes: B images in a batch, N images in an epoch, C classes.
"""

import math
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import RandomSampler

from utils.archive import load_archive
from utils.augment import ViewPolicy, fractions
from utils.errors import InputError
from utils.files import atomic_file, digest_of, make_folder

EPOCH_FOLDER = re.compile(r"epoch_(\d+)")
BATCH_FILE = re.compile(r"batch_(\d+)\.tar")


@dataclass(frozen=True)
class BatchLabels:
    """What a teacher saw and answered for one batch.

    Attributes:
        coords: float32 [B, 4], crops as fractions (top/H, left/W, height/H, width/W).
        flip: bool [B], flipped left to right after the crop.
        mix_index: int64 [B], the row that each row is mixed with, or None.
        mix_lam: mixing ratio in [0, 1], or None.
        mix_bbox: (y1, x1, y2, x2) in pixels of the replayed view, rows first, or None.
        logits: float16 or float32 [B, C], the teacher's raw answers.
        index: int64 [B], which image of the sorted image folder each row is, or None where the
            dialect does not say (a store fills it in).
    """

    coords: torch.Tensor
    flip: torch.Tensor
    mix_index: torch.Tensor | None
    mix_lam: float | None
    mix_bbox: tuple | None
    logits: torch.Tensor
    index: torch.Tensor | None = None

    def __len__(self):
        return len(self.flip)

    @property
    def mix_type(self):
        """`cutmix`, `mixup` or `none`: the data says which."""
        if self.mix_bbox is not None:
            return "cutmix"
        return "none" if self.mix_lam is None else "mixup"

    def view(self, slot, image_size):
        """Return ((top, left, height, width) in pixels, flip) of row `slot`, an image of (H, W) pixels."""
        top, left, crop_height, crop_width = self.coords[slot].tolist()
        (top, crop_height), (left, crop_width) = (
            to_pixels(start, length, size)
            for start, length, size in zip((top, left), (crop_height, crop_width), image_size, strict=True)
        )
        return (top, left, crop_height, crop_width), bool(self.flip[slot])


def to_pixels(start, length, size):
    """Turn fractions of `size` pixels into (start, length) in pixels: at least one, none outside."""
    length = min(max(round(length * size), 1), size)
    return min(round(start * size), size - length), length


def all_finite(tensor):
    """Whether every value is finite; in numpy, which does not wake PyTorch's threads for so little."""
    return bool(np.isfinite(tensor.numpy()).all())


def parse_items(items, source):
    """Turn the list of a 6- or 7-item batch file into `BatchLabels`, checking every item.

    Raises:
        InputError: an item is missing, of the wrong type or shape, or out of range; names `source`.
    """

    def require(condition, problem):
        if not condition:
            raise InputError(f"{source} is not a usable label file: {problem}; get it again or run relabel_FKD.py")

    require(isinstance(items, list) and len(items) in (6, 7), "it is not a list of 6 or 7 items")
    coords, flip, mix_index, mix_lam, mix_bbox, logits, *rest = items
    index = rest[0] if rest else None

    def require_tensor(name, value, dtypes, *shape):
        require(isinstance(value, torch.Tensor), f"{name} is not a tensor")
        require(value.dtype in dtypes, f"{name} has dtype {value.dtype}")
        fits = value.dim() == len(shape) and all(
            want in (None, have) for want, have in zip(shape, value.shape, strict=True)
        )
        require(fits, f"{name} has shape {list(value.shape)}")

    require_tensor("flip", flip, [torch.bool], None)
    rows = len(flip)
    require(rows > 0, "it holds no rows")
    require_tensor("coords", coords, [torch.float32], rows, 4)
    require_tensor("logits", logits, [torch.float16, torch.float32], rows, None)
    require(logits.shape[1] > 0, "logits have no classes")
    require(all_finite(logits), "its logits are not all finite")
    inside = (coords >= 0) & (coords <= 1 + 1e-4)  # NaN is never inside
    require(inside.all() and (coords[:, 2:] > 0).all(), "its crop coords are not fractions of an image")
    require((coords[:, :2] + coords[:, 2:] <= 1 + 1e-4).all(), "a crop reaches outside its image")

    if mix_index is not None:
        require_tensor("mix_index", mix_index, [torch.int64], rows)
        require(((mix_index >= 0) & (mix_index < rows)).all(), "mix_index points outside the batch")
    if mix_lam is not None:
        require(isinstance(mix_lam, float) and 0 <= mix_lam <= 1, f"mix_lam is {mix_lam!r:.40}")
    if mix_bbox is not None:
        four = isinstance(mix_bbox, list | tuple) and len(mix_bbox) == 4
        require(four and all(type(n) is int for n in mix_bbox), "mix_bbox is not four integers")
        y1, x1, y2, x2 = mix_bbox
        require(0 <= y1 <= y2 and 0 <= x1 <= x2, f"mix_bbox {list(mix_bbox)} is not a box")
    if mix_lam is not None or mix_bbox is not None:
        require(mix_index is not None and mix_lam is not None, "a mixed batch lacks mix_index or mix_lam")
    if index is not None:
        require_tensor("index", index, [torch.int64], rows)
        require((index >= 0).all(), "index is negative")
    return BatchLabels(
        coords, flip, mix_index, mix_lam, tuple(mix_bbox) if mix_bbox is not None else None, logits, index
    )


class ReferenceOrder:
    """The image order that SRe2L's code implies for labels without an index.

    One `RandomSampler` over N images, its generator seeded with --fkd_seed, is iterated once per
    epoch from epoch 0; each pass advances the generator. Any epoch can be asked for, in any order.
    """

    def __init__(self, num_images, seed):
        self.num_images = num_images
        self.states = [torch.Generator().manual_seed(seed).get_state()]  # before each epoch
        self.epoch, self.order = None, None

    def __call__(self, epoch):
        """Return int64 [N], the images in the order in which `epoch` visits them."""
        if epoch == self.epoch:
            return self.order
        generator = torch.Generator()
        for e in range(min(epoch, len(self.states) - 1), epoch + 1):
            generator.set_state(self.states[e])
            order = list(RandomSampler(range(self.num_images), generator=generator))
            if e + 1 == len(self.states):
                self.states.append(generator.get_state())
        self.epoch, self.order = epoch, torch.tensor(order)
        return self.order


class ReusedLabels:
    """A label store trained on for more epochs than it holds: stored epochs are visited again.

    The first pass is in order; each later pass visits all stored epochs in an order shuffled with
    (seed, pass). Everything else is the store's own.
    """

    def __init__(self, store, seed):
        self.store, self.seed = store, seed

    def __getattr__(self, name):
        if name == "store":  # not there yet while a worker unpickles this
            raise AttributeError(name)
        return getattr(self.store, name)

    def stored_epoch(self, epoch):
        """The stored epoch that training epoch `epoch` replays."""
        turn, place = divmod(epoch, self.store.epochs)
        if turn == 0:
            return place
        return int(np.random.default_rng((self.seed, turn)).permutation(self.store.epochs)[place])

    def read(self, epoch, batch):
        """As `TarStore.read`."""
        return self.store.read(self.stored_epoch(epoch), batch)

    def file(self, epoch, batch):
        """As `TarStore.file`."""
        return self.store.file(self.stored_epoch(epoch), batch)


class SharedLabels:
    """A label store of which each batch is cut down to what one rank needs. Everything else is the store's own.

    Args:
        store: label store or `DrawnViews`.
        share: `distributed.Share`.
    """

    def __init__(self, store, share):
        self.store, self.share = store, share

    def __getattr__(self, name):
        if name in ("store", "share"):  # not there yet while a worker unpickles this
            raise AttributeError(name)
        return getattr(self.store, name)

    def read(self, epoch, batch):
        """As `TarStore.read`, but `only` the rank's rows and their mix partners."""
        labels = self.store.read(epoch, batch)
        return only(self.share.rows(len(labels.index)), labels)

    def parts(self, batch):
        """Return ((own rows, rows), …) of the micro-batches of batch `batch` of an epoch."""
        start = batch * self.store.batch_size
        return self.share.parts(min(self.store.batch_size, self.store.num_images - start))


def only(rows, labels):
    """Cut a batch down to `rows`, followed by those of their mix partners that are not among them.

    A batch is never empty: where `rows` is, one row stands in.

    Args:
        rows: int64 [own], in order.
        labels: `BatchLabels` or `DrawnBatch`.

    Returns:
        the same kind, of K rows; `mix_index` int64 [K] is right for the own rows, and `logits` are
        [own, C].
    """
    partners = rows if labels.mix_index is None else labels.mix_index[rows]
    kept = torch.cat([rows, partners[~torch.isin(partners, rows)].unique()])
    kept = kept if len(kept) else torch.zeros(1, dtype=torch.int64)
    changes = {name: getattr(labels, name)[kept] for name in ("coords", "flip", "index") if hasattr(labels, name)}
    if hasattr(labels, "draws"):
        changes["draws"] = labels.draws[kept.numpy()]
    if labels.mix_index is not None:
        place = torch.zeros(len(labels.index), dtype=torch.int64)
        place[kept] = torch.arange(len(kept))
        changes["mix_index"] = place[labels.mix_index[kept]]  # partners of partners are not there: any row will do
    if labels.logits is not None:
        changes["logits"] = labels.logits[rows]
    return replace(labels, **changes)


class TarStore:
    """A folder of `epoch_{e}/batch_{b}.tar` files in the 6- or 7-item dialect.

    Attributes: `path`, `dialect` (`sre2l` or `prism`), `epochs` (stored without a gap from 0),
    `batches_per_epoch`, `batch_size`, `num_images`, `num_classes`, `mix_type`.

    Args:
        path: the folder given as --fkd-path.
        fkd_seed: seed of the image order where the labels have no index.

    Raises:
        InputError: not a label folder, or its first epoch cannot be used.
    """

    class_names = None  # not stated by these dialects

    def __init__(self, path, fkd_seed=42):
        self.path = Path(path)
        self.fkd_seed = fkd_seed
        stored = {int(m[1]) for m in map(EPOCH_FOLDER.fullmatch, os.listdir(self.path)) if m}
        self.epochs = next(e for e in range(len(stored) + 1) if e not in stored)
        batches = self._batch_numbers(0) if self.epochs else set()
        if 0 not in batches:
            raise InputError(
                f"--fkd-path {self.path} holds no epoch_0/batch_0.tar; give the folder that holds epoch_0, epoch_1, …"
            )
        missing = next(batch for batch in range(len(batches) + 1) if batch not in batches)
        if missing < len(batches):
            raise InputError(f"{self.file(0, missing)} is missing; copy the labels again or run relabel_FKD.py")
        self.batches_per_epoch = len(batches)
        first = self._load(0, 0)
        last = first if self.batches_per_epoch == 1 else self._load(0, max(batches))
        self.dialect = "sre2l" if first.index is None else "prism"
        self.batch_size, self.num_classes = first.logits.shape
        self.num_images = self.batch_size * max(batches) + len(last)
        self.mix_type = first.mix_type
        self.logits_dtype = first.logits.dtype
        self.keep_topk = self.num_classes
        self.order = ReferenceOrder(self.num_images, fkd_seed)

    def file(self, epoch, batch):
        """Return the path of one batch file."""
        return self.path / f"epoch_{epoch}" / f"batch_{batch}.tar"

    def _batch_numbers(self, epoch):
        try:
            names = os.listdir(self.path / f"epoch_{epoch}")
        except OSError as error:
            raise InputError(
                f"{self.path / f'epoch_{epoch}'} cannot be read ({error.strerror}); copy the labels again"
            ) from None
        return {int(m[1]) for m in map(BATCH_FILE.fullmatch, names) if m}

    def _load(self, epoch, batch):
        path = self.file(epoch, batch)
        return parse_items(load_archive(path), path)

    def check_complete(self, epochs):
        """Raise InputError for the first batch file that `epochs` (an iterable) needs and that is missing."""
        for epoch in epochs:
            missing = set(range(self.batches_per_epoch)) - self._batch_numbers(epoch)
            if missing:
                raise InputError(
                    f"{self.file(epoch, min(missing))} is missing ({len(missing)} of {self.batches_per_epoch} "
                    "batch files of this epoch); copy the labels again or run relabel_FKD.py"
                )

    def rows(self, batch):
        """Number of images in batch `batch`; the last one of an epoch may be shorter."""
        return min(self.batch_size, self.num_images - batch * self.batch_size)

    def read(self, epoch, batch):
        """Return the `BatchLabels` of one batch, `index` filled in.

        Raises:
            InputError: the file is missing, damaged, or disagrees with the rest of the store.
        """
        labels = self._load(epoch, batch)
        stated = (self.rows(batch), self.num_classes, self.mix_type, self.dialect == "prism")
        found = (len(labels), labels.logits.shape[1], labels.mix_type, labels.index is not None)
        if found != stated:
            raise InputError(
                f"{self.file(epoch, batch)} disagrees with the rest of the labels: (rows, classes, mix type, has "
                f"index) is {found}, expected {stated}; the folder mixes two label sets, so make them again"
            )
        if labels.index is None:
            start = batch * self.batch_size
            index = self.order(epoch)[start : start + len(labels)]
            return BatchLabels(**{**vars(labels), "index": index})
        if labels.index.max() >= self.num_images:
            raise InputError(
                f"{self.file(epoch, batch)} names image {labels.index.max().item()}, but the labels cover "
                f"{self.num_images} images; the file belongs to another label set"
            )
        return labels

    def provenance(self):
        """Return what summary.json says about these labels."""
        keys = ("dialect", "epochs", "batch_size", "num_images", "num_classes", "mix_type", "fkd_seed")
        return {"path": str(self.path)} | {key: getattr(self, key) for key in keys}

    def digest(self):
        """Digest that tells label sets apart, wherever they lie: of the first batch file."""
        return digest_of(self.file(0, 0))


def open_labels(path, fkd_seed=42, temperature=1.0, verify=False):
    """Open a label folder of any dialect: a `PackedStore` where there is a manifest, else a `TarStore`.

    Args:
        path: the folder given as --fkd-path.
        fkd_seed: seed of the image order where the labels have no index.
        temperature: of the loss; used where only the largest logits were stored.
        verify: compare packed files with their digests when they are opened.

    Raises:
        InputError: no such folder, or no labels in it.
    """
    if not os.path.isdir(path):
        raise InputError(f"--fkd-path {path} is not a folder; give the folder that holds the labels")
    if os.path.exists(os.path.join(path, "manifest.json")):
        from utils.packed import PackedStore

        return PackedStore(path, fkd_seed, temperature, verify)
    if verify:
        raise InputError(f"--verify-labels needs packed labels, which have digests; pack {path} first")
    return TarStore(path, fkd_seed)


@dataclass(frozen=True)
class DrawnBatch:
    """Views of one batch that are still to be drawn: what `BatchLabels` is before a teacher saw it."""

    policy: ViewPolicy
    draws: np.ndarray  # float64 [B, CROP_DRAWS]
    index: torch.Tensor  # int64 [B]
    mix_index: torch.Tensor | None
    mix_lam: float | None
    mix_bbox: tuple | None
    logits: None = None

    def view(self, slot, image_size):
        """As `BatchLabels.view`."""
        return self.policy.crop_from(self.draws[slot], image_size)

    def labelled(self, logits, image_sizes):
        """Return the `BatchLabels` of these views, given the logits [B, C] and each row's image size (H, W)."""
        views = [self.view(slot, size) for slot, size in enumerate(image_sizes)]
        coords = torch.stack([fractions(box, size) for (box, _), size in zip(views, image_sizes, strict=True)])
        flip = torch.tensor([flip for _, flip in views])
        return BatchLabels(coords, flip, self.mix_index, self.mix_lam, self.mix_bbox, logits, self.index)


class DrawnViews:
    """A store that draws its views instead of reading them; relabel and naive KD share it.

    Args:
        policy: how to draw.
        num_images: N.
        batch_size: images in a batch.
    """

    def __init__(self, policy, num_images, batch_size):
        self.policy, self.num_images, self.batch_size = policy, num_images, batch_size
        self.batches_per_epoch = math.ceil(num_images / batch_size)
        self.order = ReferenceOrder(num_images, policy.seed)

    def read(self, epoch, batch):
        """Return the `DrawnBatch` of (epoch, batch), the same whenever and wherever it is asked for."""
        index = self.order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        draws = self.policy.draw_crops(epoch, batch, len(index))
        return DrawnBatch(self.policy, draws, index, *self.policy.draw_mix(epoch, batch, len(index)))


class TarWriter:
    """Writes `epoch_{e}/batch_{b}.tar` files; a file exists whole or not at all.

    Args:
        path: folder to write to; made if it does not exist.
        dtype: of the logits, float16 or float32.
        with_index: write the index, the seventh item.
        leads: make and check the folder; False in a process that another one leads.

    Raises:
        InputError: the folder holds other files, or cannot be written.
    """

    def __init__(self, path, dtype=torch.float16, with_index=True, leads=True):
        self.path, self.dtype, self.with_index = Path(path), dtype, with_index
        if not leads:
            return
        make_folder(self.path)
        if any(self.path.iterdir()):
            raise InputError(f"{path} is not empty; give a new folder, or delete the labels in it")

    def missing(self, epochs):
        """Epochs that are still to be written: all, since a started folder is refused."""
        return list(range(epochs))

    def write(self, epoch, batches):
        """Write one epoch: a list of `BatchLabels`, one per batch in order."""
        folder = self.path / f"epoch_{epoch}"
        folder.mkdir(exist_ok=True)
        for batch, labels in enumerate(batches):
            mix_bbox = None if labels.mix_bbox is None else list(labels.mix_bbox)
            items = [labels.coords, labels.flip, labels.mix_index, labels.mix_lam, mix_bbox]
            items += [labels.logits.to(self.dtype), labels.index]
            # a slice would be saved with all of the epoch that it is a slice of
            items = [item.clone() if isinstance(item, torch.Tensor) else item for item in items]
            # through an open file, since torch.save writes a file's name, which is a temporary one, into it
            with atomic_file(folder / f"batch_{batch}.tar") as temporary, open(temporary, "wb") as file:
                torch.save(items if self.with_index else items[:6], file)

    def finish(self):
        """Do nothing: there is no manifest."""


if __name__ == "__main__":
    from utils.label_tools import main

    sys.exit(main())
