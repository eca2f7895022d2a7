"""Compare two folders of runs: say for each student in a sentence which folder is better, if the runs show it.

python -m utils.report --compare save/a save/b
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from utils.report.groups import Group, Pair, closest, differences, group_runs
from utils.report.runs import FoundRuns, find_runs
from utils.report.significance import LEVEL, Difference, compare_seeds, holm, seeds_needed
from utils.report.tables import NONE, Table, counted, interval_text, with_deviation
from utils.report.words import changes_in_words, short_paths
from utils.system.errors import InputError, listing

ENOUGH = 3  # seeds of each folder, of which an interval is not yet as wide as with two
AGAINST = " against "  # between two values
LONG = 5  # settings that a sentence names; of more, it states the number
COLUMNS = (
    "name student regime images first second n_first n_second paired top1_first top1_second difference low high p "
    "p_holm better seeds_needed points differ_in"
).split()


@dataclass(frozen=True)
class Verdict(Pair):
    """Comparison of a group of the first folder, `ours`, with a group of the second folder, `theirs`.

    Attributes:
        difference: second minus first.
        p: p-value, corrected by Holm's method for all comparisons of the command; None if the runs are too few or have
            no spread.
        number: number of comparisons that were corrected for.
    """

    difference: Difference
    p: float | None
    number: int

    @property
    def shown(self) -> bool:
        """Return whether the groups are shown to differ."""
        return self.p is not None and self.p < LEVEL

    @property
    def missing(self) -> tuple[int, float] | None:
        """Return (number of seeds, points): so many seeds would show a difference of so many percentage points.

        The points are 1, 0.5, 0.2, 0.1 and so on: the first that more seeds than those of these runs would show. None
        if the runs are too few or have no spread.
        """
        if self.p is None:
            return None
        size = 1.0
        while True:
            for points in (size, size / 2, size / 5):
                seeds = seeds_needed(self.difference, points)
                if seeds > max(self.difference.seeds):
                    return seeds, points
            size /= 10


@dataclass(frozen=True)
class Answer:
    """Result of a comparison of two folders.

    Attributes:
        first, second: the folders, as typed.
        names: short names of both, which tables and sentences use.
        verdicts: comparisons of groups.
        left_out: sentences on runs that are part of no comparison.
    """

    first: str
    second: str
    names: tuple[str, str]
    verdicts: list[Verdict]
    left_out: list[str]


def compare_folders(
    first: str, second: str, ignore: frozenset[str] = frozenset(), searched: frozenset[str] = frozenset()
) -> Answer:
    """Compare the runs in two folders.

    Runs are averaged over seeds in groups, as in a report. If one folder has only one group for a student, it is
    compared with all groups of this student in the other folder; otherwise each group is compared with the group that
    differs in the fewest settings. If the folders have no student in common, different students are compared.

    Args:
        first, second: folders of runs.
        ignore: names of settings that are not compared.
        searched: names of settings whose best value is picked.

    Raises:
        InputError: a folder has no finished run, both have a run in common, or the validation sets differ.
    """
    found = [find_runs([folder], flag="--compare") for folder in (first, second)]
    both = {run.path.resolve() for run in found[0].finished} & {run.path.resolve() for run in found[1].finished}
    if both:
        raise InputError(f"--compare {first} {second}: both hold the run {min(both)}; give folders without common runs")
    for folder, runs in zip((first, second), found, strict=True):
        refuse_empty(folder, runs)
    short = short_paths({folder: PurePath(os.path.abspath(folder)) for folder in (first, second)})
    names = (short[first], short[second])
    left_out = []
    sides = []
    for name, runs, other in zip(names, found, reversed(found), strict=True):
        groups, repeated = group_runs(runs.finished, ignore, searched=searched, beside=other.finished)
        sides.append(groups)
        counts = {"unfinished": len(runs.unfinished), "damaged": len(runs.damaged), "repeated": len(repeated)}
        left_out += [
            f"{name}: {count} {kind} {'run' if count == 1 else 'runs'} left out"
            for kind, count in counts.items()
            if count
        ]
    pairs = pairs_of(*sides)
    if not pairs:
        validations = [listing(dict.fromkeys(map(validation_of, side))) for side in sides]
        raise InputError(
            f"--compare: {first} was validated on {validations[0]}, {second} on {validations[1]}, and top-1 on "
            "different images cannot be compared; validate both on the same images"
        )
    for groups, (name, partner) in zip(sides, (names, names[::-1]), strict=True):
        compared = {id(group) for pair in pairs for group in (pair.ours, pair.theirs)}
        left_out += [
            f"{group.name} in {name} has no counterpart in {partner}" for group in groups if id(group) not in compared
        ]
    return Answer(first, second, names, decide(pairs), left_out)


def refuse_empty(folder: str, runs: FoundRuns) -> None:
    """Raise InputError if a folder has no finished run."""
    if not runs.finished:
        raise InputError(
            f"--compare {folder} holds no finished run ({len(runs.unfinished)} unfinished, {len(runs.damaged)} "
            "damaged); let a run finish, or give another folder"
        )


def validation_of(group: Group) -> str:
    """Return the folder of a group's validation images and the start of their digest, as text."""
    digest = next((value.rpartition(":")[2][:6] for value in group.validation if value), "unknown")
    return f"{next(iter(group.runs.values())).args.get('val_dir')} ({digest})"


def pairs_of(first: list[Group], second: list[Group]) -> list[Pair]:
    """Return the pairs of groups that `compare_folders` compares; all have the same validation set."""
    common = {group.student for group in first} & {group.student for group in second}
    students: list[set[str]] = [{student} for student in sorted(common)]
    pairs = []
    for some in students or [{group.student for group in (*first, *second)}]:
        ours, theirs = ([group for group in side if group.student in some] for side in (first, second))
        made = [Pair(a, b, settings_that_differ(a, b)) for a in ours for b in theirs if a.validation == b.validation]
        pairs += made if min(len(ours), len(theirs)) == 1 else closest(made, side=lambda group: "other folder")
    return pairs


def settings_that_differ(ours: Group, theirs: Group) -> list[str]:
    """Return `differences` of two groups, without those that follow from other images or are in the student's name."""
    implied = {"model", "stem", *(["train_images"] if ours.settings["images"] != theirs.settings["images"] else [])}
    return [name for name in differences(ours, theirs) if name not in implied]


def decide(pairs: Sequence[Pair]) -> list[Verdict]:
    """Compute the difference of each pair, and correct the p-values for the number of pairs."""
    found = [
        compare_seeds(pair.ours.by_seed(), pair.theirs.by_seed(), may_pair=pair.ours.student == pair.theirs.student)
        for pair in pairs
    ]
    corrected = iter(holm([difference.p for difference in found if difference.known]))
    number = sum(difference.known for difference in found)
    return [
        Verdict(pair.ours, pair.theirs, pair.also, difference, next(corrected) if difference.known else None, number)
        for pair, difference in zip(pairs, found, strict=True)
    ]


def sentence(verdict: Verdict, first: str, second: str) -> str:
    """Return the sentences that say which folder is better, if the runs show it, their top-1, and what differs.

    Args:
        verdict: the comparison.
        first, second: the folders, as shown in the sentence.
    """
    means = ", ".join(
        f"{name} {group.last().mean:.2f} % ({counted(len(group.runs), 'seed')})"
        for name, group in ((first, verdict.ours), (second, verdict.theirs))
    )
    result, change = outcome(verdict, first, second), what_differs(verdict, first, second)
    return f"{subject(verdict)}: {result}. Mean top-1: {means}. {change}."


def outcome(verdict: Verdict, first: str, second: str) -> str:
    """Return the part of `sentence` on the difference: which folder is better, by how much, and how sure it is."""
    difference = verdict.difference
    higher, lower = (second, first) if difference.mean >= 0 else (first, second)
    gain = f"{higher} is {abs(difference.mean):.2f} points above {lower}"
    if f"{difference.mean:.2f}" in ("0.00", "-0.00"):
        gain = f"{first} and {second} have the same top-1"
    if difference.alike:
        pairs = f"all {difference.seeds[0]} pairs of seeds differ by exactly this"
        why = pairs if difference.paired else "the runs of each are exactly alike"
        return f"no difference shown: {gain}, but {why}, so that there is no interval; run more seeds"
    if not difference.known:
        return f"no answer yet: {gain}, but {too_few(verdict, first, second)}"
    low, high = difference.interval
    if higher == first:
        low, high = -high, -low
    if verdict.shown:
        text = f"{higher} is better than {lower} by {abs(difference.mean):.2f} points"
        return f"{text} (95 % interval {low:.2f} to {high:.2f}; {seeds_text(verdict)})"
    text = "no difference shown"
    if difference.p < LEVEL:
        text += f" after Holm's correction for {verdict.number} comparisons"
    text += f": {gain} (95 % interval {low:+.2f} to {high:+.2f}; {seeds_text(verdict)})"
    if verdict.missing:
        seeds, size = verdict.missing
        text += f". With this spread, {seeds:,} seeds{'' if difference.paired else ' of each'} would show a "
        text += f"difference of {size:g} {'point' if size == 1 else 'points'}"
    return text


def too_few(verdict: Verdict, first: str, second: str) -> str:
    """Return a phrase that says that a single run gives no interval, and which seeds to run."""
    counts = {first: len(verdict.ours.runs), second: len(verdict.theirs.runs)}
    lacking = {name: ENOUGH - count for name, count in counts.items() if count < ENOUGH}
    single = [name for name, count in counts.items() if count == 1]
    text = "one seed each gives" if len(single) == 2 else f"one seed of {single[0]} gives"
    text += " no interval, so that it may be chance; run "
    if len(lacking) == 2 and len(single) == 2:
        used = verdict.ours.runs.keys() | verdict.theirs.runs.keys()
        free = [seed for seed in range(len(used) + ENOUGH - 1) if seed not in used][: ENOUGH - 1]
        return f"{text}{ENOUGH - 1} more seeds of each (such as --seed {' '.join(map(str, free))})"
    return text + " and ".join(f"{counted(n, 'more seed')} of {name}" for name, n in lacking.items())


def what_differs(verdict: Verdict, first: str, second: str) -> str:
    """Return a sentence, without its full stop, on the settings in which the runs of two folders differ."""
    # `subject` names both image sets
    words = changes_in_words(
        [name for name in verdict.also if name != "images"], verdict.ours.values, verdict.theirs.values
    )
    if not words:
        return f"No {'other ' if AGAINST in subject(verdict) else ''}recorded setting differs"
    more = f"; and {len(words) - LONG} more" if len(words) > LONG else ""
    return f"What differs, {first} against {second}: {'; '.join(words[:LONG])}{more}"


def subject(verdict: Verdict) -> str:
    """Return student, kind of labels and image set of a comparison; if they differ, with both values.

    Settings follow that both groups share, but not all groups of their folders: without them, the sentences on several
    groups of one student would begin alike.
    """
    names: list[Callable[[Group], str]] = [lambda g: g.student, lambda g: g.regime_words, lambda g: g.images]
    words = []
    for name in names:
        ours, theirs = name(verdict.ours), name(verdict.theirs)
        words.append(ours if ours == theirs else f"{ours}{AGAINST}{theirs}")
    return ", ".join([*words, *(text for text in verdict.ours.words if text in verdict.theirs.words)])


def seeds_text(verdict: Verdict) -> str:
    """Return a phrase with the number of runs of a comparison, and whether they were paired."""
    difference = verdict.difference
    if not difference.paired:
        one, other = difference.seeds
        return f"{one} and {counted(other, 'seed')}, unpaired"
    alone = len(verdict.ours.runs) + len(verdict.theirs.runs) - sum(difference.seeds)
    text = f"{counted(difference.seeds[0], 'pair')} of seeds"
    return text + (f", {counted(alone, 'run')} without partner left out" if alone else "")


def comparison_of_folders(answer: Answer) -> Table:
    """Return the table of all comparisons, one per row."""
    rows = []
    for verdict in answer.verdicts:
        difference = verdict.difference
        cells = [
            subject(verdict),
            with_deviation(verdict.ours.last()),
            with_deviation(verdict.theirs.last()),
            f"{difference.mean:+.2f}",
            interval_text(difference),
            p_text(verdict.p),
            seeds_text(verdict),
            "; ".join(verdict.also_words) or NONE,
        ]
        rows.append(cells)
    first, second = answer.names
    columns = ["runs", f"{first} (%)", f"{second} (%)", f"{second} - {first}", "95 % interval", "p (Holm)"]
    note = (
        "Top-1 of the last epoch, mean ± standard deviation over all seeds; the difference in percentage points. "
        "Intervals hold for one comparison; the p-values are corrected for the number of rows by Holm's method, and "
        "below 0.05 a difference counts as shown. docs/evidence.md explains the tests."
    )
    title = f"{first} and {second}"
    return Table(title, [*columns, "seeds", f"what differs ({first} against {second})"], rows, note, remark=True)


def p_text(p: float | None) -> str:
    """Return a p-value as text for a table cell."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def rows_of_folders(answer: Answer) -> list[dict]:
    """Return the rows of compare.csv, one per comparison. Differences are in percentage points, second minus first."""
    rows = []
    for verdict in answer.verdicts:
        difference = verdict.difference
        seeds, points = verdict.missing or (None, None)
        low, high = difference.interval if difference.known else (None, None)
        higher = answer.second if difference.mean > 0 else answer.first
        row = {
            "name": subject(verdict),
            **{"student": verdict.ours.student, "regime": verdict.ours.regime, "images": verdict.ours.folder.name},
            **{"first": answer.first, "second": answer.second, "paired": difference.paired},
            **{"n_first": difference.seeds[0], "n_second": difference.seeds[1]},
            **{"top1_first": verdict.ours.last().mean, "top1_second": verdict.theirs.last().mean},
            **{"difference": difference.mean, "low": low, "high": high},
            **{"p": difference.p if difference.known else None, "p_holm": verdict.p},
            **{"better": higher if verdict.shown else "", "seeds_needed": seeds, "points": points},
            "differ_in": "; ".join(verdict.also_texts),
        }
        rows.append(row)
    return rows
