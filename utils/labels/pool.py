"""Which stored batches an epoch of training visits, and in which order."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.labels.batch import BatchLabels
from utils.labels.rank_shares import SharedLabels
from utils.labels.store import LabelStore, ViewSource

STORED, SAMPLED, SHUFFLED = "stored", "sampled", "shuffled"


def draw_batches(order: str, seed: int, epoch: int, stored: int, wanted: int) -> list[int]:
    """Draw the batches of one epoch of training: a pure function of its arguments.

    Args:
        order: SAMPLED: without replacement from all that are stored, anew each epoch (LPLD, LPQLD). SHUFFLED: from
            a pool that holds each stored batch once, in random order, and is refilled when it is empty (HALD; the
            very order of its trainer where the epochs fill the pool without remainder).
        seed: of the drawing.
        epoch: of training, from 0.
        stored: number of stored batches.
        wanted: batches of an epoch of training; SAMPLED draws no more than there are.

    Returns:
        numbers of stored batches.
    """
    if order == SAMPLED:
        return np.random.default_rng((seed, epoch)).permutation(stored)[:wanted].tolist()
    places = [divmod(place, stored) for place in range(epoch * wanted, (epoch + 1) * wanted)]
    pools = {turn: shuffled(stored, seed + turn) for turn, _ in places}
    return [pools[turn][place] for turn, place in places]


def shuffled(count: int, seed: int) -> list[int]:
    """The numbers below `count` in random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


class PooledLabels:
    """A label store whose batches are drawn at random for each epoch of training. Everything else is the store's own.

    Args:
        store: `LabelStore`.
        order: SAMPLED or SHUFFLED, see `draw_batches`.
        seed: of the drawing.
        batches_per_epoch: batches of an epoch of training.
    """

    def __init__(self, store: LabelStore, order: str, seed: int, batches_per_epoch: int) -> None:
        self.store, self.order, self.seed, self.batches_per_epoch = store, order, seed, batches_per_epoch
        self.stored = stored_batches(store)
        store.random_access()
        self.drawn: tuple[int | None, list[int]] = (None, [])

    def __getattr__(self, name: str) -> Any:
        if name == "store":  # not there yet while a worker unpickles this
            raise AttributeError(name)
        return getattr(self.store, name)

    def place(self, epoch: int, batch: int) -> tuple[int, int]:
        """The stored (epoch, batch) that a batch of training is."""
        if self.drawn[0] != epoch:
            numbers = draw_batches(self.order, self.seed, epoch, self.stored, self.batches_per_epoch)
            self.drawn = (epoch, numbers)
        return divmod(self.drawn[1][batch], self.store.batches_per_epoch)

    def batches(self, _epoch: int) -> int:
        """As `LabelStore.batches`."""
        return self.batches_per_epoch

    def rows(self, epoch: int, batch: int) -> int:
        """As `LabelStore.rows`."""
        return self.store.rows(*self.place(epoch, batch))

    def read(self, epoch: int, batch: int) -> BatchLabels:
        """As `LabelStore.read`."""
        return self.store.read(*self.place(epoch, batch))

    def file(self, epoch: int, batch: int) -> Path:
        """As `LabelStore.file`."""
        return self.store.file(*self.place(epoch, batch))

    def check_complete(self, _epochs: Iterable[int]) -> None:
        """As `LabelStore.check_complete`: any of the stored epochs may be drawn."""
        self.store.check_complete(range(self.store.epochs))


def stored_batches(store: LabelStore) -> int:
    """Number of batches in a store."""
    return sum(store.batches(epoch) for epoch in range(store.epochs))


def smallest_batch(source: ViewSource) -> int:
    """Rows of the smallest batch, over all ranks, that training on a label store or `DrawnViews` may meet."""
    if isinstance(source, SharedLabels):
        source = source.store
    if isinstance(source, PooledLabels):
        store = source.store
        return min(store.rows(epoch, batch) for epoch in range(store.epochs) for batch in range(store.batches(epoch)))
    return min(source.rows(0, batch) for batch in range(source.batches_per_epoch))  # epochs are alike
