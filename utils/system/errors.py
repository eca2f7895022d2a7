"""Define errors whose message is one sentence with a remedy, and format text for messages.

Some functions make text printable on every terminal.
"""

import errno
import os
import re
import sys
from collections.abc import Iterable
from typing import Any


def printable(text: str) -> str:
    r"""Return `text` without surrogates, so that every encoder and every font library accepts it.

    If a file name is not valid UTF-8, Python represents each invalid byte as a surrogate character, which cannot be
    encoded as UTF-8. This function replaces each surrogate by an escape such as `\xb9`.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # `text` has surrogates that do not stand for bytes of a file name
        return text.encode("utf-8", "backslashreplace").decode()


def printable_all(value: Any) -> Any:
    """Return `value` with `printable` applied to every string in nested dicts (keys too), lists and tuples."""
    if isinstance(value, dict):
        return {printable_all(key): printable_all(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(printable_all, value))
    return printable(value) if isinstance(value, str) else value


def one_line(text: str) -> str:
    r"""Return `text` as one printable line: each line break inside it is replaced by a backslash and an n.

    Line breaks can occur in file names, for example.
    """
    return printable("\\n".join(text.splitlines()))


def shorten(text: object, width: int) -> str:
    """Return `text` as one line of at most `width` characters. Longer text is cut between words and ends in ` …`.

    Text without a blank in front of the cut, such as a long name, ends in `…` directly after a letter.
    """
    line = " ".join(str(text).split())
    if len(line) <= width:
        return line
    # ` …` has 2 characters. The last character of `start` is never in `words`, so `words` has at most `width` - 2.
    start = line[: width - 1]
    words = start.rpartition(" ")[0]
    return words.rstrip(" ,;:.(") + " …" if words else start + "…"


FILE_LIMIT_TEXTS = (
    os.strerror(errno.EMFILE),
    os.strerror(errno.ENFILE),
    "received 0 items of ancdata",
    # worker processes exit with this code at the limit on open files (see `end_worker` in utils/data/workers.py)
    f"exited unexpectedly with exit code {errno.EMFILE}",
)
WORKER_DIED = "a data loading worker died, most often for lack of memory or of space in /dev/shm; lower -j/--workers"
OPEN_FILES = (
    "this process and its workers may open too few files at once (ulimit -n); raise the limit, for instance with "
    "ulimit -n 4096, or lower -j/--workers"
)


class InputError(Exception):
    """Error that the user can remedy, for example a wrong flag, a damaged file or a full disk.

    The message is one sentence that says what is wrong (for example, which flag or file) and what to do. A script
    prints the message as `error: …` and exits with code 2, without a traceback.
    """

    def __str__(self) -> str:
        """Return the message, which is one sentence.

        If the error was raised in a DataLoader worker, PyTorch adds the worker's traceback to the message. This
        traceback is left out.
        """
        return super().__str__().rpartition("InputError: ")[2].strip()


class Interrupted(Exception):
    """Exception that ends a run after a stop signal. It is raised when the checkpoint has been saved.

    Args:
        message: sentence for the user.
        exit_code: exit code of the process, 128 + signal number.
    """

    def __init__(self, message: str, exit_code: int = 130):
        super().__init__(message)
        self.exit_code = exit_code


def met_file_limit(error: BaseException) -> bool:
    """Return whether an error was caused by the limit on open files.

    Some libraries raise another type of error with the text of the system's error. Therefore, the text is checked too.
    """
    number = error.errno if isinstance(error, OSError) else None
    return number in (errno.EMFILE, errno.ENFILE) or any(words in str(error) for words in FILE_LIMIT_TEXTS)


def explain_system_error(error: Exception) -> str | None:
    """Return a sentence for the user that explains an error caused by a limit of the system, or None for other errors.

    Explained errors: too many open files, a DataLoader worker that was killed (most often for lack of memory), and a
    path that is too long. Too many open files can cause many different errors: for example, an image cannot be decoded,
    or a worker process cannot start.
    """
    if met_file_limit(error):
        return OPEN_FILES
    # if a worker dies, PyTorch's signal handler raises this error in the parent process, at any line
    if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
        return WORKER_DIED
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"the path {error.filename} is longer than the file system allows; give a shorter one"
    return None


def with_variables(sentence: str) -> str:
    """Return an error message that also names the variables which set its flags, if a launcher started this process.

    scripts/launcher.sh and scripts/evidence.py list their settings in the environment variable LAUNCHER_FLAGS, as
    `--flag=VARIABLE`. Flags that the user typed after a launcher's name are left out: they replace the launcher's.
    """
    clauses = []
    about = re.sub(r"\(did you mean .*?\)", "", sentence)  # a suggested flag is not the one that is wrong
    for pair in reversed(os.environ.get("LAUNCHER_FLAGS", "").split()):
        flag, _, variable = pair.partition("=")
        if re.search(rf"(?<![\w-]){flag}(?![\w-])", about) and sys.argv.count(flag) < 2:
            unset = "" if os.environ.get(variable) else ", which is not set"
            clauses.append(f"{flag} comes from the variable {variable}{unset}")
    return "; ".join([sentence, *clauses])


def listing(items: Iterable[object], limit: int = 5, separator: str = ", ") -> str:
    """Return the first `limit` items as text for an error message, such as `a, b, c and 7 more`."""
    words = [str(item) for item in items]
    shown = separator.join(words[:limit])
    return shown if len(words) <= limit else f"{shown} and {len(words) - limit} more"


def clause(error: object, width: int = 150) -> str:
    """Return the message of an error in a form that can be inserted into a sentence.

    The result is one line of at most `width` characters, with semicolons in place of full stops. If the message is
    empty, return the name of the error's type.
    """
    words = " ".join(str(error).split()).rstrip(". ").replace(". ", "; ")
    return shorten(words, width) or type(error).__name__
