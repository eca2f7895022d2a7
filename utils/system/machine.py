"""Measure the memory and cores that this process may use, and keep freed memory for reuse."""

import ctypes
import os
from typing import Any

import torch

from utils.system.distributed import processes_here
from utils.system.log import log


def free_host_memory() -> int:
    """Return how many bytes of host memory this process may still allocate.

    If a container (cgroup) limits the memory, the limit is respected. If several processes of the run are on this
    machine, each gets an equal fraction of the free memory.
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


def free_memory(device: torch.device) -> tuple[int, str]:
    """Return (number of free bytes, place of the memory) for the memory that `device` uses.

    The place is "device", or "host" for the CPU and for an Apple GPU (mps), which shares the host's memory.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], "device"
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).total_memory - torch.xpu.memory_reserved(device), "device"
    return free_host_memory(), "host"


def backend(device: torch.device) -> Any:
    """Return PyTorch's module for the type of `device`: torch.cuda, torch.xpu or torch.mps; None for the CPU."""
    return None if device.type == "cpu" else getattr(torch, device.type)


def device_random_state(device: torch.device) -> torch.Tensor | None:
    """Return the state of the random generator of a GPU; None for the CPU."""
    if device.type == "mps":
        return torch.mps.get_rng_state()
    return None if device.type == "cpu" else backend(device).get_rng_state(device)


def set_device_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Set the random generator of a GPU to a state that `device_random_state` returned."""
    if device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        backend(device).set_rng_state(state, device)


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which to sum over many batches: float64, or float32 on Apple GPUs, which lack float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def readable_size(count: float) -> str:
    """Return a number of bytes as text with a decimal unit and about three digits: `340 B`, `4.37 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # numbers of two options of mallopt(), from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make this process keep freed memory for reuse; return whether the C library supports this (glibc does).

    By default, glibc returns large freed blocks to the operating system. When the next training step allocates the
    memory again, the operating system must zero it page by page, which takes a tenth of a training step on the CPU.
    See mallopt(3).
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # the C library has no function mallopt
        return False
    return all(set_option(option, value) for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)))


def cores() -> int:
    """Return how many CPU cores this process may use; a container or cluster may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_most_cores(workers: int) -> int:
    """Return the smaller of `workers` (-j/--workers) and the number of CPU cores that this process may use.

    More worker processes than cores would only wait for a core. A reduced number is logged.
    """
    if workers <= cores():
        return workers
    log.info("loader  %d processes, not -j %d: this process may use %d cores", cores(), workers, cores())
    return cores()
