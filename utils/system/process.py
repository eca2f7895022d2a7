"""Run the main function of a script: handle stop signals, print errors as one sentence, and choose the exit code.

This module does not import PyTorch, so that a script can answer --help and refuse wrong flags before that import, which
takes seconds; see `check_command_line`.
"""

import ctypes
import importlib.util
import io
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

from utils.system.errors import InputError, Interrupted, explain_system_error, listing, one_line, with_variables

Item = TypeVar("Item")

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


# seconds between SIGTERM and the exit of a worker process. Slurm sends SIGTERM to all processes of a job at once, and
# the parent may still need a batch from the worker.
WORKER_GRACE = 30


PATIENCE = 10  # seconds that a run waits for the next batch after it received a stop signal


# number of the prctl() option that sends a signal to this process when its parent ends, from <linux/prctl.h>
PR_SET_PDEATHSIG = 1


class StillWaiting(BaseException):
    """Exception that ends the wait for a batch if the batch does not arrive soon after a stop signal.

    It derives from BaseException, so that an `except Exception` in other code does not catch it.
    """


class StopSignals:
    """Context manager that records the stop signals SIGINT, SIGTERM and SIGUSR1 instead of ending the process.

    The training loop checks for a recorded signal after each batch, and can then save a checkpoint and stop. A SIGINT
    after another stop signal ends the process at once. If an exception ends the `with` block, SIGTERM and SIGUSR1 are
    ignored until `run_script` has printed the error.

    Args:
        all_reduce_max: `World.all_reduce_max`. All ranks call this function after each batch, so that all ranks stop
            after the same batch even if only one of them received a signal.
        alone: whether the run has only one rank. After a signal, such a run waits at most PATIENCE seconds for the next
            batch.

    Attributes:
        received: number of the signal that was received last, or None.
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

    def __exit__(self, failure: "type[BaseException] | None", *_: object) -> None:
        if self.previous:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.previous.items():
            # After a failure, ignore SIGTERM and SIGUSR1 until `run_script` has printed the reason: torchrun sends
            # SIGTERM as soon as another rank has ended, and this signal would end the process before the message.
            wait = failure is not None and number in (signal.SIGTERM, signal.SIGUSR1)
            signal.signal(number, signal.SIG_IGN if wait else handler)

    def record_signal(self, number: int, _frame: FrameType | None) -> None:
        """Record that a stop signal was received (handler of the stop signals).

        The next SIGINT will end the process, because its default action is restored. A timer is started, which calls
        `give_up` every PATIENCE seconds.
        """
        self.received = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, PATIENCE, PATIENCE)

    def give_up(self, _number: int, _frame: FrameType | None) -> None:
        """Raise StillWaiting if the run has only one rank and is waiting for the next item.

        This is the handler of the timer that starts when a stop signal is received.
        """
        if self.waiting and self.alone:
            raise StillWaiting

    def until_stop(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items` one by one until any rank has received a stop signal.

        If the signal arrives while this generator waits for an item, that item is still yielded. A run with only one
        rank waits at most PATIENCE seconds after the signal; if no item has arrived by then, the generator ends.
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
        """Return the same stop signal on all ranks, as its number; return None if no rank has received a signal.

        All ranks must call this method. If ranks have received different signals, the highest number is returned.
        """
        self.received = self.all_reduce_max(self.received or 0) or None
        return self.received


def prepare_worker() -> None:
    """Set up how this worker process reacts to signals and to the end of its parent process.

    The worker ignores SIGINT and SIGUSR1, exits WORKER_GRACE seconds after SIGTERM, and exits when its parent ends.
    In a process that is not a worker, do nothing.
    """
    parent = multiprocessing.parent_process()
    if parent is None:  # this process is not a worker
        return
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    # let SIGALRM end the worker; a forked worker has inherited `StopSignals.give_up` as the handler of SIGALRM
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # the worker exits WORKER_GRACE seconds after SIGTERM, not at once, because the parent may still need a batch
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE))
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) == 0:
        if not parent.is_alive():  # prctl has no effect if the parent ended before the call
            os._exit(1)
    else:
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: BaseProcess) -> None:
    """Wait until the process `parent` has ended, then exit from this worker process."""
    connection.wait([parent.sentinel])
    os._exit(1)


def end_workers() -> None:
    """Kill all worker processes that this process started with `multiprocessing`, and wait until they have ended.

    If this is not called in the main thread, do nothing, because only the main thread may set signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    # PyTorch's handler of SIGCHLD raises an error when a worker is killed, so it is switched off here
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()
        child.join()
    signal.signal(signal.SIGCHLD, handler)


KEY_FLAG = "--wandb-api-key"
# The module that connects the processes of a run. It imports PyTorch; it is used here only if it is imported already.
DISTRIBUTED = "utils.system.distributed"
# packages that training, relabelling and the tools for labels and images need: name of the import -> name for messages
NEEDED = {"torch": "PyTorch"} | {name: name for name in ("torchvision", "numpy", "safetensors", "tqdm")}


def check_command_line(parse: Callable[[list[str] | None], object], needed: Mapping[str, str] = NEEDED) -> None:
    """Parse the command line of this process; end the process if nothing is left to do, or if a flag is wrong.

    Scripts call this function before they import PyTorch, which takes seconds. The process ends with the answer to
    --help or --version, or with an error that names a wrong flag or a package that is not installed. Otherwise the
    function returns, and the script's `main` parses the command line again.

    Args:
        parse: function that parses a command line and raises InputError if it is wrong, such as `FKDConfig.parse`.
        needed: packages that must be installed, as in NEEDED.
    """

    def check(argv: list[str] | None) -> None:
        parse(argv)
        refuse_missing(needed)

    if code := run_script(check):
        sys.exit(code)


def refuse_missing(needed: Mapping[str, str]) -> None:
    """Raise InputError if one of the packages `needed`, {name of the import: name}, is not installed."""
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"{listing(missing)} {are} not installed in the Python that runs this script, {sys.executable}; activate "
            "the environment that has them (after `make setup`: . .venv/bin/activate), or run "
            f"{sys.executable} -m pip install -r requirements.txt"
        )


def run_script(main: Callable[[list[str] | None], object], argv: list[str] | None = None) -> int:
    """Call `main(argv)`, print an expected error as one line, and return the exit code of the process.

    The exit codes are:

    * 0: the script succeeded.
    * 2: the user can remedy the error, for example wrong input or too little memory.
    * 128 + signal number: a signal ended the run (SIGINT 130, SIGTERM 143, SIGUSR1 138).

    If the run has several processes, only one of them prints the error. Unexpected errors are raised again.
    """
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    for stream in (sys.stdout, sys.stderr):
        # if the terminal's encoding lacks a character, print an escape instead of raising an error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if argv is None:
        hide_key()
    try:
        main(argv)
        if DISTRIBUTED in sys.modules:
            sys.modules[DISTRIBUTED].finish()
        return 0
    except InputError as error:
        text = f"error: {explain_system_error(error) or error}"
        code = 2
    except Interrupted as stop:
        text = f"stopped: {stop}"
        code = stop.exit_code
    except (OSError, RuntimeError) as error:
        reason = out_of_memory(error) or explain_system_error(error)
        if reason is None:
            raise
        text = f"error: {reason}"
        code = 2
    except KeyboardInterrupt:
        text = "stopped: interrupted"
        code = 130
    finally:
        # otherwise Python would send SIGTERM to the workers at exit, and wait WORKER_GRACE seconds until they end
        end_workers()
    if may_report_error():
        print(one_line(with_variables(text)), file=sys.stderr, flush=True)
    restore_handlers(handlers)  # after a failure, `StopSignals` leaves SIGTERM and SIGUSR1 ignored
    return code


def may_report_error() -> bool:
    """Return whether this process may print the error of a failed run, so that it is printed only once.

    See `may_report_error` in utils/system/distributed.py. If that module is not imported, the processes of the run are
    not connected, and only rank 0 prints.
    """
    if DISTRIBUTED in sys.modules:
        return sys.modules[DISTRIBUTED].may_report_error()
    return os.environ.get("RANK", "0") in ("0", "")


def restore_handlers(handlers: dict[int, Any]) -> None:
    """Install `handlers`, {signal number: handler}. Do nothing outside the main thread, because Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None:  # None stands for a handler of C code, which Python cannot restore
            signal.signal(number, handler)


def out_of_memory(error: Exception) -> str | None:
    """Return the error message for a GPU that is out of memory; None if `error` is another error.

    The message says how much more memory was needed (if the error tells) and which flags reduce the use of memory.
    """
    if type(error).__name__ != "OutOfMemoryError":  # of PyTorch, which this module does not import
        return None
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    more = f" ({wanted[1]} more were needed)" if wanted else ""
    return (
        f"the GPU is out of memory{more}; end other programs that use it, or give "
        "--loader workers, a smaller --model, fewer --seeds or teachers at once, or more --gradient-accumulation-steps "
        "(which changes batch statistics); if there is a checkpoint, --resume continues from it"
    )


def hide_key() -> None:
    """Remove the W&B API key from the command line of this process, where any user of the machine can read it.

    If the command line has the key, restart this process with the key in the environment variable WANDB_API_KEY.
    """
    key, words = take_key(sys.orig_argv[1:])
    if key:
        print(f"W&B: {KEY_FLAG} can be read by others on this machine; WANDB_API_KEY in the environment is safer")
        sys.stdout.flush()
        os.environ["WANDB_API_KEY"] = key
        os.execv(sys.executable, [sys.executable, *words])


def take_key(words: list[str]) -> tuple[str | None, list[str]]:
    """Return (the W&B API key or None, the words of the command line without the key and its flag)."""
    for position, word in enumerate(words):
        if word.startswith(f"{KEY_FLAG}="):
            return word.partition("=")[2], words[:position] + words[position + 1 :]
        if word == KEY_FLAG and position + 1 < len(words):
            return words[position + 1], words[:position] + words[position + 2 :]
    return None, words
