"""Image folders, worker processes that replay views, validation images: files in, `Batch` out.

What travels through the DataLoader is a *position*. Positions run on over all epochs: position p
is slot `p % N % batch_size` of batch `p % N // batch_size` of epoch `p // N`, N the images of an
epoch. So one iterator serves the whole run: workers stay alive and prefetch across epochs.
"""

import gc
import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from PIL import Image
from prefetch_generator import BackgroundGenerator
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as TF

from patches import fetch_patch
from utils.augment import finish_views, fractions, replay_view
from utils.distributed import processes_here
from utils.errors import InputError
from utils.labels import SharedLabels
from utils.signals import prepare_worker


@dataclass(frozen=True)
class Batch:
    """One optimizer step's worth of data, mixed and on its device.

    Attributes:
        images: float [B, 3, S, S], normalised.
        soft_labels: float32 [B, C], the teacher's logits; None where no teacher has answered.
        targets: int64 [B], folder classes.
        parts: where several processes share a batch: (rows here, rows) of each of its micro-batches.
    """

    images: torch.Tensor
    soft_labels: torch.Tensor | None
    targets: torch.Tensor
    parts: tuple | None = None

    def __len__(self):
        return len(self.targets)

    @property
    def whole(self):
        """Rows of the batch over all processes."""
        return len(self) if self.parts is None else sum(rows for _, rows in self.parts)

    def split(self, size):
        """Yield micro-batches of `size` rows, or as `parts` says; the last may be shorter, none is dropped."""
        rows = len(self)
        parts = self.parts or [(n, n) for n in (min(size, rows - start) for start in range(0, rows, size))]
        start = 0
        for here, whole in parts:
            rows = slice(start, start + here)
            soft_labels = None if self.soft_labels is None else self.soft_labels[rows]
            yield Batch(self.images[rows], soft_labels, self.targets[rows], ((here, whole),))
            start += here

    def own(self, parts):
        """Return the rows that `parts` counts, which come first; the others were there to be mixed in."""
        if parts is None:
            return self
        here = sum(own for own, _ in parts)
        soft_labels = None if self.soft_labels is None else self.soft_labels[:here]
        return Batch(self.images[:here], soft_labels, self.targets[:here], parts)

    def tensors(self):
        """Return all that differs from one step to the next; an item may be None."""
        return self.images, self.soft_labels, self.targets

    def like(self, tensors):
        """Return the batch that other `tensors()` of the same shapes make."""
        return Batch(*tensors)


def open_folder(path, flag):
    """Scan an image folder with one sub-folder per class, classes in the order of sorted names.

    Returns:
        torchvision ImageFolder; `.samples` is a list of (path, class).

    Raises:
        InputError: names `flag` and what is missing.
    """
    if not path or not os.path.isdir(path):
        raise InputError(f"{flag} {path} is not a folder; give a folder with one sub-folder of images per class")
    try:
        return ImageFolder(path)
    except FileNotFoundError as error:
        problem = str(error).split(". ")[0].replace("\n", " ")
        raise InputError(f"{flag} {path}: {problem}; every sub-folder must hold the images of one class") from None


def first_images(samples, per_class):
    """Keep the first `per_class` images of each class (IPC) of a list of (path, class); None keeps all."""
    seen = Counter()
    kept = []
    for path, target in samples:
        seen[target] += 1
        if per_class is None or seen[target] <= per_class:
            kept.append((path, target))
    return kept


def load_rgb(path):
    """Decode an image file to a PIL RGB image, or raise InputError with its path."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"it claims {image.width} x {image.height} pixels")
            return image.convert("RGB")
    except Exception as error:
        raise InputError(f"{path} cannot be decoded ({error or type(error).__name__}); replace the image") from None


class ViewDataset(Dataset):
    """Views of a training folder, one per position; the patched fetcher loads each batch's labels first.

    Args:
        samples: list of (path, class).
        source: a label store or `DrawnViews`: `read(epoch, batch)`, `num_images`, `batch_size`.
        input_size: S.
    """

    mode = "fkd_load"  # what a PyTorch edited by hand for the reference code looks for

    def __init__(self, samples, source, input_size):
        self.samples, self.source, self.input_size = samples, source, input_size
        self.labels = None

    def locate(self, position):
        """Return (epoch, batch, slot) of a position."""
        epoch, place = divmod(position, self.source.num_images)
        return epoch, *divmod(place, self.source.batch_size)

    def load_batch_config(self, position):
        """Load the labels of the batch that starts at `position`; return what applies to it as a whole."""
        epoch, batch, _ = self.locate(position)
        self.labels = self.source.read(epoch, batch)
        return self.labels.mix_index, self.labels.mix_lam, self.labels.mix_bbox, self.labels.logits

    def __getitems__(self, _positions):
        """Return every view of the batch whose labels are loaded."""
        return [self.view(slot) for slot in range(len(self.labels.index))]

    def __getitem__(self, position):
        """Return one view, for a PyTorch edited by hand that asks for one at a time."""
        if isinstance(self.source, SharedLabels):
            raise InputError("this PyTorch was edited by hand and cannot share batches; reinstall it, or use 1 process")
        return self.view(self.locate(position)[2])

    def view(self, slot):
        """Return (view uint8 [S, S, 3], class, coords float32 [4], flip, image index)."""
        index = int(self.labels.index[slot])
        path, target = self.samples[index]
        image = load_rgb(path)
        size = image.height, image.width
        box, flip = self.labels.view(slot, size)
        return replay_view(image, box, flip, self.input_size), target, fractions(box, size), flip, index


class Positions:
    """Batch sampler over `epochs` (a sequence): lists of positions, one list per stored batch.

    The first `first_batch` batches of the first epoch are left out.
    """

    def __init__(self, epochs, num_images, batch_size, first_batch=0):
        self.epochs, self.num_images, self.batch_size, self.first_batch = epochs, num_images, batch_size, first_batch

    def __iter__(self):
        skipped = self.first_batch * self.batch_size
        for epoch in self.epochs:
            first, last = epoch * self.num_images, (epoch + 1) * self.num_images
            for start in range(first + skipped, last, self.batch_size):
                yield list(range(start, min(start + self.batch_size, last)))
            skipped = 0

    def __len__(self):
        return len(self.epochs) * -(-self.num_images // self.batch_size) - self.first_batch


def start_worker(_worker_id):
    """Prepare a worker process: patch its PyTorch; leave signals to the parent, and end with it."""
    gc.freeze()  # collecting what came from the parent would copy its memory
    fetch_patch.apply()
    prepare_worker()


def view_loader(dataset, epochs, workers, device, context=None, first_batch=0):
    """Return a DataLoader over the batches of `epochs` of a `ViewDataset`, from `first_batch` of the first one on.

    Each item is `((views, targets, coords, flips, index), mix_index, mix_lam, mix_bbox, logits)`.
    """
    fetch_patch.apply()
    return DataLoader(
        dataset,
        batch_sampler=Positions(epochs, dataset.source.num_images, dataset.source.batch_size, first_batch),
        num_workers=workers,
        worker_init_fn=start_worker,
        multiprocessing_context=context if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # keeps the loader away from the global random state
    )


def guarded(loader):
    """Iterate a DataLoader; the death of a worker becomes an InputError with the remedy."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a data loading worker died, most often for want of memory or of /dev/shm; lower -j/--workers"
        ) from error


def parts_of(source, batch):
    """`Batch.parts` of batch `batch` of an epoch; None where this process has all rows."""
    return source.parts(batch) if isinstance(source, SharedLabels) else None


def prepare_batch(normalise, device, item, parts):
    """Copy one loader item to the device, normalise and mix it: a `Batch`."""
    (views, targets, *_), mix_index, mix_lam, mix_bbox, logits = item
    images = finish_views(views.to(device, non_blocking=True), normalise, mix_index, mix_lam, mix_bbox)
    soft_labels = None if logits is None else logits.to(device, non_blocking=True).float()
    return Batch(images, soft_labels, targets.to(device, non_blocking=True)).own(parts)


class WorkerBatches:
    """Training batches from worker processes, copied to the device one step ahead of the model.

    Args:
        dataset: `ViewDataset`.
        epochs: range of epochs that will be asked for, in order.
        normalise: `Normalise` on the device.
        workers: number of processes; 0 decodes in this process.
        device: torch.device.
        context: multiprocessing start method; None takes Python's default.
    """

    def __init__(self, dataset, epochs, normalise, workers, device, context=None):
        self.source, self.device = dataset.source, device
        self.batches_per_epoch = self.source.batches_per_epoch
        # bound to this object, the stream would be a cycle: freed late, its workers would take 10 s to end
        self.prepare = partial(prepare_batch, normalise, device)
        self.loader = partial(view_loader, dataset, workers=workers, device=device, context=context)
        self.epochs, self.stream = epochs, None

    def start(self, epoch, first_batch):
        """Start the workers at a batch of an epoch; they run on to the end of the last epoch."""
        loader = self.loader(self.epochs[self.epochs.index(epoch) :], first_batch=first_batch)
        source, per_epoch = self.source, self.batches_per_epoch
        parts = (parts_of(source, batch % per_epoch) for batch in count(first_batch))
        stream = map(self.prepare, guarded(loader), parts)
        if self.device.type == "cuda":  # copying and mixing overlap the step; on the CPU they would compete with it
            stream = BackgroundGenerator(stream, max_prefetch=1)
        return stream

    def epoch(self, epoch, first_batch=0):
        """Yield the batches of the next epoch, from `first_batch` on in the first one asked for."""
        self.stream = self.stream or self.start(epoch, first_batch)
        for _ in range(first_batch, self.batches_per_epoch):
            yield next(self.stream)


class LiveTeacher:
    """Batches whose soft labels a teacher answers as they pass (naive KD).

    Args:
        batches: batches without soft labels, as `WorkerBatches` of `DrawnViews`.
        teacher: images [B, 3, S, S] -> logits float32 [B, C].
    """

    def __init__(self, batches, teacher):
        self.batches, self.teacher = batches, teacher
        self.batches_per_epoch = batches.batches_per_epoch

    def epoch(self, epoch, first_batch=0):
        """Yield the batches of an epoch, answered."""
        for batch in self.batches.epoch(epoch, first_batch):
            yield Batch(batch.images, self.teacher(batch.images), batch.targets, batch.parts)


class CentreCrops(Dataset):
    """Validation images: shorter side to `S * 256 / 224`, then the centre S x S."""

    def __init__(self, samples, input_size):
        self.samples, self.input_size = samples, input_size

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, item):
        path, target = self.samples[item]
        image = TF.resize(load_rgb(path), round(self.input_size * 256 / 224))
        return TF.pil_to_tensor(TF.center_crop(image, self.input_size)).permute(1, 2, 0), target


class ValidationBatches:
    """Validation images in file order; decoded once and kept where they fit in memory.

    Iterating yields (images float [B, 3, S, S], targets int64 [B]) on the device. The batch size is
    independent of --batch-size, since it does not change the result.
    """

    def __init__(self, samples, input_size, normalise, workers, device, batch_size=None):
        self.device, self.normalise = device, normalise
        dataset = CentreCrops(samples, input_size)
        self.loader = DataLoader(
            dataset,
            batch_size=batch_size or (512 if device.type == "cuda" else 64),
            num_workers=workers,
            worker_init_fn=start_worker,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),
        )
        self.keep = keep_where(len(samples) * input_size**2 * 3, device)
        self.kept = []

    def __len__(self):
        return len(self.loader)

    def decoded(self):
        """Yield (images uint8 [B, S, S, 3], targets), from memory after the first complete pass."""
        if self.kept:
            yield from self.kept
            return
        kept = []
        for images, targets in guarded(self.loader):
            if self.keep is not None:  # copied: what workers hand over is shared memory, which is scarce
                images, targets = images.to(self.keep, copy=True), targets.to(self.keep, copy=True)
                kept.append((images, targets))
            yield images, targets
        self.kept = kept

    def __iter__(self):
        for images, targets in self.decoded():
            images = self.normalise(images.to(self.device, non_blocking=True))
            yield images, targets.to(self.device, non_blocking=True)


def keep_where(num_bytes, device):
    """Return the device on which `num_bytes` of images can stay: the GPU, the host, or None."""
    if device.type == "cuda" and num_bytes < torch.cuda.mem_get_info(device)[0] / 3:
        return device
    return torch.device("cpu") if num_bytes < free_host_memory() / 3 else None


def free_host_memory():
    """Bytes of memory that this process may still take; a container's limit counts where it is lower.

    Processes of one run on one machine share what is free evenly.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            free = min(free, int(limit.read()) - int(used.read()))
    except (OSError, StopIteration, ValueError):
        pass
    return free // processes_here()
