"""Set up the log of a process, and show progress bars."""

import logging
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from utils.system.errors import printable

Item = TypeVar("Item")

log = logging.getLogger("validator")


def progress_bar(batches: Iterable[Item], description: str, total: int, enabled: bool = True) -> Iterable[Item]:
    """Return `batches` wrapped in a tqdm bar on stderr.

    No bar is shown if `enabled` is False, or if stderr is not a terminal.
    """
    return tqdm(batches, description, total, leave=False, disable=None if enabled else True)


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
