"""Sort finished runs into groups, in which runs differ only in the seed, and compare the groups.

Figures are top-1 in percent, differences in percentage points. Sources: DD-Ranking (Li et al., 2025,
arXiv 2505.13300) for `improvement_over_random`, `hard_label_recovery` and `label_robust_score`. docs/evidence.md
says what each of these metrics depends on and which conclusions it does not allow.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from utils.config import REGIME_SETTINGS
from utils.labels.digests import NEW
from utils.report.runs import FinishedRun
from utils.report.settings import LABEL_FACTS, VALIDATION, image_digest, settings_of
from utils.system.files import digest_of_text


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1) of n values; the deviation is None for one value."""

    mean: float
    deviation: float | None
    n: int

    @property
    def error(self) -> float | None:
        """Return the standard error of the mean; None for one value."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.n)


def spread(values: Sequence[float]) -> Spread:
    """Return the `Spread` of `values`, which must not be empty."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Spread | None:
    """Return the `Spread` of `ours - theirs` over common seeds; None without common seeds.

    The same seed gives both students the same initial weights, so the effect of the seed cancels out.

    Args:
        ours, theirs: seed -> top-1 in percent.
    """
    common = sorted(ours.keys() & theirs.keys())
    return spread([ours[seed] - theirs[seed] for seed in common]) if common else None


def improvement_over_random(distilled: float, random: float) -> float:
    """Return IOR: top-1 with the distilled images minus top-1 with as many random real images, in the same regime."""
    return distilled - random


def hard_label_recovery(full: float, distilled: float) -> float:
    """Return HLR: top-1 with all real images minus top-1 with the distilled ones, same student, both with hard labels.

    Smaller is better: HLR is the remaining gap to real images.
    """
    return full - distilled


def label_robust_score(improvement: float, recovery: float, weight: float = 0.5) -> float:
    """Return LRS in percent: (e^alpha - 1/e) / (e - 1/e) with alpha = w IOR - (1 - w) HLR, IOR and HLR as fractions.

    LRS is 0 at alpha = -1 and 100 at alpha = 1. LRS is 26.9 at alpha = 0, for instance if the images are as good as
    random images in the same regime, and as good as all real images with hard labels.
    """
    alpha = (weight * improvement - (1 - weight) * recovery) / 100
    return 100 * (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))


REGIMES = "HL", "SL", "SL+KD"  # hard labels, stored soft labels, live teacher
STUDENT = "model", "stem"  # settings that the column `student` of the tables shows
EVERYWHERE = *VALIDATION, "labels_accepted"  # settings that are compared across regimes, not only within a regime


def regime_of(run: FinishedRun) -> str:
    """Return the regime of a run: HL, SL or SL+KD, as in REGIMES."""
    if run.args.get("loss_type") == "ce":
        return "HL"
    return "SL+KD" if run.summary["labels"].get("dialect") == "live teacher" else "SL"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        student, regime, images: names, as the tables show them.
        settings: setting -> value as text, equal in all runs of the group.
        apart: settings, as `name=value`, in which another group of the same regime differs; validation sets are
            compared across regimes. `labels accepted` is added if the labels seemed wrong.
        runs: seed -> run.
    """

    student: str
    regime: str
    images: str
    settings: dict[str, str]
    apart: tuple[str, ...]
    runs: dict[int, FinishedRun]

    @property
    def name(self) -> str:
        """Return a unique name of the group, in one line."""
        return ", ".join([self.student, self.regime, self.images, *self.apart])

    @property
    def folder(self) -> PurePath:
        """Return the folder of the training images of the first run."""
        return PurePath(next(iter(self.runs.values())).args["train_dir"])

    @property
    def validation(self) -> tuple[str | None, ...]:
        """Return the digests of the validation set; groups with different validation sets are not compared."""
        return tuple(self.settings.get(name) for name in VALIDATION)

    @property
    def accepted(self) -> str | None:
        """Return the faults of the labels that --accept-labels tolerated; None without faults."""
        return self.settings.get("labels_accepted")

    @property
    def series(self) -> str:
        """Return images and distinguishing settings as text; groups with equal text share a colour in figures."""
        return ", ".join([self.images, *self.apart])

    def by_seed(self, figure: str = "top1") -> dict[int, float]:
        """Return seed -> `figure` (top1 or top5, in percent) of the last epoch."""
        return {seed: run.summary["last"][figure] for seed, run in self.runs.items()}

    def last(self, figure: str = "top1") -> Spread:
        """Return the `Spread` over seeds of `figure` (top1 or top5, in percent) of the last epoch."""
        return spread(list(self.by_seed(figure).values()))

    def best(self) -> Spread:
        """Return the `Spread` over seeds of the best top-1, which each run picked on the validation set."""
        return spread([run.summary["best"]["top1"] for run in self.runs.values()])

    def hours(self) -> float | None:
        """Return the mean wall clock of a run in hours; None if a run lacks it.

        The time of a process is divided by the number of students that it trained side by side.
        """
        hours = []
        for run in self.runs.values():
            seconds = run.summary.get("seconds")
            if seconds is None:
                return None
            students = run.args.get("side_by_side") or 1
            hours.append(seconds / students / 3600)
        return spread(hours).mean

    def mean(self, *keys: str) -> float | None:
        """Return the mean over runs of the item of summary.json at the path `keys`; None if a run lacks it."""
        values = []
        for run in self.runs.values():
            value: Any = run.summary
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            values.append(value)
        return None if None in values else spread(values).mean


def group_runs(
    runs: list[FinishedRun], ignore: frozenset[str] = frozenset(), baseline: str = "random"
) -> tuple[list[Group], list[FinishedRun]]:
    """Sort finished runs into groups.

    Args:
        runs: runs of any settings.
        ignore: settings in which runs of one group may differ.
        baseline: name of the image set that comes last.

    Returns:
        (groups, repeated runs). Groups are ordered by student (as found in `runs`), then regime, then images. A
        repeated run has a seed that its group already contains, and is in no group.
    """
    found: dict[tuple, dict[int, FinishedRun]] = {}  # (regime, *(setting, value)) -> seed -> run
    repeated = []
    for run in runs:
        settings = {name: value for name, value in settings_of(run).items() if name not in ignore}
        seeds = found.setdefault((regime_of(run), *sorted(settings.items())), {})
        if run.seed in seeds:
            repeated.append(run)
        else:
            seeds[run.seed] = run
    names = image_names(runs)
    plain = []
    for (regime, *pairs), seeds in found.items():
        settings = dict(pairs)
        student = student_name(next(iter(seeds.values())))
        plain.append(Group(student, regime, names[settings["images"]], settings, (), seeds))
    groups = [dataclasses.replace(group, apart=settings_apart(group, plain)) for group in plain]
    students = list(dict.fromkeys(group.student for group in groups))
    groups.sort(key=lambda g: (students.index(g.student), REGIMES.index(g.regime), is_called(g, baseline), g.series))
    return groups, repeated


def is_called(group: Group, name: str) -> bool:
    """Return whether a group's images are called `name` in the tables, or the path of the image folder ends with it."""
    parts = PurePath(name).parts
    return group.images == name or (bool(parts) and group.folder.parts[-len(parts) :] == parts)


def image_names(runs: list[FinishedRun]) -> dict[str, str]:
    """Return digest -> name of every image set: the last parts of the folder's path, as few as make names unique."""
    folders: dict[str, PurePath] = {}
    for run in runs:
        folders.setdefault(image_digest(run), PurePath(run.args["train_dir"]))
    for depth in itertools.count(1):
        names = {digest: "/".join(folder.parts[-depth:]) for digest, folder in folders.items()}
        if len(set(names.values())) == len(names):
            return names
        if depth > max(len(folder.parts) for folder in folders.values()):  # one folder had different contents
            return {digest: f"{name} ({digest[:8]})" for digest, name in names.items()}
    raise AssertionError("unreachable: the loop above ends by itself")


def student_name(run: FinishedRun) -> str:
    """Return the student's name, as the tables show it."""
    return run.args["model"] + (" (small stem)" if run.args.get("stem") == "small" else "")


def settings_apart(group: Group, groups: list[Group]) -> tuple[str, ...]:
    """Return `Group.apart` of `group`, which is one of `groups`."""
    run = next(iter(group.runs.values()))
    everyone = [other.settings for other in groups]
    same_regime = [other.settings for other in groups if other.regime == group.regime]
    same_images = [settings for settings in same_regime if settings["images"] == group.settings["images"]]
    apart = []
    for name in sorted(set().union(*everyone)):
        value = group.settings.get(name)
        if name in EVERYWHERE:
            rivals = everyone
        elif name in ("labels", "train_images"):  # these settings differ whenever the images do
            rivals = same_images
        else:
            rivals = same_regime
        differs = {other.get(name) for other in rivals} != {value}
        if name == "labels_accepted":
            several = len({other.get(name) for other in rivals} - {None}) > 1
            number = f" ({digest_of_text(value)[:6]})" if value and several else ""
            apart += [f"labels accepted{number}"] if value else []
        elif differs and name not in (*STUDENT, "images"):
            apart.append(f"{name}={text_of(name, value or '–', run)}")
    return tuple(apart)


def text_of(name: str, value: str, run: FinishedRun) -> str:
    """Return a setting's value as tables show it: folder names of labels and validation sets, short digests."""
    if name == "labels":
        return f"{PurePath(run.args.get('fkd_path') or '').name} ({value.removeprefix(NEW)[:6]})"
    if name in VALIDATION:
        digest = value.rpartition(":")[2][:6]
        return f"{PurePath(run.args.get('val_dir') or '').name} ({digest})"
    if name == "train_images":
        return value.rpartition(":")[2][:10]
    return value[:10] if name == "git_commit" else value


def differences(ours: Group, theirs: Group) -> list[str]:
    """Return every setting in which two groups differ, as `name: value | value`."""
    names = sorted(ours.settings.keys() | theirs.settings.keys())
    pairs = [(name, ours.settings.get(name, "–"), theirs.settings.get(name, "–")) for name in names]
    return [f"{name}: {short(a)} | {short(b)}" for name, a, b in pairs if a != b]


def short(value: str) -> str:
    """Cut a setting's value to at most 40 characters."""
    return value if len(value) <= 40 else f"{value[:39]}…"


@dataclass(frozen=True)
class Comparison:
    """Two groups that differ along one axis.

    Attributes:
        axis: images, regime, student or settings.
        ours, theirs: the groups.
        difference: `Spread` of ours - theirs over common seeds, top-1 in percentage points; None without common seeds.
        also: other settings in which the groups differ, as from `differences`, without settings that the axis implies.
    """

    axis: str
    ours: Group
    theirs: Group
    difference: Spread | None
    also: list[str]


def comparisons(groups: list[Group]) -> list[Comparison]:
    """Compare all pairs of groups that differ along exactly one axis and share the validation set.

    Along the axes images and student, `Group.apart` must be equal as well.
    """
    implied = {
        "images": {"images", "train_images", "labels"},
        "student": set(STUDENT),
        "regime": {*REGIME_SETTINGS, *(f"labels.{fact}" for fact in LABEL_FACTS)},
        "settings": set(),
    }
    found = []
    for ours, theirs in itertools.combinations(groups, 2):
        if ours.validation != theirs.validation:
            continue  # the difference could come from the validation sets
        axes = [axis for axis in ("images", "regime", "student") if getattr(ours, axis) != getattr(theirs, axis)]
        if len(axes) > 1 or (axes != ["regime"] and axes and ours.apart != theirs.apart):
            continue
        axis = axes[0] if axes else "settings"
        also = [d for d in differences(ours, theirs) if d.partition(": ")[0] not in implied[axis]]
        found.append(Comparison(axis, ours, theirs, paired(ours.by_seed(), theirs.by_seed()), also))
    return found
