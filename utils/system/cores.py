"""Number of processor cores that this process may use."""

import os

from utils.system.log import log


def cores() -> int:
    """Return how many cores this process may run on; a container or a cluster may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_most_cores(workers: int) -> int:
    """Return -j/--workers, or the number of cores if that is smaller: more processes would only wait."""
    if workers <= cores():
        return workers
    log.info("loader  %d processes, not -j %d: this process may use %d cores", cores(), workers, cores())
    return cores()
