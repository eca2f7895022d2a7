"""Reads run folders and sorts them into finished, unfinished and damaged runs."""

import csv
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.system.errors import InputError, printable_all, shorten

MARKS = ("summary.json", "args.json")  # a folder with one of these files is the folder of a run


@dataclass(frozen=True)
class FinishedRun:
    """A run that reached its last epoch.

    Attributes:
        path: folder of the run.
        summary: content of summary.json.
        curve: epoch -> validation top-1 in percent, for every epoch with an evaluation.
    """

    path: Path
    summary: dict
    curve: dict[int, float]

    @property
    def args(self) -> dict:
        """Return the settings of the run, from summary.json."""
        return self.summary["args"]

    @property
    def seed(self) -> int:
        """Return the seed of the student's initial weights."""
        return self.args["seed"]


@dataclass(frozen=True)
class FoundRuns:
    """All runs in and below the folders that `find_runs` searched.

    Attributes:
        finished: finished runs, in the order of their paths.
        unfinished: list of (folder, number of finished epochs, number of epochs of the whole run).
        damaged: list of (folder, why the run cannot be read).
    """

    finished: list[FinishedRun]
    unfinished: list[tuple[Path, int, int]]
    damaged: list[tuple[Path, str]]


def find_runs(paths: Sequence[str], flag: str = "RUN") -> FoundRuns:
    """Read all runs in the folders `paths` and their subfolders. Runs that cannot be read are listed as damaged.

    Args:
        paths: folders.
        flag: the flag that names the folders, for error messages.

    Raises:
        InputError: a path is not a folder, or neither the folder nor its subfolders contain a run.
    """
    found = FoundRuns([], [], [])
    for folder in sorted({folder for path in paths for folder in run_folders(path, flag)}):
        try:
            read_run(folder, found)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            found.damaged.append((folder, shorten(reason, 150)))
    return found


def run_folders(path: str, flag: str) -> list[Path]:
    """Return all folders of runs: `path` itself and its subfolders, if they contain a file of MARKS.

    Raises:
        InputError: `path` is not a folder, or there is no run.
    """
    if not os.path.isdir(path):
        raise InputError(f"{flag} {path} is not a folder; give the --output-dir of a run, or a folder of such folders")
    folders = [Path(folder) for folder, _, names in os.walk(path) if set(MARKS) & set(names)]
    if not folders:
        raise InputError(
            f"{flag} {path} holds no run (no {' or '.join(MARKS)}); give the --output-dir of one, or several"
        )
    return folders


def read_run(folder: Path, found: FoundRuns) -> None:
    """Read the folder of one run and add the run to `found.finished` or `found.unfinished`.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is damaged, or files contradict each other.
    """
    rows = read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").exists() else []
    if not (folder / "summary.json").exists():
        found.unfinished.append((folder, len(rows), json.loads((folder / "args.json").read_text())["epochs"]))
        return
    summary = printable_all(json.loads((folder / "summary.json").read_text()))
    args = summary["args"]
    last = summary["last"]
    if summary["epochs_done"] < args["epochs"]:
        found.unfinished.append((folder, summary["epochs_done"], args["epochs"]))
        return
    for name in ("top1", "top5"):
        percent(last[name])
    percent(summary["best"]["top1"])
    if type(args["seed"]) is not int or not isinstance(args["model"], str) or not isinstance(summary["labels"], dict):
        raise ValueError("summary.json: args or labels are not what a run writes")
    curve = {int(row["epoch"]): percent(float(row["val_top1"])) for row in rows if row["val_top1"]}
    if not math.isclose(curve[last["epoch"]], last["top1"], rel_tol=1e-5, abs_tol=1e-5):
        raise ValueError("summary.json and metrics.csv disagree about the last epoch's top-1")
    found.finished.append(FinishedRun(folder, summary, curve))


def read_metrics(path: Path) -> list[dict]:
    """Return the rows of a metrics.csv file as dicts of column -> text."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def percent(value: float) -> float:
    """Return `value`, an accuracy in percent, unchanged; raise ValueError if it is not between 0 and 100."""
    if not 0 <= value <= 100:
        raise ValueError(f"top-k {value} is not a percentage")
    return value


def record_of(output: Path) -> Path:
    """Return the path of the JSON file that records how `utils.report.random_images` drew the folder `output`."""
    return output.with_name(f"{output.name}.json")
