"""Train one run on several processes (data parallelism); no other module calls `torch.distributed`.

    torchrun --nproc_per_node 4 train_FKD_parallel.py …

Each row of a batch is on exactly one rank (see `Share`). Therefore sums over all ranks (of gradients, batch statistics
and metrics) equal the sums that a single process computes over all rows. A single process is a `World` of size 1.
"""

import contextlib
import gc
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from utils.system.errors import InputError, clause

Value = TypeVar("Value")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


# one pair for each micro-batch of a batch: (number of rows on this rank, number of rows on all ranks)
Parts = tuple[tuple[int, int], ...]


# seconds to wait until the threads of the process group are idle; about 2 ms are enough, and the rest is a margin
GROUP_THREADS_SECONDS = 0.2


TIMEOUT = timedelta(minutes=10)  # a rank that waits longer than this for other ranks ends with an error


def share(rows: int, rank: int, size: int) -> range:
    """Split `rows` rows among `size` ranks without overlap, and return the range of rows of rank `rank`."""
    return range(rows * rank // size, rows * (rank + 1) // size)


@dataclass(frozen=True)
class Share:
    """Rule that says which rows of a batch this rank works on: a contiguous range of rows in each micro-batch.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        micro_batch: number of rows of a micro-batch, counted over all ranks.
    """

    rank: int
    size: int
    micro_batch: int

    def parts(self, rows: int) -> Parts:
        """Split `rows` rows into micro-batches; return (number on this rank, number on all ranks) for each."""
        micro = [min(self.micro_batch, rows - start) for start in range(0, rows, self.micro_batch)]
        return tuple((len(share(n, self.rank, self.size)), n) for n in micro)

    def rows(self, rows: int) -> torch.Tensor:
        """Return the indices of this rank's rows in a batch of `rows` rows, in ascending order: int64 [own rows]."""
        own: list[int] = []
        for start in range(0, rows, self.micro_batch):
            n = min(self.micro_batch, rows - start)
            own += [start + row for row in share(n, self.rank, self.size)]
        return torch.tensor(own, dtype=torch.int64)


@dataclass(frozen=True)
class World:
    """The processes of one run, seen from one of them. If one rank calls a method, all ranks must call it.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine, and the index of its GPU.
        host: process group for tensors in host memory; None if there is only one process.

    Raises:
        InputError: a method was called, but another process of the run has ended or does not answer.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    host: "dist.ProcessGroup | None" = None

    def __deepcopy__(self, _memo: dict[int, Any]) -> "World":
        # if a module that refers to this object is deep-copied, the copy must refer to the same process group
        return self

    @property
    def is_main(self) -> bool:
        """Return whether this process is rank 0, which alone writes the files and the log."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum `tensor` over all ranks in place, and return it; it must be contiguous and on the run's device."""
        if self.size > 1:
            with others_alive():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, number: int) -> int:
        """Return the maximum of `number` over all ranks."""
        if self.size == 1:
            return number
        value = torch.tensor(number)
        with others_alive():
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self.host)
        return int(value)

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Broadcast each tensor from rank 0: the other ranks' tensors are overwritten in place."""
        if self.size > 1:
            with others_alive():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def broadcast_object(self, value: Value) -> Value:
        """Return, on every rank, the `value` that rank 0 passed. The value may be any picklable object."""
        if self.size == 1:
            return value
        box = [value]  # a list, because broadcast_object_list replaces list items in place
        with others_alive():
            dist.broadcast_object_list(box, 0, group=self.host)
        return box[0]

    def all_gather_object(self, value: Value) -> list[Value]:
        """Return a list with the `value` of each rank, in the order of ranks. Values may be any picklable objects."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with others_alive():
            dist.all_gather_object(values, value, group=self.host)
        return values

    def barrier(self) -> None:
        """Wait until every rank has called this method."""
        self.all_reduce_max(0)


ALONE = World()


@contextlib.contextmanager
def others_alive() -> Iterator[None]:
    """Convert a RuntimeError in the `with` block to an InputError which says that another process ended.

    A collective of `torch.distributed` raises RuntimeError if another rank has ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            "another process of this run ended or does not answer; if it printed no error before this line it was "
            "killed, most often for lack of memory; start again, with --resume if a checkpoint was written"
        ) from error


def start(device_name: str) -> World:
    """Connect this process to the other processes of the run, which torchrun or Slurm started.

    On GPUs, each process uses one GPU and the backend is nccl. On CPUs, the backend is gloo.

    Args:
        device_name: --device: auto, cpu or cuda.

    Returns:
        the `World` of the run. Its size is 1 if torchrun's environment variables are not set, or if WORLD_SIZE is 1.

    Raises:
        InputError: the environment variables of torchrun are incomplete or wrong, this machine has fewer GPUs than
            processes, or the processes cannot connect.
    """
    world = from_environment()
    if world.size == 1:
        return world
    cuda = device_name != "cpu" and torch.cuda.is_available()
    if cuda and world.local_rank >= torch.cuda.device_count():
        raise InputError(
            f"LOCAL_RANK {world.local_rank} has no GPU: this machine has {torch.cuda.device_count()}; lower torchrun's "
            "--nproc_per_node"
        )
    try:
        if cuda:
            torch.cuda.set_device(world.local_rank)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
        host: Any = dist.new_group(backend="gloo", timeout=TIMEOUT) if cuda else dist.group.WORLD
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the {world.size} processes of this run cannot connect ({clause(error, 120)}); check MASTER_ADDR and "
            "MASTER_PORT"
        ) from None
    return World(world.rank, world.size, world.local_rank, host)


def from_environment() -> World:
    """Return the `World` that torchrun's environment variables describe, without connecting to other processes.

    Raises:
        InputError: some of the variables are missing, or their values are wrong.
    """
    # MASTER_ADDR is not looked at here, because some clusters set it in every job
    if not any(name in os.environ for name in VARIABLES[:3]):
        return ALONE
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"the environment sets some of {', '.join(VARIABLES)}, but not {', '.join(missing)}; start with torchrun, "
            "or unset them all for one process"
        )
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in VARIABLES[:3])
    except ValueError:
        raise InputError("RANK, WORLD_SIZE and LOCAL_RANK must be integers; start with torchrun") from None
    if not (0 <= rank < size and 0 <= local_rank < size):
        raise InputError(f"RANK {rank} and LOCAL_RANK {local_rank} must be below WORLD_SIZE {size}; use torchrun")
    return ALONE if size == 1 else World(rank, size, local_rank)


def processes_here() -> int:
    """Return how many processes of this run are on this machine.

    The count is torchrun's LOCAL_WORLD_SIZE. If this variable is not set, or the run has only one process, return 1.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if from_environment().size > 1 else 1


def may_report_error() -> bool:
    """Return whether this process may print the error of a failed run.

    To print the error only once, this function returns True only in the first process that calls it. There are two
    exceptions. Before the processes are connected, only rank 0 gets True. After the connection is lost, every process
    gets True.
    """
    if not dist.is_available() or not dist.is_initialized():
        return os.environ.get("RANK", "0") in ("0", "")
    try:
        return dist.distributed_c10d._get_default_store().add("spoken", 1) == 1
    except (RuntimeError, AttributeError):
        return True


def wait_for_group_threads() -> None:
    """Sleep briefly before a fork, so that the threads of the process group release locks of the interpreter.

    These threads hold an interpreter lock while they free the tensors of a collective. A process that is forked at that
    moment inherits the lock in its locked state, and hangs before it runs any Python code (CPython issue 112275, in
    versions up to 3.11.7). If this process has no process group, return at once.
    """
    if dist.is_available() and dist.is_initialized():
        time.sleep(GROUP_THREADS_SECONDS)


def finish() -> None:
    """Destroy the process group, if there is one.

    PyTorch 2.0 aborts if the threads of the process group are still running when Python exits, so the process group
    must be destroyed before that. `destroy_process_group` waits for these threads while it holds the GIL, and
    deadlocks if a thread needs the GIL at that moment. This function therefore first waits until the threads are idle.
    """
    if dist.is_available() and dist.is_initialized():
        wait_for_group_threads()
        dist.destroy_process_group()
        gc.collect()
