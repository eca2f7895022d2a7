"""Groups: runs that differ in nothing but the seed."""

import itertools
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from utils.labels.file_digests import NEW
from utils.report.formulas import Spread, paired, spread
from utils.report.runs import FinishedRun

# Arguments that cannot change a figure, or whose content is told apart by a digest.
NEUTRAL = frozenset(
    "seed side_by_side output_dir overwrite resume dry_run workers no_progress verify_labels "
    "train_dir val_dir fkd_path teacher_checkpoint teacher_weights "
    "wandb_project wandb_mode wandb_group wandb_tags".split()
)
LABEL_FACTS = "dialect", "epochs", "batch_size", "policy", "codec", "settings"  # how labels were made
REGIME_SETTINGS = (  # how a regime makes its labels and views, and what its loss reads
    "labels loss_type temperature ce_weight keep_topk mix_type mixup cutmix hflip min_scale_crops max_scale_crops "
    "fkd_seed reuse_labels teachers teacher_model teacher_stem"
).split()
REGIMES = "HL", "SL", "SL+KD"  # hard labels, stored soft labels, live teacher
STUDENT, IMAGES = ("model", "stem"), ("train_images", "images")  # settings that have a column of their own


def settings_of(run: FinishedRun) -> dict[str, str]:
    """Return everything that a run's figure depends on, the seed left out: name -> value as text."""
    settings = {name: value for name, value in run.args.items() if name not in NEUTRAL and value is not None}
    settings["images"] = run.summary.get("images", {}).get("digest") or run.args["train_dir"]
    settings |= run.summary.get("versions", {})
    settings |= {f"labels.{fact}": run.summary["labels"].get(fact) for fact in LABEL_FACTS}
    settings["git_commit"] = run.summary.get("git_commit")
    return {name: str(value) for name, value in settings.items()}


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
        apart: those of its settings in which other groups of its regime differ, as `name=value`.
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
        baseline: image set that comes last.

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
    groups.sort(key=lambda g: (students.index(g.student), REGIMES.index(g.regime), g.images == baseline, g.series))
    return groups, repeated


def image_names(runs: list[FinishedRun]) -> dict[str, str]:
    """Name every image set by as few of its folder's last names as tell it apart: digest -> name."""
    folders: dict[str, PurePath] = {}
    for run in runs:
        folders.setdefault(settings_of(run)["images"], PurePath(run.args["train_dir"]))
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
    others = [other for kind, other, _ in parts if kind == regime]
    apart = []
    for name in sorted(set().union(*others)):
        value = settings.get(name)
        rivals = others if name != "labels" else [o for o in others if o["images"] == settings["images"]]
        if name not in (*STUDENT, *IMAGES) and {o.get(name) for o in rivals} != {value}:
            apart.append(f"{name}={text_of(name, value or '–', seeds)}")
    run = next(iter(seeds.values()))
    stem = " (small stem)" if run.args.get("stem") == "small" else ""
    return Group(run.args["model"] + stem, regime, names[settings["images"]], settings, tuple(apart), seeds)


def text_of(name: str, value: str, seeds: dict[int, FinishedRun]) -> str:
    """How a table shows a setting: labels by their folder, digests and commits by their first letters."""
    if name == "labels":
        folder = PurePath(next(iter(seeds.values())).args.get("fkd_path") or "")
        return f"{folder.name} ({value.removeprefix(NEW)[:6]})"
    return value[:10] if name == "git_commit" or name.endswith("_images") else value


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
    """Compare every two groups that differ in images, regime, student or settings, and in nothing else of these."""
    implied = {
        "images": {*IMAGES, "labels"},
        "student": set(STUDENT),
        "regime": {*REGIME_SETTINGS, *(f"labels.{fact}" for fact in LABEL_FACTS)},
        "settings": set(),
    }
    found = []
    for ours, theirs in itertools.combinations(groups, 2):
        axes = [axis for axis in ("images", "regime", "student") if getattr(ours, axis) != getattr(theirs, axis)]
        if len(axes) > 1 or (axes != ["regime"] and axes and ours.apart != theirs.apart):
            continue
        axis = axes[0] if axes else "settings"
        also = [d for d in differences(ours, theirs) if d.partition(": ")[0] not in implied[axis]]
        found.append(Comparison(axis, ours, theirs, paired(ours.by_seed(), theirs.by_seed()), also))
    return found
