"""Groups: runs that differ in nothing but the seed."""

import itertools
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from utils.config import REGIME_SETTINGS
from utils.labels.file_digests import NEW
from utils.report.formulas import Spread, paired, spread
from utils.report.runs import FinishedRun
from utils.report.settings import LABEL_FACTS, VALIDATION, image_digest, settings_of
from utils.system.files import digest_of_text

REGIMES = "HL", "SL", "SL+KD"  # hard labels, stored soft labels, live teacher
STUDENT = "model", "stem"  # settings that have a column of their own, as the images
EVERYWHERE = *VALIDATION, "labels_accepted"  # settings that are named if any other group differs, of whatever regime


def regime_of(run: FinishedRun) -> str:
    """HL, SL or SL+KD."""
    if run.args.get("loss_type") == "ce":
        return "HL"
    return "SL+KD" if run.summary["labels"].get("dialect") == "live teacher" else "SL"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        student, regime, images: what the tables call it.
        settings: all that its runs have in common.
        apart: those of its settings in which other groups of its regime differ, as `name=value`; of validation sets,
            in which any other group differs; and `labels accepted`, if they were against the evidence.
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
        """One line that no other group has."""
        return ", ".join([self.student, self.regime, self.images, *self.apart])

    @property
    def folder(self) -> PurePath:
        """The folder of its training images, in which its first run found them."""
        return PurePath(next(iter(self.runs.values())).args["train_dir"])

    @property
    def validation(self) -> tuple[str | None, ...]:
        """What names its validation set: figures of different ones are not compared."""
        return tuple(self.settings.get(name) for name in VALIDATION)

    @property
    def accepted(self) -> str | None:
        """Why its labels seem wrong, though the user accepted them; None for others."""
        return self.settings.get("labels_accepted")

    @property
    def series(self) -> str:
        """Images, with what else tells the group apart: a colour of the figures."""
        return ", ".join([self.images, *self.apart])

    def by_seed(self, figure: str = "top1") -> dict[int, float]:
        """Seed -> figure of the last epoch, in percent."""
        return {seed: run.summary["last"][figure] for seed, run in self.runs.items()}

    def last(self, figure: str = "top1") -> Spread:
        """`Spread` of the last epoch's figure over seeds."""
        return spread(list(self.by_seed(figure).values()))

    def best(self) -> Spread:
        """`Spread` of each run's best top-1, which was picked on the validation set."""
        return spread([run.summary["best"]["top1"] for run in self.runs.values()])

    def hours(self) -> float | None:
        """Mean wall clock of a run; students that share a process share its time."""
        seconds = [(run.summary.get("seconds"), run.args.get("side_by_side") or 1) for run in self.runs.values()]
        shares = [whole / students / 3600 for whole, students in seconds if whole is not None]
        return spread(shares).mean if len(shares) == len(seconds) else None

    def mean(self, *keys: str) -> float | None:
        """Mean over runs of an item of summary.json; None where a run has none."""
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
        runs: of any settings.
        ignore: names of settings whose differences do not matter.
        baseline: name of the image set that comes last.

    Returns:
        (groups, ordered by student as found, regime and images; runs that repeat a seed of their group, and do
        not count).
    """
    found: dict[tuple, dict[int, FinishedRun]] = {}
    repeated = []
    for run in runs:
        settings = {name: value for name, value in settings_of(run).items() if name not in ignore}
        seeds = found.setdefault((regime_of(run), *sorted(settings.items())), {})
        if run.seed in seeds:
            repeated.append(run)
        else:
            seeds[run.seed] = run
    names = image_names(runs)
    parts = [(regime, dict(settings), seeds) for (regime, *settings), seeds in found.items()]
    groups = [named(part, parts, names) for part in parts]
    students = list(dict.fromkeys(group.student for group in groups))
    groups.sort(key=lambda g: (students.index(g.student), REGIMES.index(g.regime), is_called(g, baseline), g.series))
    return groups, repeated


def is_called(group: Group, name: str) -> bool:
    """Whether a group's images have that name: in the tables, or at the end of their folder's path."""
    parts = PurePath(name).parts
    return group.images == name or (bool(parts) and group.folder.parts[-len(parts) :] == parts)


def image_names(runs: list[FinishedRun]) -> dict[str, str]:
    """Name every image set by as few of its folder's last names as tell it apart: digest -> name."""
    folders: dict[str, PurePath] = {}
    for run in runs:
        folders.setdefault(image_digest(run), PurePath(run.args["train_dir"]))
    for depth in itertools.count(1):
        names = {digest: "/".join(folder.parts[-depth:]) for digest, folder in folders.items()}
        if len(set(names.values())) == len(names):
            return names
        if depth > max(len(folder.parts) for folder in folders.values()):  # one folder, whose content has changed
            return {digest: f"{name} ({digest[:8]})" for digest, name in names.items()}
    raise AssertionError("unreachable: the loop above ends by itself")


def named(part: tuple, parts: list[tuple], names: dict[str, str]) -> Group:
    """Return one part as a `Group`, which knows in what it differs from the others of its regime."""
    regime, settings, seeds = part
    everyone = [other for _, other, _ in parts]
    others = [other for kind, other, _ in parts if kind == regime]
    same_images = [other for other in others if other["images"] == settings["images"]]
    apart = []
    for name in sorted(set().union(*everyone)):
        value = settings.get(name)
        rivals = everyone if name in EVERYWHERE else same_images if name in ("labels", "train_images") else others
        differs = {other.get(name) for other in rivals} != {value}
        if name == "labels_accepted":
            several = len({other.get(name) for other in rivals} - {None}) > 1
            number = f" ({digest_of_text(value)[:6]})" if value and several else ""
            apart += [f"labels accepted{number}"] if value else []
        elif differs and name not in (*STUDENT, "images"):
            apart.append(f"{name}={text_of(name, value or '–', seeds)}")
    run = next(iter(seeds.values()))
    stem = " (small stem)" if run.args.get("stem") == "small" else ""
    return Group(run.args["model"] + stem, regime, names[settings["images"]], settings, tuple(apart), seeds)


def text_of(name: str, value: str, seeds: dict[int, FinishedRun]) -> str:
    """How a table shows a setting: labels and validation sets by their folder, digests by their first letters."""
    run = next(iter(seeds.values()))
    if name == "labels":
        return f"{PurePath(run.args.get('fkd_path') or '').name} ({value.removeprefix(NEW)[:6]})"
    if name in VALIDATION:
        digest = value.rpartition(":")[2][:6]
        return f"{PurePath(run.args.get('val_dir') or '').name} ({digest})"
    if name == "train_images":
        return value.rpartition(":")[2][:10]
    return value[:10] if name == "git_commit" else value


def differences(ours: Group, theirs: Group) -> list[str]:
    """Name every setting in which two groups differ: `name: value | value`."""
    names = sorted(ours.settings.keys() | theirs.settings.keys())
    pairs = [(name, ours.settings.get(name, "–"), theirs.settings.get(name, "–")) for name in names]
    return [f"{name}: {short(a)} | {short(b)}" for name, a, b in pairs if a != b]


def short(value: str) -> str:
    """A setting's value, cut where it is long."""
    return value if len(value) <= 40 else f"{value[:39]}…"


@dataclass(frozen=True)
class Comparison:
    """Two groups of which one thing is different on purpose.

    Attributes:
        axis: which: images, regime, student or settings.
        ours, theirs: the groups.
        difference: `Spread` of ours - theirs over common seeds, top-1 in percentage points; None without one.
        also: settings in which they differ beyond what the axis implies, named.
    """

    axis: str
    ours: Group
    theirs: Group
    difference: Spread | None
    also: list[str]


def comparisons(groups: list[Group]) -> list[Comparison]:
    """Compare every two groups that differ in images, regime, student or settings, and in nothing else of these.

    Only groups of the same validation set are compared.
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
            continue  # the difference would be that of the validation sets
        axes = [axis for axis in ("images", "regime", "student") if getattr(ours, axis) != getattr(theirs, axis)]
        if len(axes) > 1 or (axes != ["regime"] and axes and ours.apart != theirs.apart):
            continue
        axis = axes[0] if axes else "settings"
        also = [d for d in differences(ours, theirs) if d.partition(": ")[0] not in implied[axis]]
        found.append(Comparison(axis, ours, theirs, paired(ours.by_seed(), theirs.by_seed()), also))
    return found
