"""Errors with a remedy for the user, one sentence each, and functions that make text printable on every terminal."""

import errno
import os
from collections.abc import Iterable
from typing import Any


def printable(text: str) -> str:
    r"""Return `text` without surrogates, so that every encoder and every font library accepts it.

    Python represents each byte of a file name that is not UTF-8 as a surrogate, which cannot be encoded. Each surrogate
    becomes an escape such as `\xb9`.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that do not come from a file name
        return text.encode("utf-8", "backslashreplace").decode()


def printable_all(value: Any) -> Any:
    """Apply `printable` to every string in nested dicts, lists and tuples, keys included."""
    if isinstance(value, dict):
        return {printable_all(key): printable_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(printable_all, value))
    return printable(value) if isinstance(value, str) else value


def one_line(text: str) -> str:
    r"""Return `text` as one printable line; line breaks, which names of files may have, become `\n`."""
    return printable("\\n".join(text.splitlines()))


def shorten(text: object, width: int) -> str:
    """Return `text` as one line of at most `width` characters; longer text is cut after a whole word, with ` …`."""
    line = " ".join(str(text).split())
    if len(line) <= width:
        return line
    start = line[: width - 1]  # the next line drops at least one more character, so ` …` fits
    words = start.rpartition(" ")[0] or start[:-1]
    return words.rstrip(" ,;:.(") + " …"


FILE_LIMIT_TEXTS = (
    os.strerror(errno.EMFILE),
    os.strerror(errno.ENFILE),
    "received 0 items of ancdata",
    f"exited unexpectedly with exit code {errno.EMFILE}",  # of this program's workers: see utils/data/workers.py
)
WORKER_DIED = "a data loading worker died, most often for lack of memory or of space in /dev/shm; lower -j/--workers"
OPEN_FILES = (
    "this process and its workers may open too few files at once (ulimit -n); raise the limit, for instance with "
    "ulimit -n 4096, or lower -j/--workers"
)


class InputError(Exception):
    """Error about a flag or a file that the user gave and that cannot be used.

    The message is one sentence that names the flag or the file and the remedy. A script prints it
    as `error: …` and exits with code 2, without a traceback.
    """

    def __str__(self) -> str:
        """Return the sentence alone, without the traceback that a DataLoader worker puts into the message."""
        return super().__str__().rpartition("InputError: ")[2].strip()


class Interrupted(Exception):
    """Error that ends a run after a signal, once the state is saved; `exit_code` is 128 + signal number."""

    def __init__(self, message: str, exit_code: int = 130):
        super().__init__(message)
        self.exit_code = exit_code


def met_file_limit(error: BaseException) -> bool:
    """Return whether an error comes from the limit on open files, even if a library kept only the message."""
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.EMFILE, errno.ENFILE) or any(words in str(error) for words in FILE_LIMIT_TEXTS)


def explain_system_error(error: Exception) -> str | None:
    """Return a sentence that explains an error caused by a limit of the system; None for other errors.

    The limit on open files shows in many ways: an image that cannot be decoded, a worker that cannot start.
    """
    if met_file_limit(error):
        return OPEN_FILES
    if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(
        error
    ):  # PyTorch raises this in a signal handler, at any line of the parent
        return WORKER_DIED
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"the path {error.filename} is longer than the file system allows; give a shorter one"
    return None


def listing(items: Iterable[object], limit: int = 5) -> str:
    """Join the first `limit` items for an error sentence: `a, b, c and 7 more`."""
    words = [str(item) for item in items]
    shown = ", ".join(words[:limit])
    return shown if len(words) <= limit else f"{shown} and {len(words) - limit} more"


def clause(error: object, width: int = 150) -> str:
    """Return another library's message as part of a sentence: one line, no full stops, at most `width` characters."""
    words = " ".join(str(error).split()).rstrip(". ").replace(". ", "; ")
    return shorten(words, width) or type(error).__name__
