"""How the scripts end: exit codes, and errors that are one sentence."""

import os
import sys

KEY_FLAG = "--wandb-api-key"


class InputError(Exception):
    """What the user gave cannot be used.

    The message is one sentence that names the flag or the file and the remedy. A script prints it
    as `error: …` and exits with code 2, without a traceback.
    """

    def __str__(self):
        """The sentence alone: a DataLoader worker wraps what it raises in its traceback."""
        return super().__str__().rpartition("InputError: ")[2].strip()


class Interrupted(Exception):
    """The run was asked to stop by a signal; its state is saved. `exit_code` is 128 + signal."""

    def __init__(self, message, exit_code=130):
        super().__init__(message)
        self.exit_code = exit_code


def run_script(main, argv=None):
    """Call `main(argv)` and turn its end into a process exit code.

    0 done; 2 bad input; 128 + the signal's number where one ended the run: 130 SIGINT, 143 SIGTERM, 138 SIGUSR1.
    Of several processes one prints why the run ends.
    """
    from utils import distributed

    if argv is None:
        hide_key()
    try:
        main(argv)
        distributed.finish()
        return 0
    except InputError as error:
        text, code = f"error: {error}", 2
    except Interrupted as stop:
        text, code = f"stopped: {stop}", stop.exit_code
    except KeyboardInterrupt:
        text, code = "stopped: interrupted", 130
    if distributed.may_speak():
        print(text, file=sys.stderr, flush=True)
    return code


def hide_key():
    """Start this process anew without a W&B key on its command line, which every user of the machine can read."""
    key, words = take_key(sys.orig_argv[1:])
    if key:
        print(f"W&B: {KEY_FLAG} can be read by others on this machine; WANDB_API_KEY in the environment is safer")
        sys.stdout.flush()
        os.environ["WANDB_API_KEY"] = key
        os.execv(sys.executable, [sys.executable, *words])


def take_key(words):
    """Split a command line into (the W&B key or None, the other words)."""
    for place, word in enumerate(words):
        if word.startswith(f"{KEY_FLAG}="):
            return word.partition("=")[2], words[:place] + words[place + 1 :]
        if word == KEY_FLAG and place + 1 < len(words):
            return words[place + 1], words[:place] + words[place + 2 :]
    return None, words


def listing(items, limit=5):
    """Join the first `limit` items for an error sentence: `a, b, c and 7 more`."""
    items = [str(item) for item in items]
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
