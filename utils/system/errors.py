"""Errors that are one sentence."""

import errno
import os
from collections.abc import Iterable

from utils.system.text import shorten

FILE_LIMIT_TEXTS = (
    *(os.strerror(errno.EMFILE), os.strerror(errno.ENFILE), "received 0 items of ancdata"),
    f"exited unexpectedly with exit code {errno.EMFILE}",  # a worker of ours: see utils/views/workers.py
)
WORKER_DIED = "a data loading worker died, most often for want of memory or of /dev/shm; lower -j/--workers"
OPEN_FILES = (
    "this process and its workers may open too few files at once (ulimit -n); raise the limit, for instance with "
    "ulimit -n 4096, or lower -j/--workers"
)


class InputError(Exception):
    """What the user gave cannot be used.

    The message is one sentence that names the flag or the file and the remedy. A script prints it
    as `error: …` and exits with code 2, without a traceback.
    """

    def __str__(self) -> str:
        """The sentence alone: a DataLoader worker wraps what it raises in its traceback."""
        return super().__str__().rpartition("InputError: ")[2].strip()


class Interrupted(Exception):
    """The run was asked to stop by a signal; its state is saved. `exit_code` is 128 + signal."""

    def __init__(self, message: str, exit_code: int = 130):
        super().__init__(message)
        self.exit_code = exit_code


def met_file_limit(error: BaseException) -> bool:
    """Whether an error comes from too few file descriptors; others often wrap it, with its text alone."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.EMFILE, errno.ENFILE) or any(words in str(error) for words in FILE_LIMIT_TEXTS)


def explain_system_error(error: Exception) -> str | None:
    """Return one sentence for a limit of the system that a run has met, wherever it did; None for other errors.

    Too few file descriptors show in many ways: an image that cannot be decoded, a worker that cannot start.
    """
    if met_file_limit(error):
        return OPEN_FILES
    if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):  # raised wherever the parent was
        return WORKER_DIED
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"the path {error.filename} is longer than file systems take; give a shorter one"
    return None


def listing(items: Iterable[object], limit: int = 5) -> str:
    """Join the first `limit` items for an error sentence: `a, b, c and 7 more`."""
    words = [str(item) for item in items]
    shown = ", ".join(words[:limit])
    return shown if len(words) <= limit else f"{shown} and {len(words) - limit} more"


def clause(error: object, width: int = 150) -> str:
    """Turn another library's message into a part of our sentence: one line, no full stop in it, cut after a word."""
    words = " ".join(str(error).split()).rstrip(". ").replace(". ", "; ")
    return shorten(words, width) or type(error).__name__
