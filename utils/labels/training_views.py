"""Choose which stored batch each training batch reads, and keep only the rows that a rank works on."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch

from utils.labels.store import SAMPLED, SHUFFLED, STORED, LabelStore, ViewSource
from utils.labels.types import BatchLabels, each
from utils.labels.views import DrawnBatch, Views
from utils.system.distributed import Parts, Share

REUSED = "reused"
Source = TypeVar("Source", bound=ViewSource, covariant=True)


@lru_cache(maxsize=8)  # the function is called with the same arguments for every batch of an epoch
def draw_batches(order: str, seed: int, epoch: int, stored: int, wanted: int) -> tuple[int, ...]:
    """Return, for each training batch of `epoch`, the index of the stored batch to read.

    The result depends only on the arguments.

    Args:
        order: SAMPLED or SHUFFLED. With SAMPLED (LPLD, LPQLD), each epoch draws anew from all stored batches, without
            replacement. With SHUFFLED (HALD), all stored batches form a shuffled list, and each epoch starts where the
            previous epoch stopped. After the end of the list, a newly shuffled list follows. If `stored` is a multiple
            of `wanted`, the order is the same as in HALD's own training code.
        seed: seed of the random order.
        epoch: epoch of training, from 0.
        stored: number of stored batches.
        wanted: number of batches in an epoch of training. If `wanted` is larger than `stored`, SAMPLED draws only
            `stored` batches.
    """
    if order == SAMPLED:
        return tuple(np.random.default_rng((seed, epoch)).permutation(stored)[:wanted].tolist())
    places = [divmod(place, stored) for place in range(epoch * wanted, (epoch + 1) * wanted)]
    pools = {turn: shuffled(stored, seed + turn) for turn, _ in places}
    return tuple(pools[turn][place] for turn, place in places)


def shuffled(count: int, seed: int) -> list[int]:
    """Return the numbers from 0 to `count` - 1 in a random order, which depends on `seed`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass(frozen=True)
class TrainingViews(Generic[Source]):
    """The batches of a run. Two indices identify a batch: the epoch of training, and the batch within the epoch.

    Attributes:
        store: the source of the batches. If the source is a `DrawnViews`, `order` must be STORED.
        order: which stored batches an epoch of training reads. STORED: epoch e reads the stored epoch e. REUSED:
            training goes through the stored epochs several times, first in the stored order, then in a new random order
            each time. SAMPLED, SHUFFLED: see `draw_batches`.
        seed: seed of the random orders.
        batches_drawn: number of batches in an epoch of training; used only if `order` is SAMPLED or SHUFFLED.
        share: the rows that this rank works on; None if it works on all rows.
        kept_classes: numbers of the classes whose logits are kept, in the order of the student's classes; None to keep
            all. The store must hold the logits of all classes.
    """

    store: Source
    order: str = STORED
    seed: int = 0
    batches_drawn: int = 0
    share: Share | None = None
    kept_classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.is_pool:
            self._labels.random_access()

    @classmethod
    def of(cls, source: "ViewSource | TrainingViews[ViewSource]") -> "TrainingViews[ViewSource]":
        """Return `source` if it is a `TrainingViews`; otherwise wrap it in a `TrainingViews` with order STORED."""
        return source if isinstance(source, TrainingViews) else TrainingViews(source)

    @property
    def _labels(self) -> LabelStore:
        """Return `store` with the type `LabelStore`, for type checkers. Use this only if `store` is a `LabelStore`."""
        return cast(LabelStore, self.store)

    @cached_property
    def _stored(self) -> int:
        """Return the number of batches in all stored epochs together."""
        return self._labels.stored_batches()

    @property
    def is_pool(self) -> bool:
        """Return whether each epoch of training draws from all stored batches (order SAMPLED or SHUFFLED)."""
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
        """Return the number of images from which the views are made."""
        return self.store.num_images

    @property
    def num_classes(self) -> int:
        """Return C, the number of classes of the logits in a batch. `store` must be a `LabelStore`."""
        return self._labels.num_classes if self.kept_classes is None else len(self.kept_classes)

    def kept(self, views: Views) -> Any:
        """Return a batch with its logits [B, C] reduced to `kept_classes`; return `views` itself if all are kept."""
        if self.kept_classes is None or not isinstance(views.logits, torch.Tensor):
            return views
        return replace(views, logits=views.logits[:, list(self.kept_classes)])

    def place(self, epoch: int, batch: int) -> tuple[int, int]:
        """Return (epoch, index within the epoch) of the stored batch that a training batch reads."""
        if self.is_pool:
            numbers = draw_batches(self.order, self.seed, epoch, self._stored, self.batches_drawn)
            return divmod(numbers[batch], self.store.batches_per_epoch)
        if self.order == REUSED:
            turn, epoch = divmod(epoch, self._labels.epochs)
            if turn:
                epoch = int(np.random.default_rng((self.seed, turn)).permutation(self._labels.epochs)[epoch])
        return epoch, batch

    def rows(self, epoch: int, batch: int) -> int:
        """Return the number of rows of a training batch, counted over all ranks."""
        return self.store.rows(*self.place(epoch, batch))

    def read(self, epoch: int, batch: int) -> Views:
        """Return one training batch.

        Weights of the rows, if the labels have any, are normalised over the whole batch, see `BatchLabels.weighted`. If
        `share` is set, the batch is then reduced to the rows of this rank and their mix partners, as `keep_rows`
        describes.
        """
        views = self.kept(self.store.read(*self.place(epoch, batch)))
        if isinstance(views, BatchLabels):
            views = views.weighted()
        return views if self.share is None else keep_rows(views, self.share.rows(len(views)))

    def file(self, epoch: int, batch: int) -> Path:
        """Return the path of the label file that holds a training batch. Error messages show this path."""
        return self._labels.file(*self.place(epoch, batch))

    def parts(self, epoch: int, batch: int) -> Parts | None:
        """Return how many rows of each micro-batch this rank works on; return None if `share` is None.

        The result has one pair per micro-batch of the batch: (number of rows of this rank, number of rows of all
        ranks).
        """
        return None if self.share is None else self.share.parts(self.rows(epoch, batch))

    def smallest_batch(self) -> int:
        """Return the number of rows of the smallest batch in any epoch, counted over all ranks."""
        if self.is_pool:
            store = self._labels
            epochs = range(store.epochs)
            return min(store.rows(epoch, batch) for epoch in epochs for batch in range(store.batches(epoch)))
        # epoch 0 suffices, because all epochs have batches of the same sizes
        return min(self.store.rows(0, batch) for batch in range(self.batches_per_epoch))


def keep_rows(views: Views, rows: torch.Tensor) -> Views:
    """Reduce a batch to some of its rows and the mix partners of these rows.

    The rows to keep come first, then their mix partners. No row appears twice. If `rows` is empty, row 0 is kept,
    because a batch must not be empty.

    Args:
        views: `BatchLabels` or `DrawnBatch`.
        rows: int64 [n], indices of the n rows to keep, ascending.

    Returns:
        a batch of the same type as `views`, with K rows: the n rows to keep, then their mix partners. `logits` has
        only the first n rows. `mix.partner` is int64 [K]; only its first n entries are valid.
    """
    partners = rows if views.mix.partner is None else views.mix.partner[rows]
    kept = torch.cat([rows, partners[~torch.isin(partners, rows)].unique()])
    kept = kept if len(kept) else torch.zeros(1, dtype=torch.int64)
    names = [
        name
        for name in ("coords", "flip", "index", "augment", "strips", "seeds")
        if getattr(views, name, None) is not None
    ]
    changes: dict[str, Any] = {name: getattr(views, name)[kept] for name in names}
    if isinstance(views, DrawnBatch):
        changes["draws"] = views.draws[kept.numpy()]
    if views.mix.partner is not None:
        place = torch.zeros(len(views), dtype=torch.int64)
        place[kept] = torch.arange(len(kept))
        # only the first len(rows) entries are valid; the mixed images of the other rows are not used
        partner = place[views.mix.partner[kept]]
        changes["mix"] = views.mix._replace(partner=partner)
    if views.logits is not None:
        changes["logits"] = each(views.logits, lambda tensor: tensor[rows])
    return replace(views, **changes)
