"""Run a script as a process: signals that stop it, errors in one sentence, exit codes."""

import ctypes
import io
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

import torch

from utils.system import distributed
from utils.system.errors import InputError, Interrupted, explain_system_error, one_line

Item = TypeVar("Item")

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


WORKER_GRACE = 30  # seconds until a worker exits after SIGTERM, which Slurm sends to every process


PATIENCE = 10  # seconds to wait for the next batch after a signal


PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class StillWaiting(BaseException):
    """Exception that ends a long wait for a batch after a signal; `except Exception` does not catch it."""


class StopSignals:
    """Context in which SIGINT, SIGTERM and SIGUSR1 are only recorded, so that the run stops after the current step.

    A second SIGINT ends the process at once.

    Args:
        all_reduce_max: `World.all_reduce_max`, by which all ranks stop after the same batch.
        alone: whether there is only one rank, which may give up waiting for the next batch after a signal.

    Attributes:
        received: number of the signal, or None.
    """

    def __init__(self, all_reduce_max: Callable[[int], int] = int, alone: bool = True):
        self.received: int | None = None
        self.waiting, self.alone = False, alone
        self.previous: dict[int, Any] = {}  # signal number -> handler to restore on exit
        self.all_reduce_max = all_reduce_max

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self.record_signal) for number in STOPPING}
            self.previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self.give_up)
        return self

    def __exit__(self, *_: object) -> None:
        if self.previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def record_signal(self, number: int, _frame: FrameType | None) -> None:
        """Record a signal, restore the default action of SIGINT, and start the timer of `give_up` (signal handler)."""
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)

    def give_up(self, _number: int, _frame: FrameType | None) -> None:
        """End the wait for an item that does not come (handler of the timer that `record_signal` starts)."""
        if self.waiting and self.alone:
            raise StillWaiting

    def until_stop(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield from `items`; after a signal, end before the next item is fetched.

        If the signal comes while an item is fetched, yield that item and then end. A single rank waits for the item for
        at most PATIENCE seconds.
        """
        stream = iter(items)
        while True:
            try:
                self.waiting = True
                item = next(stream)
                self.waiting = False
            except (StopIteration, StillWaiting):
                return
            finally:
                self.waiting = False
            yield item
            if self.agreed() is not None:
                return

    def agreed(self) -> int | None:
        """Return the number of the signal that any rank received (the highest of several), or None."""
        self.received = self.all_reduce_max(self.received or 0) or None
        return self.received


def prepare_worker() -> None:
    """Make this worker process ignore signals that its parent handles, and exit when the parent does."""
    parent = multiprocessing.parent_process()
    if parent is None:  # not a worker
        return
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(
        signal.SIGALRM, signal.SIG_DFL
    )  # without this, the inherited `StopSignals.give_up` would handle the alarm
    signal.signal(
        signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE)
    )  # not at once: the parent may need another batch before it stops
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0:
        if not parent.is_alive():  # the parent ended before prctl was called
            os._exit(1)
    else:
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: BaseProcess) -> None:
    """Wait until the parent process has ended, then exit."""
    connection.wait([parent.sentinel])
    os._exit(1)


def end_workers() -> None:
    """Kill all child processes of this process; call this only when they are no longer needed."""
    if threading.current_thread() is not threading.main_thread():
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise for killed workers
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    signal.signal(signal.SIGCHLD, handler)


KEY_FLAG = "--wandb-api-key"


def run_script(main: Callable[[list[str] | None], object], argv: list[str] | None = None) -> int:
    """Call `main(argv)` and return the exit code of the process.

    Exit codes: 0 done; 2 bad input, or a limit of the system; 128 + signal number if a signal ended the run: 130
    SIGINT, 143 SIGTERM, 138 SIGUSR1. With several processes only one prints the error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the encoding of the terminal may lack some characters
            stream.reconfigure(errors="backslashreplace")
    if argv is None:
        hide_key()
    try:
        main(argv)
        distributed.finish()
        return 0
    except InputError as error:
        text = f"error: {explain_system_error(error) or error}"
        code = 2
    except Interrupted as stop:
        text = f"stopped: {stop}"
        code = stop.exit_code
    except torch.cuda.OutOfMemoryError as error:
        text = f"error: {out_of_memory(error)}"
        code = 2
    except (OSError, RuntimeError) as error:
        reason = explain_system_error(error)
        if reason is None:
            raise
        text = f"error: {reason}"
        code = 2
    except KeyboardInterrupt:
        text = "stopped: interrupted"
        code = 130
    finally:
        end_workers()  # workers whose loader is still referenced would live for another 30 s
    if distributed.may_report_error():
        print(one_line(text), file=sys.stderr, flush=True)
    return code


def out_of_memory(error: Exception) -> str:
    """Return the sentence for a GPU that is out of memory: how much more was needed, and which flags need less."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    more = f" ({wanted[1]} more were needed)" if wanted else ""
    return (
        f"the GPU is out of memory{more}; end other programs that use it, or give "
        "--loader workers, a smaller --model, fewer --seeds or teachers at once, or more --gradient-accumulation-steps "
        "(which changes batch statistics); if there is a checkpoint, --resume continues from it"
    )


def hide_key() -> None:
    """Restart this process with the W&B key in its environment: any user of the machine can read a command line."""
    key, words = take_key(sys.orig_argv[1:])
    if key:
        print(f"W&B: {KEY_FLAG} can be read by others on this machine; WANDB_API_KEY in the environment is safer")
        sys.stdout.flush()
        os.environ["WANDB_API_KEY"] = key
        os.execv(sys.executable, [sys.executable, *words])


def take_key(words: list[str]) -> tuple[str | None, list[str]]:
    """Split a command line into (the W&B key or None, the other words)."""
    for position, word in enumerate(words):
        if word.startswith(f"{KEY_FLAG}="):
            return word.partition("=")[2], words[:position] + words[position + 1 :]
        if word == KEY_FLAG and position + 1 < len(words):
            return words[position + 1], words[:position] + words[position + 2 :]
    return None, words
