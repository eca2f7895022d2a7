"""The log, and progress bars."""

import logging
import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from utils.system.text import printable

Item = TypeVar("Item")

log = logging.getLogger("validator")


def progress_bar(batches: Iterable[Item], description: str, total: int, enabled: bool = True) -> Iterable[Item]:
    """Wrap an iterable in a tqdm bar on stderr; silent when stderr is not a terminal."""
    return tqdm(batches, description, total, leave=False, disable=None if enabled else True)


class Printable(logging.Formatter):
    """A formatter whose lines can be written wherever they go: names of files may be in no encoding."""

    def format(self, record: logging.LogRecord) -> str:
        """As Formatter's."""
        return printable(super().format(record))


class LogHandler(logging.StreamHandler):
    """Writes records; a bar on the same terminal steps aside meanwhile."""

    def emit(self, record: logging.LogRecord) -> None:
        """As StreamHandler's."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def start_log(speaks: bool = True) -> None:
    """Send the log to stdout, or nowhere; a handler of an earlier run in this process is closed."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    handler = LogHandler(sys.stdout) if speaks else logging.NullHandler()
    handler.setFormatter(Printable())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
