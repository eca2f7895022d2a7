"""Load training batches with worker processes, which decode, crop, resize and flip the images.

The sampler of the DataLoader yields *positions*. A position is the number of an augmented image (view) in the whole
run: position p is row (slot) `p % batch_size` of batch `p // batch_size`. Batches are numbered through all epochs. If a
batch is short, the positions of its missing rows are unused. Since positions do not start again in every epoch, one
DataLoader iterator serves the whole run: its workers stay alive and prefetch across epochs.
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
from utils.data.images import Samples, height_and_width, load_image
from utils.data.replay import Normalise, finish_views, replay_view, shuffle_patches
from utils.labels.store import ViewSource
from utils.labels.training_views import TrainingViews
from utils.labels.types import Answers, Mix, MixBox, each
from utils.labels.views import Views, fractions, index_of
from utils.system.distributed import Parts, wait_for_group_threads
from utils.system.errors import OPEN_FILES, WORKER_DIED, InputError, explain_system_error, met_file_limit
from utils.system.files import can_open
from utils.system.process import prepare_worker

# (pixels [S, S, C], class, crop float32 [4] as fractions of height and width, flip, image index); with an augmentation,
# its random parameters float32 [P] follow
View = tuple
Item = tuple[list[torch.Tensor], torch.Tensor | None, float | None, MixBox | None, Answers | None]
Loaded = TypeVar("Loaded")

FILES_PER_WORKER, SPARE_FILES = 4, 16  # a DataLoader may open 4 files per worker process and 16 more
DYING_SECONDS = 2  # longest time to wait for the exit code of a worker process that is about to end


class ViewDataset(Dataset):
    """Dataset of the augmented images (views) of a run.

    The index of a view is its position in the run: batch number x batch size + row.

    PyTorch's fetcher, patched by patches/fetch_patch.py, loads the labels of a batch before its views.

    Args:
        samples: (image, class) of every image.
        source: crops, flips and labels of every batch of the run: a `TrainingViews`, a label store or a `DrawnViews`.
            The batches of a label store are used in stored order.
        input_size: S, side of a view in pixels.
        channels: C, number of channels of a view: 3 for RGB, 1 for grey.
    """

    # the reference code requires a PyTorch whose fetcher was edited by hand; that fetcher reads this attribute
    mode = "fkd_load"

    def __init__(self, samples: Samples, source: ViewSource, input_size: int, channels: int = 3) -> None:
        self.samples, self.source = samples, TrainingViews.of(source)
        self.input_size, self.channels = input_size, channels
        self.labels: Views  # labels of the batch that is being loaded

    def locate(self, position: int) -> tuple[int, int, int]:
        """Convert the position of a view in the run to (epoch, batch, row)."""
        number, slot = divmod(position, self.source.batch_size)
        return *divmod(number, self.source.batches_per_epoch), slot

    def load_batch_config(
        self, position: int
    ) -> tuple[torch.Tensor | None, float | None, MixBox | None, Answers | None]:
        """Load the labels of the batch that starts at `position`; return (mix partner, lam, box, logits).

        A PyTorch whose fetcher was edited by hand for the reference code calls this method and unpacks the four items.
        """
        epoch, batch, _ = self.locate(position)
        self.labels = labels = self.source.read(epoch, batch)
        return *labels.mix, labels.logits

    def __getitems__(self, _positions: list[int]) -> list[View]:
        """Return all augmented images of the batch whose labels `load_batch_config` has loaded."""
        return [self.view(slot) for slot in range(len(self.labels))]

    def __getitem__(self, position: int) -> View:
        """Return one augmented image of the loaded batch.

        Callers are `Preview` and a PyTorch whose fetcher was edited by hand for the reference code.

        Raises:
            InputError: several processes share the batches. Only `__getitems__` supports shared batches.
        """
        if self.source.share is not None:
            raise InputError("this PyTorch was edited by hand and cannot share batches; reinstall it, or use 1 process")
        return self.view(self.locate(position)[2])

    def view(self, slot: int) -> View:
        """Return row `slot` of the loaded batch, cropped, resized and flipped, but not mixed.

        Returns:
            (pixels uint8 or float32 [S, S, C], class, crop float32 [4] as fractions of height and width, flip, image
            index). With an augmentation, its random parameters float32 [P] follow.
        """
        index = int(index_of(self.labels)[slot])
        ref, target = self.samples[index]
        image = load_image(ref, self.channels)
        if self.labels.change is not None and self.labels.seeds is not None:
            image = self.labels.change(image, int(self.labels.seeds[slot]))
        if self.labels.strips is not None:
            image = shuffle_patches(image, self.labels.strips[slot])
        size = height_and_width(image)
        box, flip = self.labels.view(slot, size)
        parameters = () if self.labels.augment is None else (self.labels.augment[slot],)
        return replay_view(image, box, flip, self.input_size), target, fractions(box, size), flip, index, *parameters


class Positions:
    """Batch sampler that yields one list of positions for each batch of `epochs`.

    Positions number the rows of the whole run, see the module. The first `first_batch` batches of the first epoch are
    skipped.
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
    """Prepare a worker process: patch its PyTorch, ignore signals that the parent handles, exit with the parent."""
    gc.freeze()  # exclude the parent's objects from garbage collection, which would copy their memory pages
    fetch_patch.apply()
    prepare_worker()
    # end the worker if its queue thread cannot send a batch; by default, Python would drop the batch or retry for
    # ever, and the parent would wait in vain
    Queue._on_queue_feeder_error = staticmethod(lambda error, _item: end_worker(error))  # type: ignore[attr-defined]
    sys.excepthook = lambda _type, error, _traceback: end_worker(error)


def end_worker(error: BaseException) -> None:
    """Exit this worker process after an error, with code EMFILE if too many files were open, else with code 1."""
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

    Each item is one batch, `((views, targets, crops, flips, image indices), mix partner, lam, box, logits)`; the views
    are not mixed yet.
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
    """Yield the items of a DataLoader.

    Raises:
        InputError: a worker process died, or the limit on open files is too low. The message gives a remedy.
    """
    workers = getattr(loader, "num_workers", 0)
    # check the limit on open files in advance, because a DataLoader that fails while it starts cannot be shut down
    if workers and not can_open(FILES_PER_WORKER * workers + SPARE_FILES):
        raise InputError(OPEN_FILES)
    # the next line forks worker processes, which may hang if threads of the process group hold locks at that moment
    wait_for_group_threads()
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
    """Return the exit codes of the workers of a DataLoader's iterator; None stands for a worker that is still running.

    Wait until at least one worker has ended, but at most DYING_SECONDS.
    """
    workers: list[BaseProcess] = getattr(iterator, "_workers", [])
    codes: set[int | None] = set()
    end = time.monotonic() + DYING_SECONDS
    while codes <= {None} and time.monotonic() < end:
        with contextlib.suppress(RuntimeError):  # PyTorch's signal handler raises this when a worker ends
            time.sleep(0.05)
            codes = {worker.exitcode for worker in workers}
    return codes


def prepare_batch(normalise: Normalise, device: torch.device, item: Item, parts: Parts | None) -> Batch:
    """Copy an item of `view_loader` to the device, normalise and mix it, and return this rank's rows as a `Batch`."""
    (views, targets, _, _, _, *parameters), partner, lam, box, logits = item
    mix = Mix(partner, lam, box)
    images = finish_views(views.to(device, non_blocking=True), normalise, mix, *parameters)
    soft_labels = each(logits, lambda tensor: tensor.to(device, non_blocking=True))
    return Batch(images, soft_labels, targets.to(device, non_blocking=True)).own(parts)


class WorkerBatches:
    """Source of training batches that worker processes load; a GPU gets each batch one step in advance.

    Args:
        dataset: `ViewDataset`.
        epochs: epochs that will be requested, in this order.
        normalise: `Normalise` on the device.
        workers: number of worker processes; with 0, this process decodes the images.
        device: torch.device.
        context: multiprocessing start method; None for Python's default.
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
        # partial functions, because methods would create a reference cycle: self -> `stream` -> method -> self. A cycle
        # is freed late, and the workers would then take 10 s to end.
        self.prepare = partial(prepare_batch, normalise, device)
        self.loader = partial(view_loader, dataset, workers=workers, device=device, context=context)
        self.epochs = epochs
        self.stream: Iterator[Batch] | None = None
        self.again = partial(WorkerBatches, normalise=normalise, workers=workers, device=device, context=context)

    def of_same_images(self, dataset: ViewDataset, epochs: range) -> "WorkerBatches":
        """Return a `WorkerBatches` for other views and labels of the same images, with the same settings.

        Args:
            dataset: `ViewDataset` of the same images.
            epochs: epochs that will be requested, in this order.
        """
        return self.again(dataset, epochs)

    def start(self, epoch: int, first_batch: int) -> Iterator[Batch]:
        """Return an iterator over all batches from `first_batch` of `epoch` to the end of the last epoch.

        The worker processes start when the first batch is fetched.
        """
        loader = self.loader(self.epochs[self.epochs.index(epoch) :], first_batch=first_batch)
        source, per_epoch = self.source, self.batches_per_epoch
        parts = (source.parts(epoch + n // per_epoch, n % per_epoch) for n in count(first_batch))
        stream = map(self.prepare, guarded(loader), parts)
        # on a GPU, a thread prefetches one batch; on the CPU, the thread would slow down the training step
        if self.device.type == "cuda":
            stream = BackgroundGenerator(stream, max_prefetch=1)
        return stream

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the training batches of `epoch`, from `first_batch` on; epochs must be requested in order.

        `first_batch` may be greater than 0 only in the first epoch that is requested.
        """
        self.stream = self.stream or self.start(epoch, first_batch)
        for _ in range(first_batch, self.batches_per_epoch):
            yield next(self.stream)
