"""`LabelStore`: what training, checks and tools ask of a folder of labels, whatever its format."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from utils.labels.batch import BatchLabels
from utils.labels.drawn import Views
from utils.labels.image_digests import ImageDigests


class ViewSource(Protocol):
    """What training asks for views, with a teacher's answers or without: a `LabelStore`, or `DrawnViews`."""

    batches_per_epoch: int
    batch_size: int
    num_images: int

    def rows(self, epoch: int, batch: int, /) -> int:
        """Number of images in a batch."""

    def read(self, epoch: int, batch: int, /) -> Views:
        """Return one batch."""


class LabelStore(Protocol):
    """A folder of labels: `epochs` stored epochs of `batches_per_epoch` batches, in the order of training.

    Attributes:
        path: the folder.
        dialect: name of the format.
        answers: what `BatchLabels.logits` are: `logits`, or `probabilities`, of which they are the natural logs.
        label_order: how the project that made the labels visits them: one of `pool.ORDERS`.
        has_epochs: whether the stored epochs are epochs, each of which visits every image once. Otherwise they are
            stretches of a pool of batches.
        epochs: stored without a gap from 0.
        batches_per_epoch, batch_size: the last batch of an epoch may be shorter.
        num_images: images of the folder that the labels are about; without epochs, the least that there must be.
        num_classes: C.
        num_classes_stated: False where the labels do not say C: then `num_classes` is the least, and `state_classes`
            says it.
        keep_topk: answers stored per image; C for all.
        logits_dtype: of the answers.
        mix_type: `cutmix`, `mixup` or `none`.
        image_digests: which images the labels are about; None where they do not say, as those of other projects.
    """

    path: Path
    dialect: str
    answers: str
    label_order: str
    has_epochs: bool
    epochs: int
    batches_per_epoch: int
    batch_size: int
    num_images: int
    num_classes: int
    num_classes_stated: bool
    keep_topk: int
    logits_dtype: torch.dtype
    mix_type: str
    image_digests: ImageDigests | None

    @property
    def class_list(self) -> list[str] | None:
        """Names of the class folders that the labels were made for, in order, or None."""

    @property
    def class_names(self) -> str | None:
        """Digest of the class folder names that the labels were made for, or None."""

    def random_access(self) -> None:
        """Batches will be asked for in any order: keep open what was opened."""

    def batches(self, epoch: int, /) -> int:
        """Number of batches of a stored epoch: `batches_per_epoch`, or fewer in the last one of a pool."""

    def rows(self, epoch: int, batch: int, /) -> int:
        """Number of images in a batch."""

    def read(self, epoch: int, batch: int, /) -> BatchLabels:
        """Return one batch, `index` filled in.

        Raises:
            InputError: its file is missing, damaged, or disagrees with the rest of the labels.
        """

    def file(self, epoch: int, batch: int, /) -> Path:
        """The file that holds a batch; for errors."""

    def check_complete(self, epochs: Iterable[int], /) -> None:
        """Raise InputError for the first file that `epochs` need and that is missing; opens none."""

    def check(self, epoch: int) -> None:
        """Read all of an epoch; raise InputError for the first thing wrong with it."""

    def state_classes(self, num_classes: int) -> None:
        """Say how many classes there are, to a store that does not know."""

    def provenance(self) -> dict[str, Any]:
        """What summary.json says about these labels."""

    def digest(self, epochs: Iterable[int] | None = None, /) -> str:
        """Digest that tells label sets apart, wherever they lie.

        Args:
            epochs: those that count (default: all that are stored); others may be added or changed.

        Raises:
            InputError: a file of these epochs is missing.
        """

    def legacy_digest(self) -> str:
        """Digest of earlier releases, which covered the first file only; old checkpoints state it."""
