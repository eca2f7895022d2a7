"""Sort finished runs into groups and compare the groups. Runs of one group differ only in the seed.

Top-1 is in percent; differences are in percentage points. The metrics `improvement_over_random`, `hard_label_recovery`,
`label_robust_score` and `augmentation_robust_score` are from DD-Ranking (Li et al., 2025, arXiv 2505.13300).
docs/evidence.md states what each metric depends on, and which conclusions the metrics do not allow.
"""

import dataclasses
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, TypeVar

from utils.config import NEW_LABEL_DIGEST, OWN_SOFT_LABELS, REGIME_SETTINGS
from utils.report.runs import FinishedRun
from utils.report.settings import LABEL_FACTS, VALIDATION, values_of
from utils.report.words import (
    apart_in_words,
    changes_in_words,
    phrase,
    rank_of,
    short_paths,
    text_of,
    without_followers,
)
from utils.system.files import digest_of_text


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1) of n values; the deviation is None if n is 1."""

    mean: float
    deviation: float | None
    n: int

    @property
    def error(self) -> float | None:
        """Return the standard error of the mean; None if n is 1."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.n)


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation of `values`, which must not be empty."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Spread | None:
    """Return the `Spread` of the differences `ours - theirs` over common seeds; None if there are no common seeds.

    Two runs with the same seed start from the same initial weights, so the effect of the seed cancels out.

    Args:
        ours, theirs: seed -> top-1 in percent.
    """
    common = sorted(ours.keys() & theirs.keys())
    return spread([ours[seed] - theirs[seed] for seed in common]) if common else None


def improvement_over_random(distilled: float, random: float) -> float:
    """Return IOR, the improvement over random, in percentage points.

    Args:
        distilled: top-1 in percent of a student trained on the distilled images.
        random: top-1 in percent of a student trained on as many random real images, with the same kind of labels.
    """
    return distilled - random


def hard_label_recovery(full: float, distilled: float) -> float:
    """Return HLR, the hard-label recovery, in percentage points: `full` minus `distilled`.

    Smaller is better. Both students have the same architecture and were trained on hard labels.

    Args:
        full: top-1 in percent of a student trained on all real images.
        distilled: top-1 in percent of a student trained on the distilled images.
    """
    return full - distilled


def label_robust_score(improvement: float, recovery: float, weight: float = 0.5) -> float:
    """Return LRS, the label-robust score, in percent: 100 (e^alpha - 1/e) / (e - 1/e).

    Here alpha = (w IOR - (1 - w) HLR) / 100. LRS is 0 at alpha = -1, 26.9 at alpha = 0 and 100 at alpha = 1. For
    example, alpha is 0 if both IOR and HLR are 0.

    Args:
        improvement: IOR in percentage points.
        recovery: HLR in percentage points.
        weight: w, the weight of IOR.
    """
    return score_of((weight * improvement - (1 - weight) * recovery) / 100)


def augmentation_robust_score(augmented: float, whole: float, weight: float = 0.5) -> float:
    """Return ARS, the augmentation-robust score, in percent: 100 (e^beta - 1/e) / (e - 1/e).

    Here beta = (w IOR_augmented + (1 - w) IOR_whole) / 100. The code of DD-Ranking v0.2.0 leaves out the division by
    100, so its scores are other numbers.

    Args:
        augmented: IOR in percentage points of students trained on augmented images.
        whole: IOR in percentage points of students trained on whole images, without augmentation.
        weight: w, the weight of the augmented images; DD-Ranking calls it gamma.
    """
    return score_of((weight * augmented + (1 - weight) * whole) / 100)


def score_of(exponent: float) -> float:
    """Return 100 (e^x - 1/e) / (e - 1/e), which is 0 for the exponent x = -1 and 100 for x = 1."""
    return 100 * (math.exp(exponent) - math.exp(-1)) / (math.e - math.exp(-1))


REGIMES = {"HL": "hard labels", "SL": "soft labels", "SL+KD": "live teacher"}  # kind of labels -> words for it
STUDENT = "model", "stem"  # settings that the column `student` of the tables shows
# settings that are compared between all groups; other settings are compared only between groups of one regime
EVERYWHERE = *VALIDATION, "labels_accepted"


def regime_of(run: FinishedRun) -> str:
    """Return the kind of labels that a run was trained on: HL, SL or SL+KD, as explained at REGIMES."""
    if run.args.get("loss_type") == "ce" and run.args.get("image_labels") not in OWN_SOFT_LABELS:
        return "HL"
    return "SL+KD" if run.summary["labels"].get("dialect") == "live teacher" else "SL"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed.

    Attributes:
        student, regime, images: student, kind of labels (see REGIMES) and image set, as shown in tables.
        settings: setting -> value as text. All runs of the group have these values.
        values: setting -> value, for `utils.report.words`. Digests of data are replaced by names of their folders.
        apart: texts `name=value` for the settings that distinguish this group from others; see `settings_apart`.
        words: the same in words: `crops ≥ 0.5`. Groups of equal student, regime and images have different words.
        runs: seed -> run.
        tried: all groups of a search, this one included, with the text `name=value` of what was searched; see
            `best_of_search`. Empty if nothing was searched.
    """

    student: str
    regime: str
    images: str
    settings: dict[str, str]
    values: dict[str, Any]
    runs: dict[int, FinishedRun]
    apart: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    tried: "tuple[tuple[str, Group], ...]" = ()

    @property
    def name(self) -> str:
        """Return a unique name of the group, made of student, regime, images and distinguishing settings."""
        return ", ".join([self.student, self.regime_words, self.series])

    @property
    def regime_words(self) -> str:
        """Return the kind of labels in words."""
        return REGIMES[self.regime]

    @property
    def folder(self) -> PurePath:
        """Return the first run's folder of training images; other runs may have the same images in another folder."""
        return PurePath(next(iter(self.runs.values())).args["train_dir"])

    @property
    def validation(self) -> tuple[str | None, ...]:
        """Return the digests of the validation set. Only groups with equal digests are compared."""
        return tuple(self.settings.get(name) for name in VALIDATION)

    @property
    def accepted(self) -> str | None:
        """Return the faults of labels or teacher that --accept-labels tolerated, as text; None if there are none."""
        return self.settings.get("labels_accepted")

    @property
    def whole(self) -> bool:
        """Return whether the students saw whole images: --augment none, and no mixing, patches or RandAugment."""
        plain = {"augment": "none", "mix_type": None, "auto_augment": None, "shuffle_patches": "1", "factor_crop": "1"}
        return all(self.settings.get(name) == value for name, value in plain.items())

    @property
    def picked(self) -> tuple[str, ...]:
        """Return a text that states the value that a search picked, in a tuple; empty if nothing was searched."""
        return tuple(f"{text}, the best of {len(self.tried)}" for text, group in self.tried if group.runs is self.runs)

    @property
    def picked_words(self) -> tuple[str, ...]:
        """Return `picked` in words."""
        best = [group for _, group in self.tried if group.runs is self.runs]
        return tuple(f"{self.searched_words(group)} (the best of {len(self.tried)})" for group in best)

    def searched_words(self, group: "Group") -> str:
        """Return the values of the searched settings of `group`, one of `tried`, in words."""
        names = sorted(group.settings.keys() - self.settings.keys())
        return ", ".join(without_followers({name: phrase(name, text_of(group.values[name])) for name in names}))

    @property
    def series(self) -> str:
        """Return images and distinguishing settings in words; groups with the same text share a colour in figures."""
        return ", ".join([self.images, *self.words])

    @property
    def chance(self) -> float | None:
        """Return the top-1 in percent of a random guess among the classes; None if their number is unknown."""
        run = next(iter(self.runs.values()))
        known = (run.summary.get("validation", {}).get("classes"), self.settings.get("labels.num_classes"))
        number = next((int(count) for count in known if count), 0)
        return 100 / number if number > 0 else None

    def by_seed(self, figure: str = "top1") -> dict[int, float]:
        """Return a dict from seed to accuracy in percent after the last epoch; `figure` is top1 or top5."""
        return {seed: run.summary["last"][figure] for seed, run in self.runs.items()}

    def last(self, figure: str = "top1") -> Spread:
        """Return mean and deviation of `by_seed(figure)`, the accuracies in percent after the last epoch."""
        return spread(list(self.by_seed(figure).values()))

    def best(self) -> Spread:
        """Return mean and deviation of the runs' best validation top-1, in percent."""
        return spread([run.summary["best"]["top1"] for run in self.runs.values()])

    @property
    def evaluated_from(self) -> str | None:
        """Return the values of --eval-from of the runs as text; None if all evaluations of every run count."""
        epochs = sorted({run.args.get("eval_from") or 0 for run in self.runs.values()})
        return " or ".join(map(str, epochs)) if any(epochs) else None

    @property
    def validated_on(self) -> str | None:
        """Return the values of --val-ipc of the runs as text; None if a run validated on all images of each class."""
        counts = {run.args.get("val_ipc") or 0 for run in self.runs.values()}
        return None if 0 in counts else " or ".join(map(str, sorted(counts)))

    def hours(self) -> float | None:
        """Return the mean wall-clock time of a run in hours; None if a run did not record it.

        If a process trained several students side by side, its time is divided by their number.
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
        """Average a number in summary.json over the runs; return None if a run lacks the number.

        `keys` are the nested keys of the number: `mean("labels", "bytes")` reads `summary["labels"]["bytes"]`.
        """
        values = []
        for run in self.runs.values():
            value: Any = run.summary
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            values.append(value)
        return None if None in values else spread(values).mean


def group_runs(
    runs: list[FinishedRun],
    ignore: frozenset[str] = frozenset(),
    baseline: str = "random",
    searched: frozenset[str] = frozenset(),
    beside: Sequence[FinishedRun] = (),
) -> tuple[list[Group], list[FinishedRun]]:
    """Divide finished runs into groups whose runs differ only in the seed and in settings named in `ignore`.

    Args:
        runs: finished runs with any settings.
        ignore: names of settings that are not compared.
        baseline: name of an image set. Groups of this set come last among the groups with the same student and regime.
        searched: names of settings whose best value is picked, by `best_of_search`.
        beside: further runs, which are not grouped, but whose data must not have the same names.

    Returns:
        (groups, repeated runs). Groups are ordered by student (in the order of `runs`), then regime, then images. If
        several runs of a group have the same seed, the group gets the first run, and the others are repeated runs.
    """
    found: dict[tuple, dict[int, FinishedRun]] = {}  # (regime, (setting, value), …) -> seed -> run
    values: dict[tuple, dict[str, Any]] = {}  # the same keys -> setting -> value
    repeated = []
    for run in runs:
        known = {name: value for name, value in values_of(run).items() if name not in ignore}
        key = (regime_of(run), *sorted((name, str(value)) for name, value in known.items()))
        seeds = found.setdefault(key, {})
        values.setdefault(key, known)
        if run.seed in seeds:
            repeated.append(run)
        else:
            seeds[run.seed] = run
    names = folder_names([*runs, *beside])
    plain = []
    for (regime, *pairs), seeds in found.items():
        settings = dict(pairs)
        shown = {
            name: names[name].get(value, value) if name in names else value
            for name, value in values[(regime, *pairs)].items()
        }
        student = student_name(next(iter(seeds.values())))
        plain.append(Group(student, regime, shown["images"], settings, shown, seeds))
    groups = best_of_search(plain, searched)
    groups = name_groups(groups)
    students = list(dict.fromkeys(group.student for group in groups))
    order = list(REGIMES)
    groups.sort(key=lambda g: (students.index(g.student), order.index(g.regime), is_called(g, baseline), g.series))
    return groups, repeated


def best_of_search(groups: list[Group], searched: frozenset[str]) -> list[Group]:
    """Keep, of all groups that differ only in the settings `searched`, the group with the highest mean top-1.

    A group with fewer runs than another one is not picked. The kept groups lose the settings `searched`, so that they
    can be compared with groups for which the search picked another value.
    """
    rivals: dict[tuple, list[Group]] = {}
    for group in groups:
        rest = tuple(sorted((name, value) for name, value in group.settings.items() if name not in searched))
        rivals.setdefault((group.regime, rest), []).append(group)
    kept = []
    for (_, rest), tried in rivals.items():
        best = max(tried, key=lambda group: (len(group.runs), group.last().mean))
        texts = [
            " ".join(f"{name}={value}" for name, value in sorted(group.settings.items()) if name in searched)
            for group in tried
        ]
        search = tuple(zip(texts, tried, strict=True)) if len(tried) > 1 else ()
        kept.append(dataclasses.replace(best, settings=dict(rest), tried=search))
    return kept


def is_called(group: Group, name: str) -> bool:
    """Return whether `name` is the group's image set: its name in tables, or the end of its folder's path."""
    parts = PurePath(name).parts
    return group.images == name or (bool(parts) and group.folder.parts[-len(parts) :] == parts)


def folder_names(runs: list[FinishedRun]) -> dict[str, dict[str, str]]:
    """Choose a short unique name for each image set, label set and validation set of `runs`, from its folder's path.

    Returns:
        setting (`images`, `labels` and those in VALIDATION) -> its value, mostly a digest -> name.
    """
    paths: dict[str, dict[str, PurePath]] = {name: {} for name in ("images", "labels", *VALIDATION)}
    for run in runs:
        values = values_of(run)
        for name in paths:
            folder = run.args.get({"images": "train_dir", "labels": "fkd_path"}.get(name, "val_dir"))
            if name in values:
                digest = str(values[name]).removeprefix(NEW_LABEL_DIGEST)[:10]
                paths[name].setdefault(values[name], PurePath(folder or digest))
    return {name: short_paths(known) for name, known in paths.items()}


def student_name(run: FinishedRun) -> str:
    """Return the name of a run's student as shown in tables: the model, and a note if it has the small stem."""
    return run.args["model"] + (" (small stem)" if run.args.get("stem") == "small" else "")


def settings_apart(group: Group, groups: list[Group]) -> dict[str, list[Group]]:
    """Return the settings that distinguish `group` from other `groups`: setting -> the groups it is compared with.

    Each setting is compared between `group` and the other groups of the same regime. There are two exceptions. Settings
    in EVERYWHERE are compared between all groups. The settings `labels` and `train_images` are compared only between
    groups that have the same regime and the same images. `labels_accepted` is named if --accept-labels tolerated a
    fault of the labels or the teacher, also if all groups have it.
    """
    same_regime = [other for other in groups if other.regime == group.regime]
    same_images = [other for other in same_regime if other.settings["images"] == group.settings["images"]]
    apart = {}
    for name in sorted(set().union(*(other.settings for other in groups)) - {*STUDENT, "images"}):
        value = group.settings.get(name)
        if name in EVERYWHERE:
            rivals = groups
        elif name in ("labels", "train_images"):  # these depend on the images
            rivals = same_images
        else:
            rivals = same_regime
        differs = {other.settings.get(name) for other in rivals} != {value}
        if value if name == "labels_accepted" else differs:
            apart[name] = rivals
    return apart


def name_groups(groups: list[Group]) -> list[Group]:
    """Fill in `apart` and `words` of groups, so that groups of equal student, regime and images have different words.

    Settings that follow from others are left out of `words`, unless the words would be the same without them. If they
    are the same even so, for instance since long values are cut, the groups are numbered.
    """
    named = []
    whole = []
    for group in groups:
        texts, parts = texts_apart(group, groups)
        named.append(dataclasses.replace(group, apart=texts, words=tuple(without_followers(parts))))
        whole.append(tuple(parts[part] for part in sorted(parts, key=rank_of)))
    for place in alike(named):
        named[place] = dataclasses.replace(named[place], words=whole[place])
    for number, place in enumerate(alike(named), 1):
        named[place] = dataclasses.replace(named[place], words=(*named[place].words, f"number {number}"))
    return named


def alike(groups: list[Group]) -> list[int]:
    """Return the places of the groups whose name another group has as well."""
    count = Counter(group.name for group in groups)
    return [place for place, group in enumerate(groups) if count[group.name] > 1]


def texts_apart(group: Group, groups: list[Group]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return texts `name=value` and phrases, part -> phrase, for what distinguishes `group` from the other `groups`."""
    run = next(iter(group.runs.values()))
    texts: list[str] = []
    parts: dict[str, str] = {}
    for name, rivals in settings_apart(group, groups).items():
        value = group.settings.get(name)
        if name == "labels_accepted" and value:
            several = len({other.settings.get(name) for other in rivals} - {None}) > 1
            number = f" ({digest_of_text(value)[:6]})" if several else ""
            texts.append(f"labels accepted{number}")
            parts[name] = texts[-1]
        else:
            texts.append(f"{name}={machine_text(name, value or '–', run)}")
            parts |= apart_in_words(name, group.values.get(name), [other.values.get(name) for other in rivals])
    return tuple(texts), parts


def machine_text(name: str, value: str, run: FinishedRun) -> str:
    """Return the value of the setting `name` as written to CSV files.

    Labels and image sets are written as the name of their folder and the start of their digest. The digest of the
    classes of the training images and the git commit are shortened. Other values are unchanged.
    """
    if name == "images" and value != run.args["train_dir"]:
        return f"{PurePath(run.args['train_dir']).name} ({value.rpartition(':')[2][:6]})"
    if name == "labels":
        return f"{PurePath(run.args.get('fkd_path') or '').name} ({value.removeprefix(NEW_LABEL_DIGEST)[:6]})"
    if name in VALIDATION:
        digest = value.rpartition(":")[2][:6]
        return f"{PurePath(run.args.get('val_dir') or '').name} ({digest})"
    if name == "train_images":
        return value.rpartition(":")[2][:10]
    if name == "git_commit":
        return value[:10] + ("-dirty" if value.endswith("-dirty") else "")
    return value


def differences(ours: Group, theirs: Group) -> list[str]:
    """Return the names of the settings in which two groups differ."""
    names = sorted(ours.settings.keys() | theirs.settings.keys())
    return [name for name in names if ours.settings.get(name) != theirs.settings.get(name)]


def short(value: str) -> str:
    """Cut a setting's value to at most 40 characters."""
    return value if len(value) <= 40 else f"{value[:39]}…"


@dataclass(frozen=True)
class Pair:
    """Two groups that are compared.

    Attributes:
        ours, theirs: the two groups.
        also: names of the settings in which the groups differ. Settings that the comparison is about are left out. For
            example, the labels are left out if two image sets are compared.
    """

    ours: Group
    theirs: Group
    also: list[str]

    @property
    def also_texts(self) -> list[str]:
        """Return a text `name: our value | their value` for each setting in `also`, for CSV files."""
        found = []
        for name in self.also:
            texts = []
            for group in (self.ours, self.theirs):
                value, run = group.settings.get(name), next(iter(group.runs.values()))
                texts.append(short(machine_text(name, value, run) if value else "–"))
            found.append(f"{name}: {texts[0]} | {texts[1]}")
        return found

    @property
    def also_words(self) -> list[str]:
        """Return a phrase `smallest crop 0.08 against 0.5` for each setting in `also`, or for each part of it."""
        return changes_in_words(self.also, self.ours.values, self.theirs.values)


AnyPair = TypeVar("AnyPair", bound=Pair)


def closest(pairs: list[AnyPair], side: Callable[[Group], object]) -> list[AnyPair]:
    """Return the pairs whose groups differ in the fewest settings.

    A pair is left out if one of its groups differs in fewer settings from another group of the same side.

    Args:
        pairs: any pairs of groups.
        side: function group -> what all groups of one side have in common, for example the image set.
    """
    fewest: dict[tuple[int, object], int] = {}
    for pair in pairs:
        for key in ((id(pair.ours), side(pair.theirs)), (id(pair.theirs), side(pair.ours))):
            fewest[key] = min(fewest.get(key, len(pair.also)), len(pair.also))
    return [
        pair
        for pair in pairs
        if len(pair.also) == fewest[id(pair.ours), side(pair.theirs)] == fewest[id(pair.theirs), side(pair.ours)]
    ]


@dataclass(frozen=True)
class Comparison(Pair):
    """Comparison of two groups that differ along one axis: in images, regime, student or settings.

    Attributes:
        axis: `images`, `regime`, `student` or `settings`.
        difference: `Spread` of the difference of top-1, ours - theirs, over common seeds, in percentage points; None
            if there are no common seeds.
    """

    axis: str
    difference: Spread | None


def comparisons(groups: list[Group]) -> list[Comparison]:
    """Compare all pairs of groups that differ along exactly one axis and have the same validation set.

    If the axis is images or student, a group is compared with those groups of another image set, or of another student,
    that differ from it in the fewest settings. Usually these are the groups with the same settings.
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
            continue  # top-1 on different validation sets cannot be compared
        axes = [axis for axis in ("images", "regime", "student") if getattr(ours, axis) != getattr(theirs, axis)]
        if len(axes) > 1:
            continue
        axis = axes[0] if axes else "settings"
        whole = "augment" if "none" in (ours.settings.get("augment"), theirs.settings.get("augment")) else None
        names = implied[axis] - {whole}  # no regime implies whole images
        also = [name for name in differences(ours, theirs) if name not in names]
        found.append(Comparison(ours, theirs, also, axis, paired(ours.by_seed(), theirs.by_seed())))
    near = {id(pair) for pair in closest([c for c in found if c.axis in ("images", "student")], side_of)}
    return [c for c in found if c.axis not in ("images", "student") or id(c) in near]


def side_of(group: Group) -> tuple[str, str]:
    """Return student and image set of a group."""
    return group.student, group.images
