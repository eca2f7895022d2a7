"""What a report says: groups, findings and comparisons as tables and as rows of CSV."""

from utils.report.evidence import Finding, origin_of
from utils.report.formulas import Spread
from utils.report.groups import Comparison, Group
from utils.report.runs import FinishedRun, FoundRuns
from utils.report.tables import NONE, Table, size, with_deviation, with_error

GROUP_COLUMNS = (
    "student regime images settings n seeds top1 top1_sd top5 top5_sd best_top1 best_top1_sd "
    "images_per_second hours label_bytes image_bytes"
).split()
COMPARISON_COLUMNS = "axis ours theirs n difference standard_error also_differs".split()
FINDING_COLUMNS = "student regime images n ior ior_se hlr hlr_se lrs lrs_se".split()


def group_rows(groups: list[Group]) -> list[dict]:
    """Return report.csv: one row per group; top-k in percent, sizes in bytes."""
    rows = []
    for group in groups:
        top1, top5, best = group.last("top1"), group.last("top5"), group.best()
        values = [group.student, group.regime, group.images, "; ".join(group.apart), top1.n]
        values += [" ".join(map(str, sorted(group.runs))), top1.mean, top1.deviation, top5.mean, top5.deviation]
        values += [best.mean, best.deviation, group.mean("train_images_per_second")]
        values += [group.hours()]
        values += [group.mean("labels", "bytes"), group.mean("images", "bytes")]
        rows.append(dict(zip(GROUP_COLUMNS, values, strict=True)))
    return rows


def group_table(groups: list[Group]) -> Table:
    """Return the main table."""
    rows = []
    for group in groups:
        speed, hours = group.mean("train_images_per_second"), group.hours()
        rows.append(
            [
                *(group.student, group.regime, group.series, str(group.last().n)),
                *(with_deviation(group.last("top1")), with_deviation(group.last("top5")), with_deviation(group.best())),
                NONE if speed is None else f"{speed:,.0f}",
                NONE if hours is None else f"{hours:.3g}",
                *(size(group.mean("labels", "bytes")), size(group.mean("images", "bytes"))),
            ]
        )
    columns = "student,regime,images,n,top-1 (%),top-5 (%),best top-1 (%),images/s,hours,labels,image files".split(",")
    note = (
        "Last epoch's figures, mean ± standard deviation over n seeds. The best top-1 of a run was picked on the "
        "validation set. Labels of SL+KD: the teacher's weights. Hours: wall clock of one run."
    )
    accepted = [f"{group.name}: {group.accepted}" for group in groups if group.accepted]
    if accepted:
        note += " LABELS ACCEPTED: these groups' labels seem wrong, and --accept-labels let the runs go on. "
        note += "; ".join(accepted) + "."
    return Table("Top-1 by group", columns, rows, note, left=3)


def finding_table(findings: list[Finding]) -> Table:
    """Return the answer: every image set beside the random one, of which there is one in all findings."""
    rows = []
    for found in findings:
        group, gain = found.group, found.improvement
        rows.append(
            [
                *(group.student, group.regime, group.series, str(gain.n)),
                *(with_deviation(group.last()), with_deviation(found.random.last()), with_error(gain, sign=True)),
                *(with_error(found.recovery), with_error(found.score)),
            ]
        )
    columns = [
        "student",
        "regime",
        "images",
        "n",
        "top-1 (%)",
        f"top-1, {findings[0].random.images} (%)",
        "IOR",
        "HLR",
        "LRS (%)",
    ]
    note = (
        "IOR, improvement over random: paired over n common seeds, percentage points ± standard error. HLR, hard-label "
        "recovery: what hard labels on these images still miss of all real images. LRS, label-robust score with "
        "w = 0.5. docs/evidence.md says what may not be concluded. Random images: "
        f"{origin_of(findings[0].random)}."
    )
    return Table("Is it the images or the labels?", columns, rows, note, left=3)


def finding_rows(findings: list[Finding]) -> list[dict]:
    """Return evidence.csv."""

    def pair(value: Spread | None) -> tuple:
        return (None, None) if value is None else (value.mean, value.error)

    rows = []
    for found in findings:
        group = found.group
        values = [group.student, group.regime, group.series, found.improvement.n]
        values += [*pair(found.improvement), *pair(found.recovery), *pair(found.score)]
        rows.append(dict(zip(FINDING_COLUMNS, values, strict=True)))
    return rows


def student_table(groups: list[Group]) -> Table | None:
    """Return top-1 of every student side by side, as the field reports cross-architecture; None for one student."""
    students = list(dict.fromkeys(group.student for group in groups))
    if len(students) < 2:
        return None
    lines: dict[tuple, dict[str, str]] = {}
    for group in groups:
        lines.setdefault((group.regime, group.series), {})[group.student] = with_deviation(group.last())
    rows = [[*line, *(cells.get(student, NONE) for student in students)] for line, cells in lines.items()]
    note = "Last epoch's top-1 (%), mean ± standard deviation over seeds."
    return Table("Cross-architecture", ["regime", "images", *students], rows, note, left=2)


def comparison_table(found: list[Comparison], axis: str) -> Table:
    """Return the paired comparisons along one axis."""
    rows = []
    for comparison in (c for c in found if c.axis == axis):
        difference = comparison.difference
        cells = [comparison.ours.name, comparison.theirs.name, with_error(difference, sign=True)]
        rows.append([*cells, str(difference.n) if difference else "0", "; ".join(comparison.also) or NONE])
    note = "Top-1 of the first less the second, percentage points, mean ± standard error over n common seeds."
    title = f"Paired comparisons: {axis}"
    return Table(title, ["first", "second", "difference", "n", "also differ in"], rows, note, left=2, remark=True)


def comparison_rows(found: list[Comparison]) -> list[dict]:
    """Return comparisons.csv."""
    rows = []
    for c in found:
        figures = (c.difference.n, c.difference.mean, c.difference.error) if c.difference else (0, None, None)
        values = (c.axis, c.ours.name, c.theirs.name, *figures, "; ".join(c.also))
        rows.append(dict(zip(COMPARISON_COLUMNS, values, strict=True)))
    return rows


def left_out(found: FoundRuns, repeated: list[FinishedRun]) -> list[Table]:
    """Return what is in no average: unfinished, damaged and repeated runs."""
    unfinished = [[str(path), f"{done} of {epochs} epochs"] for path, done, epochs in found.unfinished]
    damaged = [[str(path), reason] for path, reason in found.damaged]
    again = [[str(run.path), f"seed {run.seed} counts already, with the same settings"] for run in repeated]
    titles = ("Unfinished runs", unfinished), ("Damaged run folders", damaged), ("Repeated runs", again)
    return [Table(title, ["run", "why it is in no average"], rows, remark=True) for title, rows in titles if rows]
