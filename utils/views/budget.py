"""What a GPU must hold for training, and what is done where that is too much."""

from dataclasses import dataclass

import torch

from utils.labels.store import ViewSource
from utils.labels.types import tensors_of
from utils.system import memory
from utils.system.log import log
from utils.system.memory import readable_size

USABLE = 0.9  # of the free memory: the allocator's pieces do not fit without gaps
PART = 1e9  # bytes of labels that go up together at the most: pinned on the host, where each takes a power of two
IN_FLIGHT = 3  # label uploads: in use, waiting, on their way
GEOMETRY_BYTES = 56  # per row, of `geometry_of`


@dataclass(frozen=True)
class Budget:
    """Bytes that things take on a device.

    Attributes:
        images: all training images, decoded.
        labels: those of one epoch.
        validation: all validation images, at the model's size.
        training: gradients, optimizer, activations, those of an evaluation, beside the weights that are there already.
        free: free memory of the device.
    """

    images: int
    labels: int
    validation: int
    training: int
    free: int

    def plan(self, batches_per_epoch: int, resident: bool = True) -> "Plan":
        """Say what goes where; `resident` False leaves the images to workers.

        First labels go up in parts, since that costs no time; then validation images stay on the host; then
        workers decode the images.
        """
        room = USABLE * self.free - self.training
        smallest = IN_FLIGHT * self.labels / batches_per_epoch  # one batch at a time
        if not resident or self.images + smallest > room:
            return Plan(False, batches_per_epoch, self.validation <= room)
        room -= self.images
        kept = self.validation + smallest <= room
        share = min((room - kept * self.validation) / IN_FLIGHT, PART) / self.labels
        return Plan(True, max(1, int(batches_per_epoch * min(share, 1))), kept)


@dataclass(frozen=True)
class Plan:
    """Where things go.

    Attributes:
        resident: images stay on the device; else workers decode them.
        at_once: batches whose labels go up together.
        validation_on_device: validation images stay on the device; else on the host, if they fit there.
    """

    resident: bool
    at_once: int
    validation_on_device: bool


def make_plan(budget: Budget, batches_per_epoch: int, loader: str) -> Plan:
    """Return the plan of --loader, and log what it takes and what it does without, and why."""
    plan = budget.plan(batches_per_epoch, resident=loader != "workers")
    forced = loader == "resident" and not plan.resident and budget.images < budget.free
    log.info(
        "memory  of %s free on the device: training about %s, images %s, labels %s an epoch, validation images %s",
        *map(readable_size, (budget.free, budget.training, budget.images, budget.labels, budget.validation)),
    )
    if forced:
        log.info("memory  the images hardly fit beside the training; they are kept on the device as asked")
        plan = Plan(True, 1, False)
    elif not plan.resident and loader != "workers":
        log.info("memory  the images do not fit beside the training: workers decode them in every epoch")
    elif plan.resident and plan.at_once < batches_per_epoch:
        log.info(
            "memory  %d epochs of labels are too much at once: they go up in parts of %d batches",
            *(IN_FLIGHT, plan.at_once),
        )
    if not plan.validation_on_device:
        log.info("memory  validation images do not fit beside the rest: they stay off the device")
    return plan


def label_bytes(store: ViewSource, epoch: int) -> int:
    """Bytes of an epoch of labels on the device, from its first batch."""
    labels = store.read(epoch, 0)
    tensors = [tensor for tensor in tensors_of(labels.logits) if tensor is not None]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return store.num_images * (size // store.rows(epoch, 0) + GEOMETRY_BYTES)


def has_own_memory(device: torch.device) -> bool:
    """Whether what is put on the device is not in the host's memory."""
    return device.type == "cuda"


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on the device."""
    return memory.free_memory(device)[0]
