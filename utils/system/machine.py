"""Measure the memory and cores that this process may use, and keep freed memory for reuse."""

import ctypes
import os

import torch

from utils.system.distributed import processes_here
from utils.system.log import log


def free_host_memory() -> int:
    """Return the bytes of host memory that this process may still allocate, within the limit of a container.

    The processes of a run on one machine share the free memory evenly.
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
    """Return (free bytes, `device` or `host`) of the memory that would hold decoded images."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], "device"
    return free_host_memory(), "host"


def readable_size(count: float) -> str:
    """Format a number of bytes with three digits and the largest unit that fits: `340 B`, `4.37 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; return whether its C library supports this (glibc does).

    By default glibc returns large blocks to the system, which must zero them page by page when the
    next step allocates them again. That takes a tenth of a training step on the CPU; see mallopt(3).
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return all(set_option(option, value) for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)))


def cores() -> int:
    """Return how many cores this process may run on; a container or a cluster may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_most_cores(workers: int) -> int:
    """Return -j/--workers, or the number of cores if that is smaller: more processes would only wait."""
    if workers <= cores():
        return workers
    log.info("loader  %d processes, not -j %d: this process may use %d cores", cores(), workers, cores())
    return cores()
