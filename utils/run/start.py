"""The first phase of every script, right after its flags: processes, log, device with its arithmetic."""

from argparse import Namespace

from utils.system import ranks
from utils.system.cores import at_most_cores
from utils.system.log import start_log
from utils.system.memory import keep_freed_memory
from utils.system.ranks import World
from utils.training.precision import Precision, pick_device


def begin(args: Namespace) -> tuple[World, Precision]:
    """Join the processes of the run, start the log, pick the device; on the CPU keep the memory that is freed.

    What the run's figures depend on is noted in `args`: `device`, cpu or cuda, `processes`, their number, and
    `arithmetic`, the precision with its memory layout.

    Args:
        args: settled arguments with `device`, `precision`, `workers`, `no_progress`.

    Returns:
        (`World`, `Precision` on this process's device).

    Raises:
        InputError: the environment is half set, or the device or the precision cannot be had.
    """
    world = ranks.start(args.device)
    start_log(world.is_main)
    precision = Precision(args.precision, pick_device(args.device, world))
    args.device, args.processes, args.arithmetic = precision.device.type, world.size, str(precision)
    if precision.device.type == "cpu":
        keep_freed_memory()
    args.no_progress |= not world.is_main
    args.workers = at_most_cores(args.workers)
    return world, precision
