"""Several processes for one run: the only module that knows ranks. One process is a world of size one.

    torchrun --nproc_per_node 4 train_FKD_parallel.py …

A stored batch stays one batch. `Share` says which of its rows a rank works on; the sums over ranks
(gradients, batch statistics, metrics) then are those of one process that has all the rows.
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


Parts = tuple[tuple[int, int], ...]  # (own rows, rows) of each micro-batch of a batch


REST = 0.2  # seconds


TIMEOUT = timedelta(minutes=10)  # that a rank waits for the others before it gives up


def share(rows: int, rank: int, size: int) -> range:
    """Rows of `rows` that a rank works on, as a range: neighbours, none left out, none twice."""
    return range(rows * rank // size, rows * (rank + 1) // size)


@dataclass(frozen=True)
class Share:
    """The part that one rank has in every batch: a share of each of its micro-batches.

    Attributes:
        rank, size: of the world.
        micro_batch: rows of a micro-batch of the whole batch.
    """

    rank: int
    size: int
    micro_batch: int

    def parts(self, rows: int) -> Parts:
        """Return ((own rows, rows), …) of the micro-batches of a batch of `rows` rows."""
        micro = [min(self.micro_batch, rows - start) for start in range(0, rows, self.micro_batch)]
        return tuple((len(share(n, self.rank, self.size)), n) for n in micro)

    def rows(self, rows: int) -> torch.Tensor:
        """Return the own ones of `rows` rows, in order: int64 [own]."""
        own: list[int] = []
        for start in range(0, rows, self.micro_batch):
            n = min(self.micro_batch, rows - start)
            own += [start + row for row in share(n, self.rank, self.size)]
        return torch.tensor(own, dtype=torch.int64)


@dataclass(frozen=True)
class World:
    """The processes of one run. Every method is called by all ranks, or by none.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine; also that of its GPU.
        host: process group for tensors on the host.

    Raises:
        InputError: (every method) another process is gone.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    host: "dist.ProcessGroup | None" = None

    def __deepcopy__(self, _memo: dict[int, Any]) -> "World":
        return self  # a copied module still belongs to the same processes

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and logs."""
        return self.rank == 0

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace `tensor` (on the device, contiguous) by its sum over ranks; return it."""
        if self.size > 1:
            with others_alive():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, number: int) -> int:
        """Return the largest of the ranks' integers."""
        if self.size == 1:
            return number
        value = torch.tensor(number)
        with others_alive():
            dist.all_reduce(value, dist.ReduceOp.MAX, group=self.host)
        return int(value)

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite every tensor by rank 0's."""
        if self.size > 1:
            with others_alive():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def broadcast_object(self, value: Value) -> Value:
        """Return rank 0's `value`, any picklable object, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        with others_alive():
            dist.broadcast_object_list(box, 0, group=self.host)
        return box[0]

    def all_gather_object(self, value: Value) -> list[Value]:
        """Return every rank's `value`, any picklable object, in the order of ranks, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with others_alive():
            dist.all_gather_object(values, value, group=self.host)
        return values

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all_reduce_max(0)


ALONE = World()


@contextlib.contextmanager
def others_alive() -> Iterator[None]:
    """Turn what a process group raises when a rank is gone into one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            "another process of this run ended or does not answer; if it printed no error before this line it was "
            "killed, most often for want of memory; start again, with --resume where a checkpoint was written"
        ) from error


def start(device_name: str) -> World:
    """Join the processes that torchrun (or Slurm) started.

    Args:
        device_name: --device {auto,cpu,cuda}; gloo connects CPUs, nccl connects GPUs, one per process.

    Returns:
        `World`; that of one process where the environment names no ranks.

    Raises:
        InputError: the environment is half set, there are too few GPUs, or the others cannot be reached.
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
    """Return the `World` that the environment describes, before anything is connected."""
    if not any(name in os.environ for name in VARIABLES[:3]):  # the address alone may be a cluster's habit
        return ALONE
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"the environment names some of {', '.join(VARIABLES)}, but not {', '.join(missing)}; start with torchrun, "
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
    """Number of this run's processes on this machine, which share its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if from_environment().size > 1 else 1


def may_report_error() -> bool:
    """Whether this process is the one that tells the user why the run ends: the first that asks is.

    Before the processes are connected they can only fail for the same reason, so rank 0 speaks.
    """
    if not dist.is_available() or not dist.is_initialized():
        return os.environ.get("RANK", "0") in ("0", "")
    try:
        return dist.distributed_c10d._get_default_store().add("spoken", 1) == 1
    except (RuntimeError, AttributeError):
        return True


def wait_for_group_threads() -> None:
    """Give the threads of the process group a moment, of which they need a hundredth, to have done with Python's locks.

    They take some to free what a collective leaves behind. A process that is forked just then inherits a lock that
    nobody will ever release, and hangs before its first line (CPython's issue 112275, until 3.11.7).
    """
    if dist.is_available() and dist.is_initialized():
        time.sleep(REST)


def finish() -> None:
    """Leave the other processes; do nothing where there are none.

    The group's threads must have ended before Python does: PyTorch 2.0 aborts otherwise. It also holds
    Python's lock while it waits for them, which they need to end: so they rest first, or both would wait for ever.
    """
    if dist.is_available() and dist.is_initialized():
        wait_for_group_threads()
        dist.destroy_process_group()
        gc.collect()
