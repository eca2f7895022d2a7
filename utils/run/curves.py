"""Draw the curves of a finished run: losses, top-1 and learning rate over the epochs, as curves.png and curves.pdf."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.labels.hard import Phases
from utils.system.plotting import (
    BLUE,
    CHANCE,
    GREY,
    PAGE,
    SMALL,
    VERMILION,
    add_chance,
    limit_percent,
    new_figure,
    save,
    style,
    wrap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 12.5  # of the figure, in cm
MARKS = 20  # a curve of more evaluations than this has a marker at about this number of them
TRAINING: dict[str, Any] = {"color": BLUE, "linewidth": 0.9}
VALIDATION: dict[str, Any] = {"color": VERMILION, "marker": "o"}


def draw_curves(path: Path, history: Sequence[dict], summary: dict[str, Any], classes: int) -> list[Path]:
    """Draw training loss, top-1, validation loss and learning rate over epochs, in four panels; return the files.

    Epochs are counted from 1 here, so that the last one of a run is --epochs; metrics.csv counts them from 0. Training
    loss and validation loss have separate panels, because they are different loss functions. Training top-1 compares
    the student with the class folders, so it is drawn only for views of one image: of two mixed images, the student
    should often name the other one.

    Args:
        path: path of the files; its suffix is replaced.
        history: rows of metrics.csv; validation cells are None for epochs that were not evaluated.
        summary: content of summary.json.
        classes: number of classes among which the student chooses.
    """
    args, labels = summary["args"], summary["labels"]
    phases = Phases(args["epochs"], args.get("hard_epochs") or 0)
    mix = labels.get("mix_type") or labels.get("policy", {}).get("mix_type", "none")
    # a value that is not a number makes a gap in a line
    unmixed = [row | {"train_top1": math.nan} if phases.is_hard(row["epoch"]) else row for row in history]
    with style():
        figure = new_figure(PAGE, HEIGHT)
        figure.suptitle(wrap(title_of(args, labels), PAGE - 1, 9), x=0.01, ha="left")
        parts = figure.add_gridspec(3, 2, height_ratios=(1, 9, 9))
        loss, top1 = (figure.add_subplot(part) for part in (parts[1, 0], parts[1, 1]))
        val_loss, lr = (figure.add_subplot(part, sharex=loss) for part in (parts[2, 0], parts[2, 1]))
        top1.sharex(loss)
        loss.set_title(f"Training loss ({args['loss_type']}, mean over views)")
        top1.set_title("Top-1 (%)")
        val_loss.set_title("Validation loss (cross-entropy, nats)")
        draw(loss, history, "train_loss", 1, TRAINING)
        if mix == "none":
            draw(top1, unmixed, "train_top1", 1, TRAINING)
        draw(top1, history, "val_top1", 1, VALIDATION | {"clip_on": False})
        draw(val_loss, history, "val_loss", 1, VALIDATION)
        unit = power_of_ten(max((row["lr"] for row in history), default=0.0))
        times = "" if unit == 0 else f"10{str(unit).translate(RAISED)} "
        lr.set_title(f"Learning rate ({times}per step)")
        draw(lr, history, "lr", 10.0**unit, {"color": BLUE})
        add_chance(top1, classes, named=False)
        add_legend(figure.add_subplot(parts[0, :]), mark_results(top1, summary), classes)
        for panel in (loss, top1, val_loss, lr):
            shade_hard_epochs(panel, phases, history)
        limit_percent(top1)
        lr.set_ylim(bottom=0)
        if history:
            first, last = history[0]["epoch"] + 1, history[-1]["epoch"] + 1
            margin = 0.02 * (last - first) or 0.5
            lr.set_xlim(first - margin, last + margin)  # the panels share this axis
            lr.set_xticks(ticks_of(first, last))
        for panel in (loss, top1):
            panel.tick_params(labelbottom=False)
        for panel in (val_loss, lr):
            panel.set_xlabel("epoch")
        figure.supxlabel(
            wrap(notes_of(summary, mix, phases), PAGE - 0.5, SMALL), x=0.01, ha="left", size=SMALL, color=GREY
        )
        return save(figure, path)


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def title_of(args: dict[str, Any], labels: dict[str, Any]) -> str:
    """Return the title of the curves: the student's model, the seed, the image folder and the labels.

    Args:
        args: settings of the run, as in args.json.
        labels: entry `labels` of summary.json.
    """
    where = Path(labels["path"]).name if "path" in labels else labels["dialect"]
    if "path" not in labels and labels.get("teachers"):
        where += " " + " + ".join(teacher["arch"] for teacher in labels["teachers"])
    return f"Student {args['model']}, seed {args['seed']}. Images: {Path(args['train_dir']).name}. Labels: {where}."


def notes_of(summary: dict[str, Any], mix: str, phases: Phases) -> str:
    """Return the sentences below the curves: what was evaluated, and what is not drawn.

    Args:
        summary: content of summary.json.
        mix: how the views of soft-label epochs are mixed: `cutmix`, `mixup` or `none`.
        phases: soft-label and hard-label epochs of the run.
    """
    number = summary["validation"]["number"]
    words = [f"Validation: {number:,} images, weights {summary['evaluated_weights']}."]
    if mix != "none":
        words.append(f"Training top-1 is not drawn, because {mix} puts two images into a view.")
    elif phases.hard:
        words.append("Training top-1 is not drawn for hard epochs, because they put two images into a view.")
    return " ".join(words)


def draw(panel: Axes, rows: Sequence[dict], column: str, unit: float, look: dict[str, Any]) -> None:
    """Draw a column of metrics.csv over the epochs, counted from 1; rows without a value are left out.

    Args:
        panel: where to draw.
        rows: rows of metrics.csv.
        column: name of the column.
        unit: values are divided by this.
        look: keyword arguments of `Axes.plot`.
    """
    points = [(row["epoch"] + 1, row[column] / unit) for row in rows if row[column] is not None]
    if not points:
        return
    if len(points) == 1:
        look = {"marker": "s"} | look  # a line of one point is invisible
    panel.plot(*zip(*points, strict=True), markevery=math.ceil(len(points) / MARKS), **look)


def mark_results(panel: Axes, summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Mark the last and the best evaluation in the panel of top-1.

    Args:
        panel: the panel.
        summary: content of summary.json.

    Returns:
        the texts of the marks for a legend, with their looks as keyword arguments of `Line2D`.
    """
    looks: dict[str, dict[str, Any]] = {}
    last, best = summary["last"], summary["best"]
    for names, result, marker, size in (("last", last, "D", 5), ("best", best, "*", 9)):
        if result is None or (names == "best" and last["epoch"] == best["epoch"]):
            continue
        if last["epoch"] == best["epoch"]:
            names = "last and best"
        look: dict[str, Any] = {
            "color": "none",
            "marker": marker,
            "markersize": size,
            "markeredgecolor": "black",
            "zorder": 3,
        }
        look["markerfacecolor"] = VERMILION if names != "best" else "white"
        panel.plot([result["epoch"] + 1], [result["top1"]], clip_on=False, **look)
        looks[f"{names} {result['top1']:.2f}% (epoch {result['epoch'] + 1})"] = look
    return looks


def add_legend(place: Axes, marks: dict[str, dict[str, Any]], classes: int) -> None:
    """Draw the legend of all panels in one row.

    Args:
        place: empty axes for the legend.
        marks: the result of `mark_results`.
        classes: number of classes among which the student chooses.
    """
    from matplotlib.lines import Line2D

    looks = {"training": TRAINING, "validation": VALIDATION} | marks
    looks[f"chance {100 / classes:.3g}%"] = CHANCE
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    place.axis("off")
    place.legend(handles=handles, loc="center left", ncol=len(handles), borderaxespad=0, columnspacing=1.2)


def shade_hard_epochs(panel: Axes, phases: Phases, history: Sequence[dict]) -> None:
    """Shade the epochs that trained on hard labels, and name them; do nothing if there are none.

    Args:
        panel: the panel.
        phases: soft-label and hard-label epochs of the run.
        history: rows of metrics.csv.
    """
    hard = [row["epoch"] + 1 for row in history if phases.is_hard(row["epoch"])]
    if not hard:
        return
    panel.axvspan(hard[0] - 0.5, hard[-1] + 0.5, color="0.9", zorder=0, linewidth=0)
    place = ("data", "axes fraction")
    panel.annotate(
        "hard labels", (hard[0] - 0.5, 1), xycoords=place, xytext=(2, -2), textcoords="offset points", va="top",
        fontsize=SMALL, color=GREY,
    )  # fmt: skip


def power_of_ten(value: float) -> int:
    """Return 0 for values from 0.01 on; else the multiple of three n for which `value` / 10^n is from 1 to 1,000."""
    return 3 * math.floor(math.log10(value) / 3) if 0 < value < 0.01 else 0


def ticks_of(first: int, last: int) -> list[int]:
    """Return about six epochs for the ticks of an axis, among them the first and the last epoch.

    Args:
        first, last: numbers of the first and of the last epoch, from 1.
    """
    steps = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    step = next(step for step in steps if (last - first) / step <= 6)
    inner = range(step * math.ceil(first / step), last + 1, step)
    # numbers would overlap if they were closer to the ends than half a step
    return sorted({first, last, *(tick for tick in inner if tick - first > step / 2 and last - tick > step / 2)})
