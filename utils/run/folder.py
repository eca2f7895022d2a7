"""Manage the output folder (--output-dir) of a run: its files, its lock and its log file train.log."""

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
from utils.run.curves import draw_curves
from utils.run.summary import COLUMNS, format_value
from utils.system.distributed import World
from utils.system.errors import InputError, clause
from utils.system.files import FolderLock, write_json, write_text
from utils.system.log import Printable, log

CHECKPOINT, BEST, VIEWS = "checkpoint.pth.tar", "model_best.pth.tar", "views.png"


RUN_FILES = (CHECKPOINT, BEST, "args.json", "metrics.csv", "summary.json", "curves.png", "curves.pdf", "train.log")


class LogFile(logging.FileHandler):
    """Log handler that writes train.log and ignores write errors, for example on a full disk."""

    def handleError(self, _record: logging.LogRecord) -> None:
        """Ignore an error in writing train.log. A full disk is reported when metrics.csv is written."""


class RunFolder:
    """Output folder of one student's run, with methods that write the files in it.

    Args:
        path: the folder. The constructor does not create it; `claimed` does.
        overwrite: whether to replace an earlier run in this folder.
        resume: whether to continue an earlier run in this folder.
        writes: whether this process writes the run's files. Only rank 0 does; other ranks skip the check for an
            earlier run.

    Raises:
        InputError: `path` is a file; or the folder holds an earlier run, but `overwrite` and `resume` are both False.
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
        """Return the path of the file called `name` in this folder."""
        return self.path / name

    def checkpoint_age(self) -> float:
        """Return the seconds since the checkpoint was last written, or infinity if there is no checkpoint yet."""
        path = self.file(CHECKPOINT)
        return time.time() - path.stat().st_mtime if path.exists() else float("inf")

    @contextlib.contextmanager
    def claimed(self, public_arguments: dict[str, Any], owner: str) -> Iterator[None]:
        """Create the folder, and lock it against other processes until the `with` block ends.

        Before the block starts, this method removes the files of a run that is overwritten, starts to copy the log to
        train.log, and writes args.json.

        Args:
            public_arguments: content of args.json.
            owner: name of the student. Log lines of other students are not copied to train.log.

        Raises:
            InputError: another process has locked the folder, or the folder cannot be written.
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
        """Remove files of earlier runs from the folder.

        Temporary files that a killed run left behind are always removed. The other files of an earlier run are removed
        unless this run resumes it.
        """
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()
        for name in self.previous if self.fresh else []:
            self.file(name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def log_file(self, owner: str) -> Iterator[None]:
        """Copy the log to train.log until the `with` block ends.

        Several students can train in one process. Lines of students other than `owner` are not copied.
        """
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
        """Write metrics.csv anew. Each entry of `history` describes one finished epoch and becomes one row.

        If rows were appended to the old file, a resumed run would repeat some epochs.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in history:
            writer.writerow({name: format_value(row.get(name)) for name in COLUMNS})
        write_text(self.file("metrics.csv"), text.getvalue())

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary` to the file summary.json in this folder."""
        write_json(self.file("summary.json"), summary)

    def draw_curves(self, history: list[dict], summary: dict[str, Any], classes: int) -> None:
        """Plot losses, top-1 and learning rate over the epochs, and save the plot as curves.png and curves.pdf.

        If plotting fails, log a warning and return.

        Args:
            history, summary, classes: those of `utils.run.curves.draw_curves`.

        Raises:
            InputError: a file cannot be written, for example because the disk is full.
        """
        try:
            draw_curves(self.file("curves.png"), history, summary, classes)
        except InputError:  # a file cannot be written, for example because the disk is full
            raise
        except Exception as error:
            log.warning("warning: curves.png could not be drawn (%s: %s)", type(error).__name__, clause(error))


def is_below(path: Path | str, folder: Path | str) -> bool:
    """Return whether `path` lies inside `folder` at any depth, after symbolic links are resolved."""
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def open_folders(config: TrainConfig, world: World) -> list[RunFolder]:
    """Return the output folder of each student in `config.students()`, in the same order.

    Raises:
        InputError: in one of these cases:
            * the path of a folder is a file;
            * a folder holds an earlier run, but neither --resume nor --overwrite was given;
            * a folder lies inside --train-dir or --val-dir;
            * the run has several students and also several processes;
            * the run has several students and --resume was given, but no student has a checkpoint.
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
        # a later run would mistake an output folder inside the image folder for a class, because it will hold PNG files
        if inside:
            raise InputError(
                f"--output-dir {inside[0].path} is in the image folder {flag} {images}; give another folder"
            )
    if len(students) > 1 and resume and not any(folder.file(CHECKPOINT).exists() for folder in folders):
        raise InputError(
            f"--resume: no student in --output-dir {config.output_dir} has a checkpoint; give the folder that holds "
            "their folders, or leave --resume out"
        )
    return folders
