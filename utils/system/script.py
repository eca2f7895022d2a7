"""Run a script: exit codes, one-line errors, and hiding an API key that is on the command line."""

import io
import os
import re
import sys
from collections.abc import Callable

import torch

from utils.system import ranks
from utils.system.errors import InputError, Interrupted, explain_system_error
from utils.system.signals import end_workers
from utils.system.text import one_line

KEY_FLAG = "--wandb-api-key"


def run_script(main: Callable[[list[str] | None], object], argv: list[str] | None = None) -> int:
    """Call `main(argv)` and return the exit code of the process.

    0: done; 2: bad input; 128 + signal number if a signal ended the run: 130 SIGINT, 143 SIGTERM, 138 SIGUSR1.
    With several processes only one prints why the run ends.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack some of our characters
            stream.reconfigure(errors="backslashreplace")
    if argv is None:
        hide_key()
    try:
        main(argv)
        ranks.finish()
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
        end_workers()  # if something still refers to their loader they would live on for 30 s
    if ranks.may_report_error():
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
