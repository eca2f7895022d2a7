"""Decide where a run keeps its decoded images, and build its batches.

The rule of `--loader auto`, which a run and its dry run share (`plan_memory`):

* on the host, decoded training images stay in memory if they fit in half of what is free;
* on a GPU, they stay in its memory if they fit beside the estimated needs of training; labels are uploaded in parts if
  those of a whole epoch are too many;
* decoded validation images stay on the GPU if there is room left, else on the host if they fit in a third of what is
  free there, else they are decoded again for every evaluation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from utils.config import Findings, TrainConfig
from utils.data.batch import Batch, Batches, LiveTeacher
from utils.data.device import DeviceBatches
from utils.data.folders import Samples, header_size
from utils.data.identity import KnownImages
from utils.data.replay import Normalise
from utils.data.resident import ResidentBatches
from utils.data.validation import ROWS_ON_A_DEVICE, ValidationBatches
from utils.data.workers import ViewDataset, WorkerBatches
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
from utils.training.precision import Precision

USABLE = 0.9  # usable share of the free device memory; the rest is lost to gaps between allocations
LABEL_PART = 1e9  # maximum bytes of labels per upload; pinned buffers are rounded up to a power of two
IN_FLIGHT = 3  # number of label uploads on the device at once: in use, waiting, in transfer
GEOMETRY_BYTES = 56  # bytes per row of the result of `geometry_of`
PIL_BYTES = 4  # bytes per pixel of a decoded RGB image in PIL


@dataclass(frozen=True)
class TrainingData:
    """The images, views and classes of a run.

    Attributes:
        train, val: (path, class) of the training and of the validation images.
        source: views of the soft epochs, with the rows of all ranks.
        num_classes: C, number of classes.
        names: name of each of C classes.
        images: the training images with their digests; None if a dry run does not compute them.
        hard: views of the hard epochs; None if there are none.
        teacher: labels the views of `source`, images [B, 3, S, S] -> logits [B, C]; None without a live teacher.
    """

    train: Samples
    val: Samples
    source: TrainingViews
    num_classes: int
    names: list[str]
    images: KnownImages | None = None
    hard: HardViews | None = None
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class Plan:
    """Places of images and labels in memory.

    Attributes:
        resident: whether decoded training images stay in memory; otherwise workers decode them in every epoch.
        labels_at_once: number of batches whose labels are uploaded together; None: a whole epoch.
        validation: where decoded validation images stay: `device`, `host`, or `files` if they fit nowhere.
    """

    resident: bool
    labels_at_once: int | None
    validation: str


@dataclass(frozen=True)
class Budget:
    """Memory needs of a run on a GPU, in bytes.

    Attributes:
        images: all training images, decoded.
        labels: soft labels of one epoch.
        validation: this rank's validation images, at the input size of the model.
        training: gradients, optimizer state and activations; the weights are on the device already.
        free: free memory of the device.
    """

    images: int
    labels: int
    validation: int
    training: int
    free: int

    def plan(self, batches_per_epoch: int, resident: bool = True) -> Plan:
        """Return the plan for this memory; if `resident` is False, workers decode the training images.

        If memory is short, labels are uploaded in parts first, because that costs no time. If it is still short,
        validation images stay off the device; finally, workers decode the training images.
        """
        room = USABLE * self.free - self.training
        smallest = IN_FLIGHT * self.labels / batches_per_epoch  # bytes of labels if they are uploaded batch by batch
        if not resident or self.images + smallest > room:
            return Plan(False, batches_per_epoch, "device" if self.validation <= room else "host")
        room -= self.images
        kept = self.validation + smallest <= room
        share = min((room - kept * self.validation) / IN_FLIGHT, LABEL_PART) / self.labels
        return Plan(True, max(1, int(batches_per_epoch * min(share, 1))), "device" if kept else "host")


def plan_memory(
    config: TrainConfig, found: Findings, data: TrainingData, students: Sequence[Student], world: World
) -> Plan:
    """Return and log the memory plan of a run or its dry run.

    Args:
        config, found: settings.
        data: training and validation images, and labels.
        students: students, already on their device.
        world: every rank must call this; all ranks get the same plan.

    Raises:
        InputError: an image cannot be read, or --loader resident was asked for and does not fit.
    """
    device = students[0].precision.device
    validation = 3 * found.input_size**2 * len(data.val) // world.size
    if device.type == "cuda":
        plan = plan_on_device(config, found, data, students, world)
        taken = 0
    else:
        images = 0 if config.loader == "workers" else decoded_bytes(data.train, device, free_host_memory())
        plan = Plan(keeps_images(config.loader, images, device), None, "host")
        taken = images if plan.resident else 0
    if plan.validation == "host" and validation >= (free_host_memory() - taken) / 3:
        plan = replace(plan, validation="files")
    plan = most_modest(world.all_gather_object(plan))
    if plan.resident and device.type == "cuda":
        log.info("loader  resident: decoded images stay on the device")
    elif not plan.resident:
        too_large = {
            "cuda": "decoded images do not fit beside the training",
            "cpu": "decoded images exceed half of the free host memory",
        }
        reason = "as asked" if config.loader == "workers" else too_large[device.type]
        log.info("loader  workers: %s; %d processes (-j)", reason, found.workers)
    return plan


def most_modest(plans: Sequence[Plan]) -> Plan:
    """Return the plan that fits every rank: for each field, the value that needs the least memory."""
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
    """Return this rank's memory plan for a GPU, and log the estimates; arguments as for `plan_memory`."""
    device = students[0].precision.device
    free = free_memory(device)[0]
    hard_batch = config.hard_batch_size or 0  # hard epochs have labels and a captured step of their own
    rows = config.micro_batch + hard_batch
    estimates = [MemoryEstimate(student.model, found.input_size, student.precision) for student in students]
    passing = [one.evaluation_bytes(min(ROWS_ON_A_DEVICE, len(data.val))) for one in estimates]
    source = share_of_rank(data.source, config.micro_batch, world)
    short = source.smallest_batch() % config.batch_size  # runs eagerly, beside the memory of the captured step
    if short:
        passing += [one.step_bytes(short, min(short, rows)) for one in estimates]
    phases = Phases.of(config)
    next_epoch = phases.soft_before(min(student.progress.epoch for student in students))
    labels = label_bytes(source, min(next_epoch, phases.soft - 1))  # after the last epoch no labels are left
    budget = Budget(
        images=0 if config.loader == "workers" else decoded_bytes(data.train, device, free),
        labels=labels + (label_bytes(data.hard, 0) if data.hard else 0),
        validation=3 * found.input_size**2 * len(data.val) // world.size,
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
        log.info("memory  the images hardly fit beside the training; they are kept on the device as asked")
        plan = Plan(True, 1, "host")
    elif not plan.resident and config.loader != "workers":
        log.info("memory  the images do not fit beside the training: workers decode them in every epoch")
    elif plan.resident and (plan.labels_at_once or 0) < source.batches_per_epoch:
        log.info(
            "memory  %d epochs of labels are too much at once: they go up in parts of %d batches",
            IN_FLIGHT,
            plan.labels_at_once,
        )
    if plan.validation != "device":
        log.info("memory  validation images do not fit beside the rest: they stay off the device")
    return plan


def plan_images(loader: str, samples: Samples, device: torch.device, workers: int, world: World) -> bool:
    """Return whether decoded images stay in memory for relabelling; half of the free memory is left to the teacher.

    Args:
        loader: --loader.
        samples: (path, class) of every image.
        device: the device whose memory would hold the images.
        workers: number of worker processes, for the log.
        world: every rank must call this; all ranks get the same result.

    Raises:
        InputError: an image cannot be read, or --loader resident was asked for and does not fit.
    """
    free, place = free_memory(device)
    images = 0 if loader == "workers" else decoded_bytes(samples, device, free)
    resident = all(world.all_gather_object(keeps_images(loader, images, device)))
    if not resident:
        reason = "as asked" if loader == "workers" else f"decoded images exceed half of the free {place} memory"
        log.info("loader  workers: %s; %d processes (-j)", reason, workers)
    return resident


def keeps_images(loader: str, images: int, device: torch.device) -> bool:
    """Return whether decoded images stay in memory, and log it if so.

    They stay if they fit in half of the free memory, or in all of it with --loader resident.

    Args:
        loader: --loader.
        images: bytes of the decoded images.
        device: the device whose memory would hold the images.

    Raises:
        InputError: --loader resident was given, and the images do not fit.
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
    """Raise the InputError for images that do not fit in memory with --loader resident."""
    raise InputError(
        f"--loader resident needs more than the {readable_size(free)} free in {place} memory for the decoded images; "
        "use --loader workers"
    )


def decoded_bytes(samples: Samples, device: torch.device, limit: float) -> int:
    """Estimate the memory of all decoded images from their headers; stop counting beyond `limit`.

    On the host each image has its own size; on a GPU all images are padded to the largest height and width.
    """
    total = height = width = needed = 0
    for number, (path, _) in enumerate(samples, start=1):
        w, h = header_size(path)
        total += w * h * PIL_BYTES
        height, width = max(height, h), max(width, w)
        needed = 3 * number * height * width if device.type == "cuda" else total
        if needed >= limit:
            break
    return needed


def label_bytes(source: TrainingViews | HardViews, epoch: int) -> int:
    """Estimate from an epoch's first batch how many bytes its labels take on the device."""
    labels = source.read(epoch, 0)
    tensors = [tensor for tensor in tensors_of(labels.logits) if tensor is not None]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return source.num_images * (size // source.rows(epoch, 0) + GEOMETRY_BYTES)


def share_of_rank(source: TrainingViews | ViewSource, micro_batch: int, world: World) -> TrainingViews:
    """Return the views, reduced to this rank's rows of every batch if there are several processes."""
    views = TrainingViews.of(source)
    return views if world.size == 1 else replace(views, share=Share(world.rank, world.size, micro_batch))


def normalise_for(found: Findings, precision: Precision) -> Normalise:
    """Return the `Normalise` that turns views of a run into inputs of its models."""
    return Normalise(found.mean, found.std, precision.device, precision.memory_format)


def build_batches(
    config: TrainConfig, found: Findings, data: TrainingData, plan: Plan, students: Sequence[Student], world: World
) -> "TrainingBatches":
    """Return the batches of the remaining epochs, loaded as `plan` says; other arguments as for `plan_memory`."""
    precision = students[0].precision
    normalise = normalise_for(found, precision)
    phases = Phases.of(config)
    first_epoch = min(student.progress.epoch for student in students)
    kind = batch_class(plan.resident, precision.device)
    if kind is DeviceBatches:
        kind = partial(DeviceBatches, at_once=plan.labels_at_once)
    source = share_of_rank(data.source, config.micro_batch, world)
    dataset = ViewDataset(data.train, source, found.input_size)
    soft_epochs = range(phases.soft_before(first_epoch), phases.soft)
    soft = kind(dataset, soft_epochs, normalise, found.workers, precision.device)
    hard = None
    if data.hard is not None:  # all rows of a hard batch are one micro-batch
        source = share_of_rank(data.hard, data.hard.batch_size, world)
        dataset = ViewDataset(data.train, source, found.input_size)
        hard = soft.of_same_images(dataset, range(phases.hard_before(first_epoch), phases.hard))
    return TrainingBatches(LiveTeacher(soft, data.teacher) if data.teacher else soft, hard, phases)


def batch_class(resident: bool, device: torch.device) -> Callable:
    """Return the class that makes batches from images on the device, in host memory, or decoded by workers."""
    if not resident:
        return WorkerBatches
    return DeviceBatches if device.type == "cuda" else ResidentBatches


class TrainingBatches:
    """The batches of all epochs of a run, soft and hard.

    Args:
        soft: batches of the soft epochs, which are numbered from 0.
        hard: batches of the hard epochs, which are numbered from 0 too; None if there are none.
        phases: the order of soft and hard epochs.
    """

    def __init__(self, soft: Batches, hard: Batches | None, phases: Phases) -> None:
        self.soft, self.hard, self.phases = soft, hard, phases

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch of the run, from `first_batch` on; ask for epochs in ascending order."""
        if self.hard is not None and self.phases.is_hard(epoch):
            return self.hard.epoch(self.phases.hard_before(epoch), first_batch)
        return self.soft.epoch(self.phases.soft_before(epoch), first_batch)

    def steps(self, epochs: range) -> int:
        """Return the number of batches in `epochs` of the run."""
        hard = sum(map(self.phases.is_hard, epochs)) if self.hard is not None else 0
        per_hard_epoch = self.hard.batches_per_epoch if self.hard is not None else 0
        return hard * per_hard_epoch + (len(epochs) - hard) * self.soft.batches_per_epoch


def build_validation(
    found: Findings, data: TrainingData, plan: Plan, students: Sequence[Student], world: World
) -> ValidationBatches:
    """Return this rank's validation batches."""
    precision = students[0].precision
    keep = {"device": precision.device, "host": torch.device("cpu"), "files": None}
    return ValidationBatches(
        data.val[world.rank :: world.size],
        found.input_size,
        normalise_for(found, precision),
        found.workers,
        precision.device,
        keep=keep[plan.validation],
        resize=found.val_resize,
    )
