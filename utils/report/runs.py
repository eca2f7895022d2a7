"""Run folders in: what finished, what did not, what cannot be read."""

import csv
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.system.errors import InputError
from utils.system.text import printable_all, shorten

MARKS = ("summary.json", "args.json")  # either makes a folder a run


@dataclass(frozen=True)
class FinishedRun:
    """One run that reached its last epoch.

    Attributes:
        path: its folder.
        summary: summary.json.
        curve: epoch -> top-1 on the validation set in percent, where it was evaluated.
    """

    path: Path
    summary: dict
    curve: dict[int, float]

    @property
    def args(self) -> dict:
        """Its settings."""
        return self.summary["args"]

    @property
    def seed(self) -> int:
        """Seed of the student's initial weights."""
        return self.args["seed"]


@dataclass(frozen=True)
class FoundRuns:
    """What was found below some folders.

    Attributes:
        finished: runs, in the order of their paths.
        unfinished: (folder, epochs done, epochs to do).
        damaged: (folder, why it cannot be read).
    """

    finished: list[FinishedRun]
    unfinished: list[tuple[Path, int, int]]
    damaged: list[tuple[Path, str]]


def find_runs(paths: Sequence[str]) -> FoundRuns:
    """Read every run in and below `paths`; a folder that cannot be read spoils no other.

    Raises:
        InputError: a path is no folder, or holds no run.
    """
    found = FoundRuns([], [], [])
    for folder in sorted({folder for path in paths for folder in run_folders(path)}):
        try:
            read_run(folder, found)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            found.damaged.append((folder, shorten(reason, 150)))
    return found


def run_folders(path: str) -> list[Path]:
    """Return every folder in and below `path` that a run has written to."""
    if not os.path.isdir(path):
        raise InputError(f"RUN {path} is not a folder; give the --output-dir of a run, or a folder of such folders")
    folders = [Path(folder) for folder, _, names in os.walk(path) if set(MARKS) & set(names)]
    if not folders:
        raise InputError(f"RUN {path} holds no run (no {' or '.join(MARKS)}); give the --output-dir of one, or several")
    return folders


def read_run(folder: Path, found: FoundRuns) -> None:
    """Read one run folder and put it where it belongs.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is damaged, or says what cannot be.
    """
    rows = read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").exists() else []
    if not (folder / "summary.json").exists():
        found.unfinished.append((folder, len(rows), json.loads((folder / "args.json").read_text())["epochs"]))
        return
    summary = printable_all(json.loads((folder / "summary.json").read_text()))
    args, last = summary["args"], summary["last"]
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
    """Return the rows of metrics.csv."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def percent(value: float) -> float:
    """Return a top-k figure, or raise ValueError where it can be none."""
    if not 0 <= value <= 100:
        raise ValueError(f"top-k {value} is no percentage")
    return value
