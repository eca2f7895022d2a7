"""The log, and progress bars."""

import logging
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from utils.system.errors import printable

Item = TypeVar("Item")

log = logging.getLogger("validator")


def progress_bar(batches: Iterable[Item], description: str, total: int, enabled: bool = True) -> Iterable[Item]:
    """Wrap an iterable in a tqdm bar on stderr; show no bar if stderr is not a terminal, or if not `enabled`."""
    return tqdm(batches, description, total, leave=False, disable=None if enabled else True)


class Printable(logging.Formatter):
    """Formatter that makes lines `printable`: file names that are not UTF-8 contain unencodable surrogates."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, then make the text printable."""
        return printable(super().format(record))


class LogHandler(logging.StreamHandler):
    """Handler that hides a progress bar on the same terminal while it writes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record above the progress bar."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def start_log(speaks: bool = True) -> None:
    """Send the log to stdout, or nowhere if not `speaks`; close handlers of an earlier run in this process."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handler = LogHandler(sys.stdout) if speaks else logging.NullHandler()
    handler.setFormatter(Printable())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
