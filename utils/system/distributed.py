"""Run on several processes; no other module calls `torch.distributed`. A single process is a `World` of size 1.

    torchrun --nproc_per_node 4 train_FKD_parallel.py …

`Share` splits the rows of every stored batch among the ranks. So the sums over ranks (gradients, batch statistics,
metrics) equal the sums of a single process over all rows.
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


Parts = tuple[tuple[int, int], ...]  # for each micro-batch of a batch: (rows of this rank, rows of all ranks)


GROUP_THREADS_SECONDS = 0.2  # ample time for process-group threads to go idle; they need about 1 % of it


TIMEOUT = timedelta(minutes=10)  # a rank that waits longer for the others ends with an error


def share(rows: int, rank: int, size: int) -> range:
    """Return the row numbers, out of `rows`, that a rank works on; every row belongs to exactly one rank."""
    return range(rows * rank // size, rows * (rank + 1) // size)


@dataclass(frozen=True)
class Share:
    """The shard of every batch that one rank works on: contiguous rows of each micro-batch.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        micro_batch: rows of a micro-batch, over all ranks.
    """

    rank: int
    size: int
    micro_batch: int

    def parts(self, rows: int) -> Parts:
        """Return (rows of this rank, rows of all ranks) for each micro-batch of a batch of `rows` rows."""
        micro = [min(self.micro_batch, rows - start) for start in range(0, rows, self.micro_batch)]
        return tuple((len(share(n, self.rank, self.size)), n) for n in micro)

    def rows(self, rows: int) -> torch.Tensor:
        """Return the indices of this rank's rows in a batch of `rows` rows, ascending: int64 [own]."""
        own: list[int] = []
        for start in range(0, rows, self.micro_batch):
            n = min(self.micro_batch, rows - start)
            own += [start + row for row in share(n, self.rank, self.size)]
        return torch.tensor(own, dtype=torch.int64)


@dataclass(frozen=True)
class World:
    """The processes of one run. Every method is a collective: all ranks must call it.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine, and the index of its GPU.
        host: process group for tensors in host memory.

    Raises:
        InputError: (every method) another process has ended or does not answer.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    host: "dist.ProcessGroup | None" = None

    def __deepcopy__(self, _memo: dict[int, Any]) -> "World":
        return self  # a copied module still belongs to the same processes

    @property
    def is_main(self) -> bool:
        """Return whether this process writes the files and the log."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` (contiguous, on the run's device) by its sum over ranks, and return it."""
        if self.size > 1:
            with others_alive():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, number: int) -> int:
        """Return the maximum of `number` over ranks."""
        if self.size == 1:
            return number
        value = torch.tensor(number)
        with others_alive():
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self.host)
        return int(value)

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite every tensor in place with the tensor of rank 0."""
        if self.size > 1:
            with others_alive():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def broadcast_object(self, value: Value) -> Value:
        """Broadcast the `value` of rank 0, any picklable object, and return it."""
        if self.size == 1:
            return value
        box = [value]  # broadcast_object_list replaces the item in place
        with others_alive():
            dist.broadcast_object_list(box, 0, group=self.host)
        return box[0]

    def all_gather_object(self, value: Value) -> list[Value]:
        """Return the values of all ranks, any picklable objects, in the order of ranks."""
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
    """Raise InputError in place of the RuntimeError that a collective raises if another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            "another process of this run ended or does not answer; if it printed no error before this line it was "
            "killed, most often for lack of memory; start again, with --resume if a checkpoint was written"
        ) from error


def start(device_name: str) -> World:
    """Join the process group of the processes that torchrun (or Slurm) started.

    Args:
        device_name: --device {auto,cpu,cuda}; gloo connects CPUs, nccl connects GPUs, one per process.

    Returns:
        `World`; of size 1 if the environment sets no ranks.

    Raises:
        InputError: only some of VARIABLES are set, there are too few GPUs, or the other processes cannot be reached.
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
    """Return the `World` that the environment describes, without connecting to the other processes."""
    if not any(name in os.environ for name in VARIABLES[:3]):  # not MASTER_ADDR: some clusters set it in every job
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
    """Return how many processes of this run share the memory of this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if from_environment().size > 1 else 1


def may_report_error() -> bool:
    """Return whether this process prints the error that ends the run: only the first process that calls this does.

    Before the processes are connected, all of them fail for the same reason, so rank 0 reports.
    """
    if not dist.is_available() or not dist.is_initialized():
        return os.environ.get("RANK", "0") in ("0", "")
    try:
        return dist.distributed_c10d._get_default_store().add("spoken", 1) == 1
    except (RuntimeError, AttributeError):
        return True


def wait_for_group_threads() -> None:
    """Sleep briefly, so that process-group threads release Python's locks before this process is forked.

    The threads hold such locks while they free the tensors of a collective. A process that is forked at that moment
    inherits a lock that is never released, and hangs before its first line (CPython issue 112275, until 3.11.7).
    """
    if dist.is_available() and dist.is_initialized():
        time.sleep(GROUP_THREADS_SECONDS)


def finish() -> None:
    """Destroy the process group, if there is one.

    PyTorch 2.0 aborts if the group's threads are still running when Python exits. `destroy_process_group`
    waits for these threads while it holds the GIL, which the threads need to exit. So the threads must go idle before
    the call, or it deadlocks.
    """
    if dist.is_available() and dist.is_initialized():
        wait_for_group_threads()
        dist.destroy_process_group()
        gc.collect()
