"""Training batches from worker processes, which decode images and replay their views.

The sampler of the DataLoader yields *positions*, which count through all epochs: position p is slot `p % batch_size`
of batch `p // batch_size`. Batches are counted from the first of epoch 0; a short batch leaves some positions unused.
So one iterator serves the whole run: workers stay alive and prefetch across epochs.
"""

import contextlib
import errno
import gc
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from typing import TypeVar

import torch
from prefetch_generator import BackgroundGenerator
from torch.utils.data import DataLoader, Dataset

from patches import fetch_patch
from utils.data.batch import Batch
from utils.data.folders import Samples, load_rgb
from utils.data.replay import Normalise, finish_views, replay_view
from utils.labels.store import ViewSource
from utils.labels.training_views import TrainingViews
from utils.labels.types import Answers, Mix, MixBox, each
from utils.labels.views import Views, fractions, index_of
from utils.system.distributed import Parts, wait_for_group_threads
from utils.system.errors import OPEN_FILES, WORKER_DIED, InputError, explain_system_error, met_file_limit
from utils.system.files import can_open
from utils.system.process import prepare_worker

View = tuple[torch.Tensor, int, torch.Tensor, bool, int]  # uint8 [S, S, 3], class, coords [4], flip, image index
Item = tuple[list[torch.Tensor], torch.Tensor | None, float | None, MixBox | None, Answers | None]
Loaded = TypeVar("Loaded")

FILES_PER_WORKER, SPARE_FILES = 4, 16  # files that a DataLoader opens: per worker, and in addition
DYING_SECONDS = 2  # time limit of the wait for a dying worker's exit code


class ViewDataset(Dataset):
    """Views of a training folder, one per position; the patched fetcher loads each batch's labels first.

    Args:
        samples: list of (path, class).
        source: `TrainingViews`; or a label store or `DrawnViews`, to show all of its batches in their own order.
        input_size: S.
    """

    mode = "fkd_load"  # read by a PyTorch that was edited by hand for the reference code

    def __init__(self, samples: Samples, source: ViewSource, input_size: int) -> None:
        self.samples, self.source, self.input_size = samples, TrainingViews.of(source), input_size
        self.labels: Views  # labels of the batch that is being loaded

    def locate(self, position: int) -> tuple[int, int, int]:
        """Return (epoch, batch, slot) of a position."""
        number, slot = divmod(position, self.source.batch_size)
        return *divmod(number, self.source.batches_per_epoch), slot

    def load_batch_config(
        self, position: int
    ) -> tuple[torch.Tensor | None, float | None, MixBox | None, Answers | None]:
        """Load the labels of the batch that starts at `position`; return (mix partner, lam, box, logits).

        A PyTorch that was edited by hand for the reference code unpacks these four items.
        """
        epoch, batch, _ = self.locate(position)
        self.labels = labels = self.source.read(epoch, batch)
        return *labels.mix, labels.logits

    def __getitems__(self, _positions: list[int]) -> list[View]:
        """Return every view of the batch whose labels are loaded."""
        return [self.view(slot) for slot in range(len(self.labels))]

    def __getitem__(self, position: int) -> View:
        """Return one view; only a PyTorch that was edited by hand calls this."""
        if self.source.share is not None:
            raise InputError("this PyTorch was edited by hand and cannot share batches; reinstall it, or use 1 process")
        return self.view(self.locate(position)[2])

    def view(self, slot: int) -> View:
        """Return row `slot` of the loaded batch: (uint8 [S, S, 3], class, coords float32 [4], flip, image index)."""
        index = int(index_of(self.labels)[slot])
        path, target = self.samples[index]
        image = load_rgb(path)
        size = image.height, image.width
        box, flip = self.labels.view(slot, size)
        return replay_view(image, box, flip, self.input_size), target, fractions(box, size), flip, index


class Positions:
    """Batch sampler that yields the list of positions of each batch of `epochs`.

    The first `first_batch` batches of the first epoch are skipped.
    """

    def __init__(self, epochs: Sequence[int], source: ViewSource, first_batch: int = 0) -> None:
        self.epochs, self.source, self.first_batch = epochs, source, first_batch

    def __iter__(self) -> Iterator[list[int]]:
        source, skipped = self.source, self.first_batch
        for epoch in self.epochs:
            for batch in range(skipped, source.batches_per_epoch):
                first = (epoch * source.batches_per_epoch + batch) * source.batch_size
                yield list(range(first, first + source.rows(epoch, batch)))
            skipped = 0

    def __len__(self) -> int:
        return len(self.epochs) * self.source.batches_per_epoch - self.first_batch


def start_worker(_worker_id: int) -> None:
    """Prepare a worker process: patch its PyTorch, leave signals to the parent, and end if the parent ends."""
    gc.freeze()  # garbage collection of the parent's objects would copy their memory pages
    fetch_patch.apply()
    prepare_worker()
    # if a thread cannot send a batch, Python drops it or retries for ever, and the parent waits: end the worker instead
    Queue._on_queue_feeder_error = staticmethod(lambda error, _item: end_worker(error))  # type: ignore[attr-defined]
    sys.excepthook = lambda _type, error, _traceback: end_worker(error)


def end_worker(error: BaseException) -> None:
    """End this worker process after an error; the exit code EMFILE tells the parent about the limit on open files."""
    limit = met_file_limit(error)
    if not limit and not isinstance(error, (OSError, RuntimeError)):
        sys.__excepthook__(type(error), error, error.__traceback__)
    os._exit(errno.EMFILE if limit else 1)


def view_loader(
    dataset: ViewDataset,
    epochs: Sequence[int],
    workers: int,
    device: torch.device,
    context: str | None = None,
    first_batch: int = 0,
) -> DataLoader:
    """Return a DataLoader over the batches of `epochs`; the first `first_batch` batches of the first epoch are skipped.

    Each item is `((views, targets, coords, flips, index), mix partner, lam, box, logits)`.
    """
    fetch_patch.apply()
    return DataLoader(
        dataset,
        batch_sampler=Positions(epochs, dataset.source, first_batch),
        num_workers=workers,
        worker_init_fn=start_worker,
        multiprocessing_context=context if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # so that the loader does not draw from the global random state
    )


def guarded(loader: Iterable[Loaded]) -> Iterator[Loaded]:
    """Iterate over a DataLoader; raise InputError with a remedy if a worker dies or too few files can be opened."""
    workers = getattr(loader, "num_workers", 0)
    if workers and not can_open(FILES_PER_WORKER * workers + SPARE_FILES):  # a half-started loader cannot be shut down
        raise InputError(OPEN_FILES)
    wait_for_group_threads()  # because the next line forks the workers
    iterator = iter(loader)
    try:
        yield from iterator
    except (RuntimeError, OSError, EOFError) as error:
        reason = explain_system_error(error)
        closed = isinstance(error, (EOFError, ConnectionError)) and "in DataLoader worker process" not in str(error)
        if reason == WORKER_DIED or closed:
            reason = OPEN_FILES if errno.EMFILE in exit_codes(iterator) else WORKER_DIED
        if reason is None:
            raise
        raise InputError(reason) from error


def exit_codes(iterator: object) -> set[int | None]:
    """Return the exit codes of a DataLoader's workers, after a short wait for the one that is dying."""
    workers: list[BaseProcess] = getattr(iterator, "_workers", [])
    codes: set[int | None] = set()
    end = time.monotonic() + DYING_SECONDS
    while codes <= {None} and time.monotonic() < end:
        with contextlib.suppress(RuntimeError):  # raised by PyTorch's signal handler when a worker ends
            time.sleep(0.05)
            codes = {worker.exitcode for worker in workers}
    return codes


def prepare_batch(normalise: Normalise, device: torch.device, item: Item, parts: Parts | None) -> Batch:
    """Copy one loader item to the device, normalise and mix it, and return this rank's rows as a `Batch`."""
    (views, targets, *_), partner, lam, box, logits = item
    images = finish_views(views.to(device, non_blocking=True), normalise, Mix(partner, lam, box))
    soft_labels = each(logits, lambda tensor: tensor.to(device, non_blocking=True))
    return Batch(images, soft_labels, targets.to(device, non_blocking=True)).own(parts)


class WorkerBatches:
    """Training batches from worker processes, copied to the device one step ahead of the model.

    Args:
        dataset: `ViewDataset`.
        epochs: epochs that will be requested, in this order.
        normalise: `Normalise` on the device.
        workers: number of processes; 0 decodes in this process.
        device: torch.device.
        context: multiprocessing start method; None takes Python's default.
    """

    def __init__(
        self,
        dataset: ViewDataset,
        epochs: Sequence[int],
        normalise: Normalise,
        workers: int,
        device: torch.device,
        context: str | None = None,
    ) -> None:
        self.source, self.device = dataset.source, device
        self.batches_per_epoch = self.source.batches_per_epoch
        # a stream that refers to this object would be a cycle: freed late, and its workers would take 10 s to end
        self.prepare = partial(prepare_batch, normalise, device)
        self.loader = partial(view_loader, dataset, workers=workers, device=device, context=context)
        self.epochs = epochs
        self.stream: Iterator[Batch] | None = None
        self.again = partial(WorkerBatches, normalise=normalise, workers=workers, device=device, context=context)

    def of_same_images(self, dataset: ViewDataset, epochs: range) -> "WorkerBatches":
        """Return the batches of another `ViewDataset` of the same images, for other epochs."""
        return self.again(dataset, epochs)

    def start(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """Start the workers at a batch of an epoch; return the stream of batches up to the end of the last epoch."""
        loader = self.loader(self.epochs[self.epochs.index(epoch) :], first_batch=first_batch)
        source, per_epoch = self.source, self.batches_per_epoch
        parts = (source.parts(epoch + n // per_epoch, n % per_epoch) for n in count(first_batch))
        stream = map(self.prepare, guarded(loader), parts)
        if self.device.type == "cuda":  # prefetch one batch; on the CPU that would slow the step down
            stream = BackgroundGenerator(stream, max_prefetch=1)
        return stream

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of the next epoch; `first_batch` may exceed 0 only in the first epoch that is requested."""
        self.stream = self.stream or self.start(epoch, first_batch)
        for _ in range(first_batch, self.batches_per_epoch):
            yield next(self.stream)
