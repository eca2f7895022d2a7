"""Choose between worker processes and resident images."""

from collections.abc import Sequence

import torch

from utils.system.errors import InputError
from utils.system.log import log
from utils.system.memory import free_memory, readable_size
from utils.views.budget import Plan
from utils.views.device import DeviceBatches
from utils.views.folders import Samples, header_size
from utils.views.replay import Normalise
from utils.views.resident import ResidentBatches
from utils.views.workers import ViewDataset, WorkerBatches

PIL_BYTES = 4  # per pixel of a decoded RGB image in PIL


def build_batches(
    loader: str,
    dataset: ViewDataset,
    epochs: Sequence[int],
    normalise: Normalise,
    workers: int,
    device: torch.device,
    plan: Plan | None = None,
) -> WorkerBatches | ResidentBatches | DeviceBatches:
    """Return the training batches of --loader {auto,workers,resident}.

    Args:
        loader, plan: as for `pick_loader`.
        dataset, epochs, normalise, workers, device: as for `WorkerBatches`.

    Raises:
        InputError: as `pick_loader`.
    """
    kind = pick_loader(loader, dataset.samples, workers, device, plan)
    if kind is DeviceBatches and plan is not None:
        return DeviceBatches(dataset, epochs, normalise, workers, device, plan.at_once)
    return kind(dataset, epochs, normalise, workers, device)


def pick_loader(
    loader: str, samples: Samples, workers: int, device: torch.device, plan: Plan | None = None
) -> type[DeviceBatches] | type[ResidentBatches] | type[WorkerBatches]:
    """Return the class of training batches for --loader {auto,workers,resident}, and log which and why.

    Without a plan `auto` takes resident where the decoded images fit in half of the free memory.

    Args:
        loader: --loader.
        samples: list of (path, class).
        workers: number of worker processes, for the log.
        device: torch.device.
        plan: `Plan` of a device that must hold more than the images, which has decided for them.

    Raises:
        InputError: an image cannot be read, or `resident` was asked for and does not fit.
    """
    if plan is not None and plan.resident:
        log.info("loader  resident: decoded images stay on the device")
        return DeviceBatches
    free, place = free_memory(device)
    if loader == "workers":
        reason = "as asked"
    elif plan is not None and loader == "auto":
        reason = "decoded images do not fit beside the training"
    else:
        needed = decoded_bytes(samples, device, limit=free)
        if plan is None and needed < (free if loader == "resident" else free / 2):
            log.info(
                "loader  resident: decoded images take %s of %s free %s memory",
                readable_size(needed),
                readable_size(free),
                place,
            )
            return DeviceBatches if device.type == "cuda" else ResidentBatches
        if loader == "resident":
            raise InputError(
                f"--loader resident needs more than the {readable_size(free)} free in {place} memory for the decoded "
                "images; use --loader workers"
            )
        reason = f"decoded images exceed half of the free {place} memory"
    log.info("loader  workers: %s; %d processes (-j)", reason, workers)
    return WorkerBatches


def decoded_bytes(samples: Samples, device: torch.device, limit: float) -> int:
    """Estimate the memory of all decoded images from their headers; stop counting beyond `limit`.

    On the host each image has its own size; on a device all are padded to the largest.
    """
    total = height = width = 0
    for number, (path, _) in enumerate(samples, start=1):
        w, h = header_size(path)
        total += w * h * PIL_BYTES
        height, width = max(height, h), max(width, w)
        needed = 3 * number * height * width if device.type == "cuda" else total
        if needed >= limit:
            break
    return needed
