"""Determine the pixels and channels of a run's images, decide where decoded images are kept, and build the batches.

`plan_memory` decides where decoded images are kept, also in a dry run. The rules of `--loader auto` are:

* In training on the CPU, decoded training images stay in host memory if they fit in half of the free host memory. For
  Apple and Intel GPUs, the rule is the same with the GPU's memory.
* In training on a CUDA GPU, decoded training images stay in GPU memory if there is room for them beside the estimated
  needs of training. If the labels of a whole epoch do not fit beside the images, labels are uploaded in parts.
* Training images that do not stay in memory are decoded by worker processes in every epoch.
* Decoded validation images stay in GPU memory if there is room left. Otherwise they stay in host memory if they fit in
  a third of the free host memory. Otherwise they are decoded again for every evaluation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch

from utils.config import Findings, KDConfig, TrainConfig, grey
from utils.data.batch import Batch, Batches, LiveTeacher
from utils.data.device import DeviceBatches
from utils.data.identity import KnownImages
from utils.data.images import ImageSet, Samples, Values, image_size
from utils.data.replay import Normalise
from utils.data.resident import ResidentBatches
from utils.data.validation import ROWS_ON_A_DEVICE, ValidationBatches
from utils.data.workers import ViewDataset, WorkerBatches
from utils.data.zca import Zca
from utils.labels.hard import HardViews, Phases
from utils.labels.store import ViewSource
from utils.labels.training_views import TrainingViews
from utils.labels.types import tensors_of
from utils.run.student import Student
from utils.system.distributed import Share, World
from utils.system.errors import InputError
from utils.system.log import log
from utils.system.machine import free_host_memory, free_memory, readable_size
from utils.training.memory_estimate import MemoryEstimate
from utils.training.models import takes_channels
from utils.training.precision import Precision
from utils.training.weights import channels_of, load_weights

USABLE = 0.9  # usable fraction of the free device memory; the rest is lost to gaps between allocations
# maximum bytes of labels per upload: a little below 2^30, because pinned buffers are rounded up to a power of two
LABEL_PART = 1e9
# number of label uploads in device memory at the same time: one in use, one waiting, one in transfer
IN_FLIGHT = 3
# bytes of crop, flip and mix parameters per view, uploaded with the labels: seven int64 numbers
GEOMETRY_BYTES = 56
FLOAT_BYTES = 4
# number of channels -> bytes per pixel of a decoded PIL image (PIL stores RGB in 4 bytes)
PIL_BYTES = {1: 1, 3: 4}


@dataclass(frozen=True)
class TrainingData:
    """The images, views and classes of a run.

    Attributes:
        train: (image, class) of every training image.
        val: (image, class) of every validation image.
        source: views for soft-label epochs, with the rows of all ranks.
        num_classes: C, number of classes.
        names: name of each of C classes.
        images: the training images with their digests; None if a dry run did not compute them.
        hard: views for hard-label epochs; None if there are no such epochs.
        teacher: live teacher, a function from images [B, 3 or 1, S, S] to logits [B, C]; None if there is no live
            teacher.
        augment: function (normalised images, random parameters that `source` draws) -> images; None without
            augmentation.
        whiten: ZCA for images that are not normalised yet, on the device; None without ZCA.
    """

    train: Samples
    val: Samples
    source: TrainingViews
    num_classes: int
    names: list[str]
    images: KnownImages | None = None
    hard: HardViews | None = None
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None
    augment: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    whiten: Zca | None = None


@dataclass(frozen=True)
class Plan:
    """Memory plan of a run: where it keeps decoded images, and how many labels it uploads at a time.

    Attributes:
        resident: whether decoded training images stay in memory. If not, worker processes decode the images in every
            epoch.
        labels_at_once: number of batches whose labels are uploaded together; None to upload a whole epoch.
        validation: memory that holds the decoded validation images: `device` or `host`; `files` if the images are
            decoded again for every evaluation.
    """

    resident: bool
    labels_at_once: int | None
    validation: str


@dataclass(frozen=True)
class Budget:
    """Memory needs of a run on a GPU, in bytes.

    Attributes:
        images: all decoded training images.
        labels: soft labels of one epoch, and hard labels of one epoch if there are epochs with hard labels; with the
            random numbers of crops, mixing and augmentation.
        validation: this rank's validation images, at the input size of the model.
        training: gradients, optimizer state and activations, but not the weights and the matrix of ZCA, which are on
            the device already, so that `free` is without them.
        free: free memory of the device.
    """

    images: int
    labels: int
    validation: int
    training: int
    free: int

    def plan(self, batches_per_epoch: int, resident: bool = True) -> Plan:
        """Return the memory plan for this budget.

        If memory is short, three measures are tried in this order: labels are uploaded in parts, which costs no time;
        validation images are not kept on the device; training images are not kept on the device. If training images
        are not kept on the device, validation images may be kept there after all, if there is room.

        Args:
            batches_per_epoch: number of batches in an epoch with soft labels.
            resident: whether training images may be kept on the device; if not, worker processes decode the images.
        """
        room = USABLE * self.free - self.training
        # bytes of labels on the device if labels are uploaded batch by batch
        smallest = IN_FLIGHT * self.labels / batches_per_epoch
        if not resident or self.images + smallest > room:
            return Plan(False, batches_per_epoch, "device" if self.validation <= room else "host")
        room -= self.images
        kept = self.validation + smallest <= room
        share = min((room - kept * self.validation) / IN_FLIGHT, LABEL_PART) / self.labels
        return Plan(True, max(1, int(batches_per_epoch * min(share, 1))), "device" if kept else "host")


def plan_memory(
    config: TrainConfig, found: Findings, data: TrainingData, students: Sequence[Student], world: World
) -> Plan:
    """Decide where a run keeps its decoded images and labels, log the decision and return it.

    Args:
        config: flags of the run.
        found: settings that were derived from labels, folders and the machine.
        data: training and validation images, and labels.
        students: the students, already on their device.
        world: ranks of the run. Every rank must call this function; all ranks get the same plan.

    Raises:
        InputError: an image cannot be read, or --loader resident was given and the images do not fit in memory.
    """
    device = students[0].precision.device
    validation = validation_bytes(found, data, world)
    if device.type == "cuda":
        plan = plan_on_device(config, found, data, students, world)
        taken = 0
    else:
        images = 0 if config.loader == "workers" else decoded_bytes(data.train, found, device, free_memory(device)[0])
        plan = Plan(keeps_images(config.loader, images, device), None, "host")
        taken = images if plan.resident else 0
    if plan.validation == "host" and validation >= (free_host_memory() - taken) / 3:
        plan = replace(plan, validation="files")
    plan = most_modest(world.all_gather_object(plan))
    if plan.resident and device.type != "cpu":
        log.info("loader  resident: decoded images stay on the device")
    elif not plan.resident:
        too_large = f"decoded images exceed half of the free {free_memory(device)[1]} memory"
        if device.type == "cuda":
            too_large = "decoded images do not fit beside the training"
        reason = "as --loader says" if config.loader == "workers" else too_large
        if isinstance(config, KDConfig) and config.auto_augment:
            reason = "--auto-augment changes each image anew"
        log.info("loader  workers: %s; %d processes (-j)", reason, found.workers)
    return plan


def most_modest(plans: Sequence[Plan]) -> Plan:
    """Combine the plans of all ranks into one plan that fits in the memory of every rank.

    For each field, the value that needs the least memory is taken from the plans.
    """
    places = ["device", "host", "files"]
    at_once = [plan.labels_at_once for plan in plans if plan.labels_at_once is not None]
    return Plan(
        resident=all(plan.resident for plan in plans),
        labels_at_once=min(at_once, default=None),
        validation=max((plan.validation for plan in plans), key=places.index),
    )


def plan_on_device(
    config: TrainConfig, found: Findings, data: TrainingData, students: Sequence[Student], world: World
) -> Plan:
    """Return the memory plan of this rank's GPU, and log the estimates behind it.

    The arguments and the errors are those of `plan_memory`.
    """
    device = students[0].precision.device
    free = free_memory(device)[0]
    # the estimates include a soft and a hard batch, because each kind has its own label tensors and CUDA graph
    hard_batch = config.hard_batch_size or 0
    rows = config.micro_batch + hard_batch
    estimates = [
        MemoryEstimate(student.model, found.input_size, student.precision, found.channels) for student in students
    ]
    passing = [one.evaluation_bytes(min(ROWS_ON_A_DEVICE, len(data.val))) for one in estimates]
    source = share_of_rank(data.source, config.micro_batch, world)
    # rows of a short last batch, 0 if all are full; a short batch runs without the CUDA graph and needs extra memory
    short = source.smallest_batch() % config.batch_size
    if short:
        passing += [one.step_bytes(short, min(short, rows)) for one in estimates]
    phases = Phases.of(config)
    next_epoch = phases.soft_before(min(student.progress.epoch for student in students))
    # if no epoch with soft labels is left, the estimate is made for the last soft-label epoch
    labels = label_bytes(source, min(next_epoch, phases.soft - 1))
    budget = Budget(
        images=0 if config.loader == "workers" else decoded_bytes(data.train, found, device, free),
        labels=labels + (label_bytes(data.hard, 0) if data.hard else 0),
        validation=validation_bytes(found, data, world),
        training=sum(one.training_bytes(config.batch_size + hard_batch, rows) for one in estimates) + max(passing),
        free=free,
    )
    plan = budget.plan(source.batches_per_epoch, resident=config.loader != "workers")
    log.info(
        "memory  of %s free on the device: training about %s, images %s, labels %s an epoch, validation images %s",
        readable_size(budget.free),
        readable_size(budget.training),
        readable_size(budget.images),
        readable_size(budget.labels),
        readable_size(budget.validation),
    )
    if config.loader == "resident" and not plan.resident:
        if budget.images >= budget.free:
            refuse_resident(free, "device")
        log.info(
            "memory  the images may not fit beside the memory that training needs; they stay on the device, because "
            "--loader resident was given"
        )
        plan = Plan(True, 1, "host")
    elif not plan.resident and config.loader != "workers":
        log.info("memory  the images do not fit beside the training: workers decode them in every epoch")
    elif plan.resident and (plan.labels_at_once or 0) < source.batches_per_epoch:
        log.info(
            "memory  %d epochs of labels do not fit beside the rest: they are uploaded in parts of %d batches",
            IN_FLIGHT,
            plan.labels_at_once,
        )
    if plan.validation != "device":
        log.info("memory  validation images do not fit beside the rest: they stay off the device")
    return plan


def plan_images(loader: str, samples: Samples, found: Findings, device: torch.device, world: World) -> bool:
    """Return whether relabelling keeps all decoded images in memory, and log this decision.

    With --loader auto, the images may take at most half of the free memory; the other half is left to the teacher.

    Args:
        loader: --loader.
        samples: (image, class) of every image.
        found: settings of the run; the image format and the number of worker processes are used.
        device: the device whose memory would hold the images.
        world: ranks of the run. Every rank must call this function; all ranks get the same result.

    Returns:
        True if images stay in memory; False if worker processes decode the images in every epoch.

    Raises:
        InputError: an image cannot be read, or --loader resident was given and the images do not fit in memory.
    """
    free, place = free_memory(device)
    images = 0 if loader == "workers" else decoded_bytes(samples, found, device, free)
    resident = all(world.all_gather_object(keeps_images(loader, images, device)))
    if not resident:
        reason = "as --loader says" if loader == "workers" else f"decoded images exceed half of the free {place} memory"
        log.info("loader  workers: %s; %d processes (-j)", reason, found.workers)
    return resident


def keeps_images(loader: str, images: int, device: torch.device) -> bool:
    """Return whether this process keeps decoded images in memory; if it does, log their size.

    With --loader auto, the images may take at most half of the free memory; with --loader resident, all free memory;
    with --loader workers, the images never stay in memory.

    Args:
        loader: --loader.
        images: bytes of the decoded images.
        device: the device whose memory would hold the images.

    Raises:
        InputError: --loader resident was given, and the images do not fit in the free memory.
    """
    free, place = free_memory(device)
    if loader == "workers":
        return False
    if images < (free if loader == "resident" else free / 2):
        log.info(
            "loader  resident: decoded images take %s of %s free %s memory",
            readable_size(images),
            readable_size(free),
            place,
        )
        return True
    if loader == "resident":
        refuse_resident(free, place)
    return False


def refuse_resident(free: float, place: str) -> None:
    """Raise InputError, because --loader resident was given and the decoded images do not fit in memory.

    Args:
        free: bytes of free memory.
        place: `device` or `host`, the memory that would hold the images.
    """
    raise InputError(
        f"--loader resident needs more than the {readable_size(free)} free in {place} memory for the decoded images; "
        "use --loader workers"
    )


def validation_bytes(found: Findings, data: TrainingData, world: World) -> int:
    """Return the size in bytes of this rank's decoded validation images, resized to the input size of the model."""
    value = 1 if found.val_values == "bytes" else FLOAT_BYTES
    return value * found.channels * found.input_size**2 * len(data.val) // world.size


def decoded_bytes(samples: Samples, found: Findings, device: torch.device, limit: float) -> int:
    """Estimate the memory that all decoded images need, in bytes, from the widths and heights in the file headers.

    On a GPU, all images are padded to the largest height and the largest width. On the host, images are not padded.

    Args:
        samples: (image, class) of every image.
        found: settings of the run; the number of channels and the pixel format are used.
        device: the device whose memory would hold the images.
        limit: number of bytes at which counting stops; the remaining images are then not counted.
    """
    floats = found.train_values != "bytes"
    on_device = found.channels * (FLOAT_BYTES if floats else 1)  # bytes per pixel in GPU memory
    on_host = on_device if floats else PIL_BYTES[found.channels]
    total = height = width = needed = 0
    for number, (image, _) in enumerate(samples, start=1):
        w, h = image_size(image)
        total += w * h * on_host
        height, width = max(height, h), max(width, w)
        needed = total if device.type == "cpu" else on_device * number * height * width
        if needed >= limit:
            break
    return needed


def label_bytes(source: TrainingViews | HardViews, epoch: int) -> int:
    """Estimate the bytes that an epoch's labels take on the device, from the bytes per row in the first batch."""
    labels = source.read(epoch, 0)
    uploaded = *tensors_of(labels.logits), labels.augment, labels.strips
    tensors = [tensor for tensor in uploaded if tensor is not None]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return source.num_images * (size // source.rows(epoch, 0) + GEOMETRY_BYTES)


def share_of_rank(source: TrainingViews | ViewSource, micro_batch: int, world: World) -> TrainingViews:
    """Return views that hold only this rank's rows of every batch, or all rows if there is a single process.

    Args:
        source: views with the rows of all ranks.
        micro_batch: number of rows of a micro-batch before it is divided among the ranks.
        world: ranks of the run.
    """
    views = TrainingViews.of(source)
    return views if world.size == 1 else replace(views, share=Share(world.rank, world.size, micro_batch))


def inspect_pixels(
    found: Findings, sets: Sequence[ImageSet], models: Sequence[str], files: Sequence[str | None] = ()
) -> Findings:
    """Determine the pixel format of the image sets and the number of input channels of the models.

    Models get one channel if all sets are grey, every model can be built for one channel, and no file holds the weights
    of a model of three channels. Otherwise they get three; grey values are then repeated in all channels.

    Args:
        found: settings that are known so far, with mean and standard deviation of three channels.
        sets: the training set and, in a training run, the validation set.
        models: names of the students' and the teachers' models.
        files: the files of the teachers' weights; None for a teacher with pretrained weights.

    Returns:
        `found` with `train_values`, `val_values` and `channels`; for one channel, also `mean` and `std`.

    Raises:
        InputError: a file cannot be read, or holds no weights.
    """
    found = replace(found, train_values=sets[0].values, val_values=sets[-1].values)
    if any(one.channels == 3 for one in sets):
        return found
    if all(map(takes_channels, models)) and all(channels_of(load_weights(file)) != 3 for file in files if file):
        log.info("images  are grey: models get one channel")
        return grey(found)
    log.info("images  are grey: their values are repeated in three channels")
    return found


def normalise_for(
    found: Findings,
    precision: Precision,
    values: str | None = None,
    augment: Callable | None = None,
    whiten: Zca | None = None,
) -> Normalise:
    """Return the `Normalise` that turns views into model inputs, with the run's mean and standard deviation.

    Args:
        found: settings of the run.
        precision: gives the device and the memory format.
        values: pixel format, see `Values`; None: that of the training images.
        augment: augmentation of normalised training images; None: no augmentation.
        whiten: ZCA in place of mean and standard deviation, on the device; None: no ZCA.
    """
    kind = cast(Values, found.train_values if values is None else values)
    return Normalise(found.mean, found.std, precision.device, precision.memory_format, kind, augment, whiten)


def build_batches(
    config: TrainConfig, found: Findings, data: TrainingData, plan: Plan, students: Sequence[Student], world: World
) -> "TrainingBatches":
    """Return the training batches of the epochs that are left.

    Args:
        config, found, data, students, world: see `plan_memory`.
        plan: memory plan of the run, which decides whether images are decoded once or in every epoch.
    """
    precision = students[0].precision
    normalise = normalise_for(found, precision, augment=data.augment, whiten=data.whiten)
    phases = Phases.of(config)
    first_epoch = min(student.progress.epoch for student in students)
    kind = batch_class(plan.resident, precision.device)
    if kind is DeviceBatches:
        kind = partial(DeviceBatches, at_once=plan.labels_at_once)
    source = share_of_rank(data.source, config.micro_batch, world)
    dataset = ViewDataset(data.train, source, found.input_size, found.channels)
    soft_epochs = range(phases.soft_before(first_epoch), phases.soft)
    soft = kind(dataset, soft_epochs, normalise, found.workers, precision.device)
    hard = None
    # a batch with hard labels is never split: it is one micro-batch
    if data.hard is not None:
        source = share_of_rank(data.hard, data.hard.batch_size, world)
        dataset = ViewDataset(data.train, source, found.input_size, found.channels)
        hard = soft.of_same_images(dataset, range(phases.hard_before(first_epoch), phases.hard))
    return TrainingBatches(LiveTeacher(soft, data.teacher) if data.teacher else soft, hard, phases)


def batch_class(resident: bool, device: torch.device) -> Callable:
    """Return the class that loads the training batches, which depends on where decoded images are kept.

    Args:
        resident: whether decoded images stay in memory.
        device: the training device.

    Returns:
        `WorkerBatches` if worker processes decode the images in every epoch, `DeviceBatches` if images stay in GPU
        memory, `ResidentBatches` if images stay in host memory.
    """
    if not resident:
        return WorkerBatches
    return ResidentBatches if device.type == "cpu" else DeviceBatches


class TrainingBatches:
    """The training batches of a run, from epochs with soft labels and epochs with hard labels.

    `soft` and `hard` each number their own epochs from 0.

    Args:
        soft: batches of the epochs with soft labels.
        hard: batches of the epochs with hard labels; None if the run has no such epochs.
        phases: order of the two kinds of epochs in the run.
    """

    def __init__(self, soft: Batches, hard: Batches | None, phases: Phases) -> None:
        self.soft, self.hard, self.phases = soft, hard, phases

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Return an iterator over the batches of an epoch, from `first_batch` on.

        The epochs of a run are counted from 0, whether labels are soft or hard. Request epochs in ascending order.
        """
        if self.hard is not None and self.phases.is_hard(epoch):
            return self.hard.epoch(self.phases.hard_before(epoch), first_batch)
        return self.soft.epoch(self.phases.soft_before(epoch), first_batch)

    def steps(self, epochs: range) -> int:
        """Return the total number of batches in a range of the run's epochs."""
        hard = sum(map(self.phases.is_hard, epochs)) if self.hard is not None else 0
        per_hard_epoch = self.hard.batches_per_epoch if self.hard is not None else 0
        return hard * per_hard_epoch + (len(epochs) - hard) * self.soft.batches_per_epoch


def build_validation(
    found: Findings, data: TrainingData, plan: Plan, students: Sequence[Student], world: World
) -> ValidationBatches:
    """Return the batches of the validation images that this rank evaluates; `plan` says where decoded images stay."""
    precision = students[0].precision
    keep = {"device": precision.device, "host": torch.device("cpu"), "files": None}
    return ValidationBatches(
        data.val[world.rank :: world.size],
        found.input_size,
        normalise_for(found, precision, found.val_values, whiten=data.whiten),
        found.workers,
        precision.device,
        keep=keep[plan.validation],
        resize=found.val_resize,
        channels=found.channels,
    )
