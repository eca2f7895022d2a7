"""The views of each training batch: the order in which stored batches are visited, and the rows of each rank."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch

from utils.labels.store import SAMPLED, SHUFFLED, STORED, LabelStore, ViewSource
from utils.labels.types import each
from utils.labels.views import DrawnBatch, Views
from utils.system.distributed import Parts, Share

REUSED = "reused"
Source = TypeVar("Source", bound=ViewSource, covariant=True)


@lru_cache(maxsize=8)  # every batch of an epoch asks for the same list
def draw_batches(order: str, seed: int, epoch: int, stored: int, wanted: int) -> tuple[int, ...]:
    """Draw the batches of one epoch of training: a pure function of its arguments.

    Args:
        order: SAMPLED: without replacement from all stored batches, anew each epoch (LPLD, LPQLD). SHUFFLED: from
            a pool that holds each stored batch once, in random order, and is refilled when it is empty (HALD; equal
            to the order of its trainer if the epochs empty the pool without remainder).
        seed: seed of the random order.
        epoch: epoch of training, from 0.
        stored: number of stored batches.
        wanted: number of batches of an epoch of training; SAMPLED draws at most `stored`.

    Returns:
        numbers of stored batches.
    """
    if order == SAMPLED:
        return tuple(np.random.default_rng((seed, epoch)).permutation(stored)[:wanted].tolist())
    places = [divmod(place, stored) for place in range(epoch * wanted, (epoch + 1) * wanted)]
    pools = {turn: shuffled(stored, seed + turn) for turn, _ in places}
    return tuple(pools[turn][place] for turn, place in places)


def shuffled(count: int, seed: int) -> list[int]:
    """Return the numbers below `count` in random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass(frozen=True)
class TrainingViews(Generic[Source]):
    """The batches of a run, addressed by the epoch of training and the number of the batch in it.

    Attributes:
        store: a `LabelStore`, or `DrawnViews`, for which `order` is STORED.
        order: STORED: epoch e of training is the stored epoch e. REUSED: the first pass is as STORED; every
            further pass visits all stored epochs in an order shuffled with (seed, pass). SAMPLED, SHUFFLED: see
            `draw_batches`.
        seed: seed of the random orders.
        batches_drawn: number of batches of an epoch of training if `order` is SAMPLED or SHUFFLED.
        share: the rows that this rank works on; None for all.
    """

    store: Source
    order: str = STORED
    seed: int = 0
    batches_drawn: int = 0
    share: Share | None = None

    def __post_init__(self) -> None:
        if self.is_pool:
            self._labels.random_access()

    @classmethod
    def of(cls, source: "ViewSource | TrainingViews[ViewSource]") -> "TrainingViews[ViewSource]":
        """Return `source` if it is a `TrainingViews`, else a `TrainingViews` of all its batches in their own order."""
        return source if isinstance(source, TrainingViews) else TrainingViews(source)

    @property
    def _labels(self) -> LabelStore:
        """Return `store`, typed as a `LabelStore`."""
        return cast(LabelStore, self.store)

    @cached_property
    def _stored(self) -> int:
        """Return the number of stored batches."""
        return self._labels.stored_batches()

    @property
    def is_pool(self) -> bool:
        """Return whether any stored batch may come in any epoch."""
        return self.order in (SAMPLED, SHUFFLED)

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of batches in an epoch of training."""
        return self.batches_drawn if self.is_pool else self.store.batches_per_epoch

    @property
    def batch_size(self) -> int:
        """Return the number of images in a full batch."""
        return self.store.batch_size

    @property
    def num_images(self) -> int:
        """Return the number of images that the views show."""
        return self.store.num_images

    def place(self, epoch: int, batch: int) -> tuple[int, int]:
        """Return the (epoch, batch) of the store that a batch of training reads."""
        if self.is_pool:
            numbers = draw_batches(self.order, self.seed, epoch, self._stored, self.batches_drawn)
            return divmod(numbers[batch], self.store.batches_per_epoch)
        if self.order == REUSED:
            turn, epoch = divmod(epoch, self._labels.epochs)
            if turn:
                epoch = int(np.random.default_rng((self.seed, turn)).permutation(self._labels.epochs)[epoch])
        return epoch, batch

    def rows(self, epoch: int, batch: int) -> int:
        """Return the number of images in a batch, over all ranks."""
        return self.store.rows(*self.place(epoch, batch))

    def read(self, epoch: int, batch: int) -> Views:
        """Return one batch; if `share` is set, only this rank's rows and their mix partners (see `keep_rows`)."""
        views = self.store.read(*self.place(epoch, batch))
        return views if self.share is None else keep_rows(views, self.share.rows(len(views)))

    def file(self, epoch: int, batch: int) -> Path:
        """Return the label file that holds a batch, for error messages."""
        return self._labels.file(*self.place(epoch, batch))

    def parts(self, epoch: int, batch: int) -> Parts | None:
        """Return ((rows of this rank, rows of all ranks), …) for a batch's micro-batches; None if `share` is None."""
        return None if self.share is None else self.share.parts(self.rows(epoch, batch))

    def smallest_batch(self) -> int:
        """Return the number of rows, over all ranks, of the smallest batch of any epoch."""
        if self.is_pool:
            store = self._labels
            epochs = range(store.epochs)
            return min(store.rows(epoch, batch) for epoch in epochs for batch in range(store.batches(epoch)))
        return min(self.store.rows(0, batch) for batch in range(self.batches_per_epoch))  # same in all epochs


def keep_rows(views: Views, rows: torch.Tensor) -> Views:
    """Reduce a batch to `rows`, followed by their mix partners that are not in `rows`.

    If `rows` is empty, the result holds row 0, so that a batch is never empty.

    Args:
        views: `BatchLabels` or `DrawnBatch`.
        rows: int64 [own], ascending indices of rows.

    Returns:
        an object of the same class with K rows. `mix.partner`, int64 [K], is valid only for the first `own` rows, and
        `logits` holds only these rows.
    """
    partners = rows if views.mix.partner is None else views.mix.partner[rows]
    kept = torch.cat([rows, partners[~torch.isin(partners, rows)].unique()])
    kept = kept if len(kept) else torch.zeros(1, dtype=torch.int64)
    names = [name for name in ("coords", "flip", "index") if hasattr(views, name)]
    changes: dict[str, Any] = {name: getattr(views, name)[kept] for name in names}
    if isinstance(views, DrawnBatch):
        changes["draws"] = views.draws[kept.numpy()]
    if views.mix.partner is not None:
        place = torch.zeros(len(views), dtype=torch.int64)
        place[kept] = torch.arange(len(kept))
        partner = place[views.mix.partner[kept]]  # partners of the added rows were cut: any value will do
        changes["mix"] = views.mix._replace(partner=partner)
    if views.logits is not None:
        changes["logits"] = each(views.logits, lambda tensor: tensor[rows])
    return replace(views, **changes)
