"""Draws the figures of a report, 8 cm wide, as PNG and SVG.

The colours come from the palette of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.report.groups import REGIMES, Group
from utils.system.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
DASHES = dict(zip(REGIMES, (":", "--", "-"), strict=True))
MARKERS = "osD^v"  # if there are more series than colours, series of the same colour have different markers
INCH = 2.54  # cm
WIDTH = 8 / INCH
LETTERS = 48  # maximum length of a line in a legend
AXIS = 0.8  # height in cm of the tick labels and the axis label below the lowest panel
STYLE: Any = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1,
    "lines.markersize": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.4,
    "axes.grid": True,
    "legend.frameon": False,
    "svg.hashsalt": "report",
}


def draw_figures(folder: Path, groups: list[Group]) -> list[Path]:
    """Save the figures `curves` (top-1 over epochs) and `top1` (last epoch); return the paths of the PNG files."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        return [save(folder / "curves", draw_curves(groups)), save(folder / "top1", draw_top1(groups))]


def save(path: Path, figure: Figure) -> Path:
    """Write a figure as PNG and as SVG; `path` lacks the suffix. Return the path of the PNG file."""
    for kind in ("svg", "png"):
        # without a date, two reports on the same runs have identical SVG files
        dated: Any = {"metadata": {"Date": None}} if kind == "svg" else {}
        with atomic_file(path.with_name(f"{path.name}.{kind}")) as temporary:
            figure.savefig(temporary, format=kind, dpi=300, **dated)
    return path.with_name(f"{path.name}.png")


def make_panels(groups: list[Group], height: float, legend: float) -> tuple[Figure, dict[str, Axes], Axes]:
    """Make a figure with one empty panel per student, one below the other, and space for a legend at the bottom.

    Args:
        groups: the groups to draw.
        height: height of a panel in cm.
        legend: height of the legend in cm.

    Returns:
        (figure, dict of student -> panel, empty axes for the legend). Panels have the order of the groups.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    students = list(dict.fromkeys(group.student for group in groups))
    heights = [height] * len(students) + [legend]
    figure = Figure(figsize=(WIDTH, (sum(heights) + AXIS) / INCH), layout="constrained")
    FigureCanvasAgg(figure)
    *axes, below = figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights})
    for panel, student in zip(axes, students, strict=True):
        panel.set_title(student, loc="left", pad=3)
        if panel is not axes[0]:
            panel.sharex(axes[0])
        if panel is not axes[-1]:
            panel.tick_params(labelbottom=False)
    below.axis("off")
    return figure, dict(zip(students, axes, strict=True)), below


def series_of(groups: list[Group]) -> dict[str, dict[str, Any]]:
    """Choose a colour and a marker for each value of `Group.series` (the text of a legend entry).

    Returns:
        `Group.series` -> keyword arguments `color` and `marker` of `Axes.plot`, in the order of the groups.
    """
    looks = {}
    for number, name in enumerate(dict.fromkeys(group.series for group in groups)):
        marker = MARKERS[number // len(COLOURS) % len(MARKERS)]
        looks[name] = {"color": COLOURS[number % len(COLOURS)], "marker": marker}
    return looks


def draw_curves(groups: list[Group]) -> Figure:
    """Draw validation top-1 over epochs: for each group, the mean over seeds with a band of ± standard deviation."""
    from matplotlib.ticker import MaxNLocator

    series = series_of(groups)
    regimes = [regime for regime in REGIMES if any(group.regime == regime for group in groups)]
    figure, panels, below = make_panels(groups, height=4.2, legend=legend_height([*series, *regimes]))
    for group in groups:
        curves = [run.curve for run in group.runs.values()]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))  # epochs that all runs evaluated
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        means = [statistics.fmean(v) for v in values]
        panel = panels[group.student]
        look = series[group.series]
        panel.plot(epochs, means, linestyle=DASHES[group.regime], **look)
        if len(curves) > 1:
            deviations = [statistics.stdev(v) for v in values]
            low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
            high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
            panel.fill_between(epochs, low, high, color=look["color"], alpha=0.15, linewidth=0)
    for panel in panels.values():
        panel.set_ylabel("top-1 (%)")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("epoch")  # `panel` is the lowest one
    looks = {name: {**look, "linestyle": "none", "markersize": 5} for name, look in series.items()}
    looks |= {regime: {"color": "0.3", "linestyle": DASHES[regime]} for regime in regimes}
    add_legend(below, looks, "mean ± standard deviation over seeds")
    return figure


def draw_top1(groups: list[Group]) -> Figure:
    """Draw the last epoch's top-1 of every group: mean with standard deviation, and each seed as a small dot."""
    series = series_of(groups)
    regimes = [regime for regime in REGIMES if any(group.regime == regime for group in groups)]
    row = 0.5 + 0.22 * len(series)  # cm
    figure, panels, below = make_panels(groups, row * len(regimes) + 1, legend=legend_height(series))
    step = 0.4 / max(len(series) - 1, 1)
    for group in groups:
        panel = panels[group.student]
        y: float = regimes.index(group.regime)
        if len(series) > 1:  # spread the series of a regime evenly over y ± 0.2; y is the row of the regime
            y += list(series).index(group.series) * step - 0.2
        last = group.last()
        look = series[group.series]
        seeds = list(group.by_seed().values())
        panel.plot(seeds, [y] * len(seeds), ".", color="0.6", markersize=2, zorder=1)
        panel.errorbar(last.mean, y, xerr=last.deviation, capsize=2, elinewidth=0.8, linestyle="none", **look)
    for panel in panels.values():
        panel.set(yticks=range(len(regimes)), yticklabels=regimes, ylim=(len(regimes) - 0.5, -0.5))
        panel.grid(visible=False, axis="y")
    panel.set_xlabel("top-1, last epoch (%)")  # `panel` is the lowest one
    looks = {name: {**look, "linestyle": "none", "markersize": 4} for name, look in series.items()}
    add_legend(below, looks, "mean ± standard deviation; grey: each seed")
    return figure


def legend_columns(labels: Iterable[str]) -> int:
    """Return the number of columns of a legend: two, or one if a label is long."""
    return 2 if max(map(len, labels)) < 24 else 1


def legend_height(labels: Collection[str]) -> float:
    """Return the height in cm of a legend with these labels and a title; labels of LETTERS and more are wrapped."""
    lines = sum(max(1, len(textwrap.wrap(label, LETTERS))) for label in labels)
    return 0.4 * math.ceil(lines / legend_columns(labels)) + 0.8


def add_legend(place: Axes, looks: dict[str, dict[str, Any]], title: str) -> None:
    """Draw a legend.

    Args:
        place: axes for the legend.
        looks: label -> keyword arguments of `Line2D`.
        title: title of the legend.
    """
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=textwrap.fill(name, LETTERS), **look) for name, look in looks.items()]
    columns = legend_columns(looks)
    place.legend(handles=handles, title=title, loc="center", ncol=columns, borderaxespad=0, title_fontsize=7)
