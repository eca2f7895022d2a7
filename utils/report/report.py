"""Make the tables and CSV rows of a report from groups of runs and from comparisons of these groups."""

from collections.abc import Sequence

from utils.report.evidence import Finding, origin_of
from utils.report.groups import Comparison, Group
from utils.report.runs import FinishedRun, FoundRuns
from utils.report.tables import NONE, Table, interval_text, size, with_deviation, with_error
from utils.report.words import rank_of, split, value_words, words_of
from utils.system.errors import listing

GROUP_COLUMNS = (
    "name student regime images settings n seeds top1 top1_sd top5 top5_sd best_top1 best_top1_sd "
    "images_per_second hours label_bytes image_bytes"
).split()
COMPARISON_COLUMNS = "axis ours theirs n difference standard_error also_differs".split()
FINDING_COLUMNS = "name student regime images n ior ior_se ior_low ior_high hlr hlr_se lrs lrs_se ars ars_se".split()
# axis of comparisons -> its name in titles
AXES = {"images": "images", "regime": "labels", "student": "student", "settings": "settings"}
# part of the note below the table of findings
ROBUST = (
    "ARS, augmentation-robust score with γ = 0.5, from the IOR of these runs and of runs on whole images (--augment "
    "none); DD-Ranking's own program prints other numbers, since it does not divide points by 100. "
)


def group_rows(groups: list[Group]) -> list[dict]:
    """Return the rows of report.csv, one per group of runs. Accuracies are in percent, sizes in bytes."""
    rows = []
    for group in groups:
        top1 = group.last("top1")
        top5 = group.last("top5")
        best = group.best()
        row = {
            "name": group.name,
            "student": group.student,
            "regime": group.regime,
            "images": group.images,
            "settings": "; ".join([*group.apart, *group.picked]),
            "n": top1.n,
            "seeds": " ".join(map(str, sorted(group.runs))),
            "top1": top1.mean,
            "top1_sd": top1.deviation,
            "top5": top5.mean,
            "top5_sd": top5.deviation,
            "best_top1": best.mean,
            "best_top1_sd": best.deviation,
            "images_per_second": group.mean("train_images_per_second"),
            "hours": group.hours(),
            "label_bytes": group.mean("labels", "bytes"),
            "image_bytes": group.mean("images", "bytes"),
        }
        rows.append(row)
    return rows


def group_table(groups: list[Group]) -> Table:
    """Return the main table: one row per group of runs, with accuracies, speed, time, label size and image size."""
    rows = []
    for group in groups:
        speed = group.mean("train_images_per_second")
        hours = group.hours()
        cells = [
            group.student,
            group.regime_words,
            ", ".join([group.series, *group.picked_words]),
            str(group.last().n),
            with_deviation(group.last("top1")),
            with_deviation(group.last("top5")),
            with_deviation(group.best()),
            NONE if speed is None else f"{speed:,.0f}",
            NONE if hours is None else f"{hours:.3g}",
            size(group.mean("labels", "bytes")),
            size(group.mean("images", "bytes")),
        ]
        rows.append(cells)
    columns = "student,labels,images,n,top-1 (%),top-5 (%),best top-1 (%),images/s,hours,label files,image files".split(
        ","
    )
    note = (
        "Figures of the last epoch, mean ± standard deviation over n seeds. Label files of a live teacher: its "
        "weights. Hours: wall clock of one run. The best top-1 of a run was picked on the validation set."
    )
    late = [f"{group.name}: epoch {group.evaluated_from}" for group in groups if group.evaluated_from]
    if late:
        note += f" In these groups it is the best of the evaluations from an epoch on: {'; '.join(late)}."
    few = [f"{group.name}: {group.validated_on}" for group in groups if group.validated_on]
    if few:
        note += f" These groups were validated on no more than the first images of each class: {'; '.join(few)}."
    accepted = [f"{group.name}: {group.accepted}" for group in groups if group.accepted]
    if accepted:
        note += " LABELS ACCEPTED: the labels of these groups seem wrong, but --accept-labels let the runs go on. "
        note += "; ".join(accepted) + "."
    return Table("Top-1 by group", columns, rows, note, left=3)


def finding_table(findings: list[Finding]) -> Table:
    """Return the table that compares image sets with one set of random images; `findings` must not be empty.

    It has a column for the augmentation-robust score only if a finding has one.
    """
    rows = []
    robust = any(found.robustness for found in findings)
    for found in findings:
        group = found.group
        cells = [
            group.student,
            group.regime_words,
            group.series,
            str(found.improvement.n),
            with_deviation(group.last()),
            with_deviation(found.random.last()),
            with_error(found.improvement, sign=True),
            interval_text(found.difference),
            with_error(found.recovery),
            with_error(found.score),
            *([with_error(found.robustness)] if robust else []),
        ]
        rows.append(cells)
    columns = [
        "student",
        "labels",
        "images",
        "n",
        "top-1 (%)",
        f"top-1, {findings[0].random.images} (%)",
        "IOR",
        "95 % interval",
        "HLR",
        "LRS (%)",
        *(["ARS (%)"] if robust else []),
    ]
    note = (
        "IOR, improvement over random: paired over n common seeds, percentage points ± standard error, "
        "and its 95 % interval by Student's t, which holds for one comparison. HLR, hard-label "
        "recovery: top-1 on all real images minus top-1 on these, both with hard labels. LRS, label-robust score with "
        f"w = 0.5. {ROBUST if robust else ''}docs/evidence.md says which conclusions these figures do not allow. "
        f"Random images: {origin_of(findings[0].random)}."
    )
    return Table("Is it the images or the labels?", columns, rows, note, left=3)


def finding_rows(findings: list[Finding]) -> list[dict]:
    """Return the rows of evidence.csv, one per comparison of an image set with random images.

    The columns IOR (improvement over random) and HLR (hard-label recovery) are in percentage points. The columns LRS
    (label-robust score) and ARS (augmentation-robust score) are in percent.
    """
    rows = []
    for found in findings:
        group = found.group
        low, high = found.difference.interval if found.difference.known else (None, None)
        row = {
            "name": group.name,
            "student": group.student,
            "regime": group.regime,
            "images": "; ".join([group.images, *group.apart]),
            "n": found.improvement.n,
            "ior": found.improvement.mean,
            "ior_se": found.improvement.error,
            "ior_low": low,
            "ior_high": high,
        }
        if found.recovery is not None:
            row |= {"hlr": found.recovery.mean, "hlr_se": found.recovery.error}
        if found.score is not None:
            row |= {"lrs": found.score.mean, "lrs_se": found.score.error}
        if found.robustness is not None:
            row |= {"ars": found.robustness.mean, "ars_se": found.robustness.error}
        rows.append(row)
    return rows


def student_table(groups: list[Group]) -> Table | None:
    """Return a table of top-1 with one column per student architecture; None if there are fewer than two students."""
    students = list(dict.fromkeys(group.student for group in groups))
    if len(students) < 2:
        return None
    lines: dict[tuple, dict[str, str]] = {}
    for group in groups:
        lines.setdefault((group.regime_words, group.series), {})[group.student] = with_deviation(group.last())
    rows = [[*line, *(cells.get(student, NONE) for student in students)] for line, cells in lines.items()]
    note = "Top-1 of the last epoch (%), mean ± standard deviation over seeds."
    return Table("Cross-architecture", ["labels", "images", *students], rows, note, left=2)


def search_table(groups: list[Group]) -> Table | None:
    """Return a table of all values that were tried in a search; None if nothing was searched."""
    rows = []
    for group in groups:
        for _, one in group.tried:
            cells = [
                group.student,
                group.regime_words,
                group.series,
                group.searched_words(one),
                str(one.last().n),
                with_deviation(one.last()),
                with_deviation(one.best()),
                "picked" if one.runs is group.runs else "",
            ]
            rows.append(cells)
    columns = ["student", "labels", "images", "value", "n", "top-1 (%)", "best top-1 (%)", ""]
    note = (
        "Top-1 of the last epoch, mean ± standard deviation over n seeds. Of the values with the most seeds, the one "
        "with the highest mean was picked: on the validation set, so that its top-1 is too good by an unknown amount."
    )
    return Table("Searched settings", columns, rows, note, left=4, remark=True) if rows else None


def comparison_table(found: list[Comparison], axis: str) -> Table:
    """Return a table of the comparisons in `found` along one axis: `images`, `regime`, `student` or `settings`."""
    rows = []
    for comparison in (c for c in found if c.axis == axis):
        difference = comparison.difference
        cells = [comparison.ours.name, comparison.theirs.name, with_error(difference, sign=True)]
        rows.append([*cells, str(difference.n) if difference else "0", "; ".join(comparison.also_words) or NONE])
    note = "Top-1 of the first minus the second, percentage points, mean ± standard error over n common seeds."
    title = f"Paired comparisons: {AXES[axis]}"
    return Table(title, ["first", "second", "difference", "n", "also differ in"], rows, note, left=2, remark=True)


def comparison_rows(found: list[Comparison]) -> list[dict]:
    """Return the rows of comparisons.csv, one per pair of groups, with differences of top-1 in percentage points."""
    rows = []
    for comparison in found:
        difference = comparison.difference
        row = {
            "axis": comparison.axis,
            "ours": comparison.ours.name,
            "theirs": comparison.theirs.name,
            "n": difference.n if difference else 0,
            "difference": difference.mean if difference else None,
            "standard_error": difference.error if difference else None,
            "also_differs": "; ".join(comparison.also_texts),
        }
        rows.append(row)
    return rows


def finding_sentences(findings: list[Finding]) -> list[str]:
    """Return a sentence for each comparison of an image set with random images: which one is better, if shown."""
    sentences = []
    for found in findings:
        difference, random = found.difference, found.random.images
        gain = f"{found.group.name}: {difference.mean:+.2f} points against {random}"
        pairs = f"{difference.seeds[0]} pairs of seeds"
        if difference.alike:
            text = f"{gain}, in each of {pairs}, so that there is no interval"
        elif not difference.known:
            text = (
                f"{gain}, but one pair of seeds gives no interval, so that it may be chance; run 2 more seeds of both"
            )
        else:
            low, high = difference.interval
            shown = low * high > 0
            verdict = (
                f"{'better' if difference.mean > 0 else 'worse'} than {random}" if shown else "no difference shown"
            )
            text = f"{gain}: {verdict} (95 % interval {low:+.2f} to {high:+.2f}; {pairs})"
        sentences.append(f"{text}.")
    return sentences


def parts_of_groups(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return the settings of groups, split into parts: part -> value in each group in words, in the order of WORDS."""
    known = [
        {part: text for name in group.settings for part, text in split(name, group.values[name]).items()}
        for group in groups
    ]
    parts = sorted(set().union(*known), key=rank_of)
    return {part: [value_words(part, values.get(part, "")) for values in known] for part in parts}


def shared_table(groups: Sequence[Group]) -> Table:
    """Return a table of the settings that all groups share."""
    parts = parts_of_groups(groups)
    rows = [[words_of(part).noun, values[0], part] for part, values in parts.items() if len(set(values)) == 1]
    return Table("Settings that all runs share", ["setting", "value", "name in summary.json"], rows, left=3)


def differing_table(groups: Sequence[Group]) -> Table | None:
    """Return a table of the settings in which groups differ, a row for each group; None if there are none."""
    parts = {part: values for part, values in parts_of_groups(groups).items() if len(set(values)) > 1}
    rows = [[group.name, *(values[place] for values in parts.values())] for place, group in enumerate(groups)]
    columns = ["runs", *(words_of(part).noun for part in parts)]
    return Table("Settings that differ", columns, rows, left=len(columns)) if parts else None


def provenance_table(groups: Sequence[Group]) -> Table:
    """Return a table of what the runs of each group were made of: code, versions, data, labels, and their folders."""
    rows = []
    for group in groups:
        run = next(iter(group.runs.values()))
        versions = run.summary.get("versions", {})
        images, validation = (run.summary.get(name, {}) for name in ("images", "validation"))
        labels = run.args.get("fkd_path") or run.summary["labels"].get("dialect")
        cells = [
            group.name,
            " ".join(map(str, sorted(group.runs))),
            str(run.summary.get("git_commit") or NONE),
            ", ".join(f"{name} {value}" for name, value in versions.items()) or NONE,
            f"{run.args.get('train_dir')} ({images.get('digest') or 'no digest'})",
            f"{labels} ({run.args.get('labels') or 'no digest'})",
            f"{run.args.get('val_dir') or NONE} ({validation.get('digest') or 'no digest'})",
            group.accepted or "as checked",
            listing(sorted(str(one.path) for one in group.runs.values()), 10),
        ]
        rows.append(cells)
    columns = ["runs", "seeds", "commit", "versions", "images (digest)", "labels (digest)"]
    columns += ["validation images (digest)", "check of the labels", "folders"]
    return Table("Where the figures come from", columns, rows, left=len(columns))


def left_out(found: FoundRuns, repeated: list[FinishedRun]) -> list[Table]:
    """Return tables of the runs that are not part of any average: unfinished, damaged and repeated runs."""
    unfinished = [[str(path), f"{done} of {epochs} epochs"] for path, done, epochs in found.unfinished]
    damaged = [[str(path), reason] for path, reason in found.damaged]
    again = [[str(run.path), f"seed {run.seed} counts already, with the same settings"] for run in repeated]
    lists = {"Unfinished runs": unfinished, "Damaged run folders": damaged, "Repeated runs": again}
    columns = ["run", "why it is in no average"]
    return [Table(title, columns, rows, remark=True) for title, rows in lists.items() if rows]
