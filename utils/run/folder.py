"""The --output-dir of one run."""

import contextlib
import csv
import io
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.config import TrainConfig
from utils.run.summary import COLUMNS, draw_curves, format_value
from utils.system.distributed import World
from utils.system.errors import InputError, clause
from utils.system.files import FolderLock, write_json, write_text
from utils.system.log import Printable, log

CHECKPOINT, BEST, VIEWS = "checkpoint.pth.tar", "model_best.pth.tar", "views.png"


RUN_FILES = (CHECKPOINT, BEST, "args.json", "metrics.csv", "summary.json", "curves.png", "train.log")


class LogFile(logging.FileHandler):
    """Handler that writes train.log, and ignores a full disk."""

    def handleError(self, _record: logging.LogRecord) -> None:
        """Ignore the error: the checkpoint or metrics.csv reports a full disk."""


class RunFolder:
    """The --output-dir of one run.

    Args:
        path: the folder, which `claimed` creates.
        overwrite: replace a run that the folder holds.
        resume: continue a run that the folder holds.
        writes: whether this process writes the files; other ranks ignore the folder.

    Raises:
        InputError: `path` is a file, or the folder holds a run and neither `overwrite` nor `resume` is set.
    """

    def __init__(self, path: str | Path, overwrite: bool = False, resume: bool = False, writes: bool = True) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output-dir {path} is a file; give a folder")
        self.previous = [name for name in RUN_FILES if writes and (self.path / name).exists()]
        if self.previous and not (overwrite or resume):
            raise InputError(
                f"--output-dir {path} holds a run already; add --resume to continue it, --overwrite to replace it, "
                "or give another folder"
            )
        self.fresh = not resume

    def file(self, name: str) -> Path:
        """Return the path of one of the run's files."""
        return self.path / name

    def checkpoint_age(self) -> float:
        """Return the seconds since the last checkpoint was written; infinity before the first."""
        path = self.file(CHECKPOINT)
        return time.time() - path.stat().st_mtime if path.exists() else float("inf")

    @contextlib.contextmanager
    def claimed(self, public_arguments: dict[str, Any], owner: str) -> Iterator[None]:
        """Create the folder and lock it until the block ends.

        A run that is to be overwritten is removed, train.log is opened, and args.json is written.

        Args:
            public_arguments: content of args.json.
            owner: name of the student; train.log leaves out the lines of other students.

        Raises:
            InputError: another process owns the folder, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.path)
        except OSError as error:
            raise InputError(f"--output-dir {self.path} cannot be written ({error.strerror}); give another") from None
        try:
            self.remove_leftovers()
            with self.log_file(owner):
                write_json(self.file("args.json"), public_arguments)
                yield
        finally:
            lock.release()

    def remove_leftovers(self) -> None:
        """Remove a run that is to be overwritten, and temporary files of a killed run."""
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()
        for name in self.previous if self.fresh else []:
            self.file(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def log_file(self, owner: str) -> Iterator[None]:
        """Copy the log to train.log until the block ends, without lines about students other than `owner`."""
        handler = LogFile(self.file("train.log"), encoding="utf-8", errors="backslashreplace")
        handler.addFilter(lambda record: getattr(record, "owner", owner) == owner)
        handler.setFormatter(Printable("%(asctime)s %(message)s"))
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()

    def write_metrics(self, history: Sequence[dict[str, Any]]) -> None:
        """Rewrite all of metrics.csv from the history, so that a resumed run leaves no epoch twice in it."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in history:
            writer.writerow({name: format_value(row.get(name)) for name in COLUMNS})
        write_text(self.file("metrics.csv"), text.getvalue())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json."""
        write_json(self.file("summary.json"), summary)

    def draw_curves(self, history: list[dict], title: str, loss_type: str) -> None:
        """Draw losses, top-1 and learning rate over epochs to curves.png; if that fails, the run goes on."""
        try:
            draw_curves(self.file("curves.png"), history, title, loss_type)
        except InputError:  # the disk is full
            raise
        except Exception as error:
            log.warning("warning: curves.png could not be drawn (%s: %s)", type(error).__name__, clause(error))


def is_below(path: Path | str, folder: Path | str) -> bool:
    """Return whether a path, with links resolved, lies in or below a folder."""
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def open_folders(config: TrainConfig, world: World) -> list[RunFolder]:
    """Return the `RunFolder` of each student in `config.students()`.

    Raises:
        InputError: a folder holds a run, and neither --resume nor --overwrite was given; a folder lies in an image
            folder; several students were given to several processes; or none of several students has a checkpoint to
            resume from.
    """
    resume, students = config.resume is not None, config.students()
    if len(students) > 1 and world.size > 1:
        raise InputError(
            f"several --seeds or --model train side by side in one process, not in {world.size}; start them without "
            "torchrun, or one after the other"
        )
    folders = [RunFolder(one.output_dir, config.overwrite, resume, world.is_main) for one in students]
    for flag, images in (("--train-dir", config.train_dir), ("--val-dir", config.val_dir)):
        inside = [folder for folder in folders if images and is_below(folder.path, images)]
        if inside:  # the next run would take the output folder, which holds pictures, for a class
            raise InputError(
                f"--output-dir {inside[0].path} is in the image folder {flag} {images}; give another folder"
            )
    if len(students) > 1 and resume and not any(folder.file(CHECKPOINT).exists() for folder in folders):
        raise InputError(
            f"--resume: no student in --output-dir {config.output_dir} has a checkpoint; give the folder that holds "
            "their folders, or leave --resume out"
        )
    return folders
