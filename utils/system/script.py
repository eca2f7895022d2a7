"""How the scripts end: exit codes, and keys that leave the command line."""

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
    """Call `main(argv)` and turn its end into a process exit code.

    0 done; 2 bad input; 128 + the signal's number where one ended the run: 130 SIGINT, 143 SIGTERM, 138 SIGUSR1.
    Of several processes one prints why the run ends. Workers whose loader is still referred to would live on for 30 s.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or file in another encoding lacks some letters
            stream.reconfigure(errors="backslashreplace")
    if argv is None:
        hide_key()
    try:
        main(argv)
        ranks.finish()
        return 0
    except InputError as error:
        text, code = f"error: {explain_system_error(error) or error}", 2
    except Interrupted as stop:
        text, code = f"stopped: {stop}", stop.exit_code
    except torch.cuda.OutOfMemoryError as error:
        text, code = f"error: {out_of_memory(error)}", 2
    except (OSError, RuntimeError) as error:
        reason = explain_system_error(error)
        if reason is None:
            raise
        text, code = f"error: {reason}", 2
    except KeyboardInterrupt:
        text, code = "stopped: interrupted", 130
    finally:
        end_workers()
    if ranks.may_report_error():
        print(one_line(text), file=sys.stderr, flush=True)
    return code


def out_of_memory(error: Exception) -> str:
    """What to do where a GPU's memory was not enough, after PyTorch's own reason."""
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    more = f" ({wanted[1]} more were needed)" if wanted else ""
    return (
        f"the GPU is out of memory{more}; end what else uses it, or give "
        "--loader workers, a smaller --model, fewer --seeds or teachers at once, or more --gradient-accumulation-steps "
        "(which changes batch statistics); where there is a checkpoint, --resume goes on from it"
    )


def hide_key() -> None:
    """Start this process anew without a W&B key on its command line, which every user of the machine can read."""
    key, words = take_key(sys.orig_argv[1:])
    if key:
        print(f"W&B: {KEY_FLAG} can be read by others on this machine; WANDB_API_KEY in the environment is safer")
        sys.stdout.flush()
        os.environ["WANDB_API_KEY"] = key
        os.execv(sys.executable, [sys.executable, *words])


def take_key(words: list[str]) -> tuple[str | None, list[str]]:
    """Split a command line into (the W&B key or None, the other words)."""
    for place, word in enumerate(words):
        if word.startswith(f"{KEY_FLAG}="):
            return word.partition("=")[2], words[:place] + words[place + 1 :]
        if word == KEY_FLAG and place + 1 < len(words):
            return words[place + 1], words[:place] + words[place + 2 :]
    return None, words
