"""Set up the log of a process, and show progress bars."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

from utils.system.errors import printable

Item = TypeVar("Item")

log = logging.getLogger("validator")


# seconds between two lines of progress on a stderr that is not a terminal
EVERY = 60.0
LINE = "{desc}: {percentage:.0f} % in {elapsed}, {remaining} left{postfix}"


class ProgressBar(tqdm):
    """Progress on stderr: a bar on a terminal, otherwise a line at most every EVERY seconds.

    So a log file also shows the progress and the time left, but has no carriage returns.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.terminal = sys.stderr.isatty()
        self.said = time.monotonic()  # time of the last line
        super().__init__(*arguments, leave=False, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draw the bar, or print a line if it is time; return whether the terminal's line was changed."""
        if self.terminal:
            return bool(super().display(msg, pos))
        if 0 < self.n < self.total and time.monotonic() - self.said >= EVERY:
            self.said = time.monotonic()
            print(self.format_meter(**self.format_dict | {"bar_format": LINE}), file=sys.stderr, flush=True)
        return False

    def clear(self, nolock: bool = False) -> None:
        """Remove the bar from the terminal's line."""
        if self.terminal:
            super().clear(nolock)

    def counting(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield `batches`; after each, advance the bar."""
        for batch in batches:
            yield batch
            self.update()


def progress_bar(batches: Iterable[Item], description: str, total: int, enabled: bool = True) -> Iterable[Item]:
    """Return `batches` wrapped in a `ProgressBar`, which is hidden if `enabled` is False."""
    return ProgressBar(batches, description, total=total, disable=not enabled)


class Printable(logging.Formatter):
    """Log formatter that replaces invalid bytes by escapes. Some file names contain bytes that are not valid UTF-8."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record, in which each invalid byte is replaced by an escape."""
        return printable(super().format(record))


class LogHandler(logging.StreamHandler):
    """Log handler that clears the progress bar on the terminal, writes a line, and then draws the bar again."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record above the progress bar."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def start_log(speaks: bool = True) -> None:
    """Send the log to stdout, or discard it if `speaks` is False.

    Log handlers that an earlier run in the same process installed are removed and closed.
    """
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handler = LogHandler(sys.stdout) if speaks else logging.NullHandler()
    handler.setFormatter(Printable())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
