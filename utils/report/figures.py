"""Draw the figures of a report: top-1 over epochs, top-1 after the last epoch, and differences with their intervals.

Each student and kind of labels has a panel with axes of its own, so that a difference of 2 points is visible beside
another panel whose top-1 is 40 points lower.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.report.groups import REGIMES, Group
from utils.report.significance import Difference
from utils.report.tables import counted, interval_text
from utils.system import plotting
from utils.system.plotting import GREY, SMALL, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = "png", "pdf", "svg"
SIDE_BY_SIDE = 3  # maximum number of students whose panels are side by side
NARROW = 12.0  # width in cm of a figure with one column of panels
NAMES = 4.2  # width in cm of the names beside a panel
LINE = 0.34  # height in cm of a line of small text
PANEL = 1.4  # height in cm of title and ticks of a panel
LEAST = 0.5  # points that an axis spans at least
# keyword arguments of a text at the right of a panel, in the height of a row
AT_SIDE: dict[str, Any] = {
    "xycoords": ("axes fraction", "data"),
    "xytext": (4, 0),
    "textcoords": "offset points",
    "va": "center",
    "fontsize": SMALL,
    "annotation_clip": False,
}
TITLE = 5.0  # cm; longer titles of panels are wrapped


CAPTIONS = {
    "top1": "Top-1 after the last epoch: mean and standard deviation over seeds, and each seed as a small point. Each "
    "panel has its own axis.",
    "curves": "Validation top-1 over epochs: mean over seeds, with a band of plus and minus a standard deviation.",
    "differences": "Differences of top-1 in percentage points, with 95 % confidence intervals. A filled square: the "
    "interval does not include 0.",
}


@dataclass(frozen=True)
class Effect:
    """A row of a forest plot: a difference of top-1 in percentage points, and its name."""

    name: str
    difference: Difference


def draw_figures(folder: Path, groups: list[Group], effects: Sequence[Effect] = (), versus: str = "") -> list[Path]:
    """Save the figures `curves`, `top1` and, if there are effects, `differences`; return the paths of the PNG files.

    Args:
        folder: folder of the files.
        groups: groups of runs, at least one.
        effects: differences between image sets and the set `versus`.
        versus: name of the set of random images.
    """
    with drawing():
        pictures = {"top1": draw_top1(groups), "curves": draw_curves(groups)}
        if effects:
            pictures["differences"] = draw_forest(effects, versus, "image set")
        return [save(figure, folder / name) for name, figure in pictures.items()]


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Apply the style of the project's figures, and draw letters that the font lacks as boxes without a warning."""
    with warnings.catch_warnings(), plotting.style():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, PDF and SVG; return the path of the PNG file."""
    return plotting.save(figure, path, KINDS)[0]


def looks_of(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Return `Group.series` -> colour, marker and line style, in the order of the groups."""
    names = dict.fromkeys(group.series for group in groups)
    return {name: plotting.series(number) for number, name in enumerate(names)}


@dataclass(frozen=True)
class Grid:
    """Panels of a figure, one for each student and kind of labels.

    Attributes:
        figure: the figure.
        panels: (student, regime) -> axes. Panels of one regime are side by side.
        first: the panels at the left, which show the names of their rows.
        below: empty axes below all panels.
    """

    figure: Figure
    panels: dict[tuple[str, str], Axes]
    first: list[Axes]
    below: Axes


def make_grid(groups: Sequence[Group], heights: dict[str, float], bottom: float, width: float) -> Grid:
    """Make a figure with an empty panel for each student and kind of labels.

    Args:
        groups: the groups to draw.
        heights: regime -> height of its panels in cm, without titles and ticks.
        bottom: height in cm of the part below the panels.
        width: width in cm.
    """
    students = list(dict.fromkeys(group.student for group in groups))
    columns = min(len(students), SIDE_BY_SIDE)
    blocks = [students[start : start + columns] for start in range(0, len(students), columns)]
    rows = [(block, regime) for block in blocks for regime in heights]
    tall = [heights[regime] for _, regime in rows]
    figure = plotting.new_figure(width, sum(tall) + PANEL * len(rows) + bottom)
    parts = figure.add_gridspec(len(rows) + 1, columns, height_ratios=[*tall, bottom])
    used = {(group.student, group.regime) for group in groups}
    panels = {}
    first = []
    for row, (block, regime) in enumerate(rows):
        for column, student in enumerate(block):
            if (student, regime) in used:
                panel = figure.add_subplot(parts[row, column])
                panel.set_title(wrap(f"{student}, {REGIMES[regime]}", TITLE))
                panels[student, regime] = panel
                first += [panel] if column == 0 or (block[0], regime) not in used else []
    below = figure.add_subplot(parts[len(rows), :])
    below.axis("off")
    return Grid(figure, panels, first, below)


def width_of(groups: Sequence[Group]) -> float:
    """Return the width of a figure in cm: that of a page if there are several students."""
    return NARROW if len({group.student for group in groups}) == 1 else plotting.PAGE


def regimes_of(groups: Sequence[Group]) -> list[str]:
    """Return the kinds of labels of `groups` in the order of REGIMES."""
    return [regime for regime in REGIMES if any(group.regime == regime for group in groups)]


def draw_top1(groups: list[Group]) -> Figure:
    """Draw the last epoch's top-1 of every group: mean, standard deviation, and each seed as a small grey point."""
    looks = looks_of(groups)
    series = {r: list(dict.fromkeys(g.series for g in groups if g.regime == r)) for r in regimes_of(groups)}
    names = {name: wrap(name, NAMES, SMALL) for name in looks}
    lines = max(name.count("\n") + 1 for name in names.values())
    heights = {regime: (LINE * lines + 0.25) * len(rows) + 0.2 for regime, rows in series.items()}
    width = width_of(groups)
    several = any(len(group.runs) > 1 for group in groups)
    unequal = len({len(group.runs) for group in groups}) > 1
    notes = ["last epoch", *counts_of(groups)]
    if several:
        notes += ["markers and bars: mean ± standard deviation over seeds", "small points: each seed"]
    text, height = note_of(notes, groups, width)
    grid = make_grid(groups, heights, height + 0.1, width)
    for group in groups:
        panel = grid.panels[group.student, group.regime]
        y = series[group.regime].index(group.series)
        last = group.last()
        seeds = list(group.by_seed().values())
        if len(seeds) > 1:
            panel.plot(seeds, [y + 0.22] * len(seeds), "o", color="0.6", markersize=2, markeredgewidth=0, zorder=2)
        look = looks[group.series] | {"linestyle": "none"}
        panel.errorbar(last.mean, y, xerr=last.deviation, capsize=2, elinewidth=0.9, zorder=3, **look)
        if unequal:
            panel.annotate(f"n = {last.n}", (1, y), **AT_SIDE)
    for (_, regime), panel in grid.panels.items():
        rows = series[regime]
        panel.set(yticks=range(len(rows)), yticklabels=[], ylim=(len(rows) - 0.5, -0.5))
        if panel in grid.first:
            panel.set_yticklabels([names[name] for name in rows])
        panel.grid(visible=False, axis="y")
        panel.tick_params(axis="y", length=0)
    finish_percent(grid, groups, "x")
    for panel in grid.panels.values():
        panel.set_xlabel("top-1 (%)")
    write_note(grid.below, text)
    return grid.figure


def draw_curves(groups: list[Group]) -> Figure:
    """Draw validation top-1 over epochs: for each group, the mean over seeds with a band of ± standard deviation."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    looks = looks_of(groups)
    width = width_of(groups)
    names = {name: wrap(name, width - 2, SMALL) for name in looks}
    columns = max(1, min(len(looks), int(width / (max(map(width_of_text, names.values())) + 1.2))))
    lines = math.ceil(len(looks) / columns) * (max(name.count("\n") for name in names.values()) + 1)
    band = any(len(group.runs) > 1 for group in groups)
    notes = ["lines: mean over seeds", *(["bands: ± standard deviation"] if band else []), *counts_of(groups)]
    text, height = note_of(notes, groups, width)
    bottom = height + lines * LINE * 1.15 + 0.4
    grid = make_grid(groups, dict.fromkeys(regimes_of(groups), 3.6), bottom, width)
    for group in groups:
        curves = [run.curve for run in group.runs.values()]
        epochs = sorted(set.intersection(*(set(curve) for curve in curves)))  # epochs that all runs evaluated
        values = [[curve[epoch] for curve in curves] for epoch in epochs]
        means = [statistics.fmean(v) for v in values]
        panel, look = grid.panels[group.student, group.regime], looks[group.series]
        done = [epoch + 1 for epoch in epochs]  # number of epochs trained
        panel.plot(done, means, markevery=max(1, len(done) // 12), **look)
        if len(curves) > 1:
            deviations = [statistics.stdev(v) for v in values]
            low = [max(mean - deviation, 0) for mean, deviation in zip(means, deviations, strict=True)]
            high = [min(mean + deviation, 100) for mean, deviation in zip(means, deviations, strict=True)]
            panel.fill_between(done, low, high, color=look["color"], alpha=0.15, linewidth=0)
    finish_percent(grid, groups, "y")
    for panel in grid.panels.values():
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        panel.set_xlabel("epochs trained")
        if panel in grid.first:
            panel.set_ylabel("top-1 (%)")
    handles = [Line2D([], [], label=names[name], **look) for name, look in looks.items()]
    legend = grid.below.legend(
        handles=handles,
        loc="upper center",
        ncol=columns,
        borderaxespad=0,
        handlelength=3,
        bbox_to_anchor=(0.5, 1),
        bbox_transform=across(grid.below),
    )
    legend.set_in_layout(False)
    write_note(grid.below, text)
    return grid.figure


def draw_forest(effects: Sequence[Effect], versus: str, better: str) -> Figure:
    """Draw differences of top-1 with their 95 % confidence intervals, one row each, and a line at 0.

    Args:
        effects: the differences, at least one. A row without an interval has a point alone.
        versus: name of what is subtracted.
        better: name of what is better if a difference is above 0.
    """
    width = plotting.PAGE
    names = [wrap(effect.name, 6.0, SMALL) for effect in effects]
    heights = [LINE * (name.count("\n") + 1) + 0.25 for name in names]
    paired = all(effect.difference.paired for effect in effects)
    notes = ["bars: 95 % confidence interval of one comparison (Student's t)", "hollow: the interval includes 0"]
    notes.append("n: pairs of runs with the same seed" if paired else "n: seeds, or pairs of runs with the same seed")
    limit = reach_of(effects)
    if any(max(map(abs, ends_of(effect))) > limit for effect in effects):
        notes.append("arrows: the interval goes on")
    if not all(effect.difference.known for effect in effects):
        notes.append("no bar: too few seeds for an interval")
    note = wrap("; ".join(notes), width - 1, SMALL)
    bottom = LINE * (note.count("\n") + 1) + 0.2
    figure = plotting.new_figure(width, sum(heights) + 1.3 + bottom)
    panel, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": [sum(heights), bottom]})
    below.axis("off")
    places = [sum(heights[:row]) + heights[row] / 2 for row in range(len(effects))]
    for place, effect in zip(places, effects, strict=True):
        draw_effect(panel, place, effect, limit)
    ends = [end for effect in effects for end in ends_of(effect)]
    left, right = max(min(*ends, 0), -limit), min(max(*ends, 0), limit)
    margin = 0.05 * (right - left)
    panel.axvline(0, color=GREY, linewidth=0.9, zorder=1)
    panel.set(yticks=places, yticklabels=names, ylim=(sum(heights), 0), xlim=(left - margin, right + margin))
    panel.set_xlabel(wrap(f"{better} minus {versus}, top-1 (percentage points)", 9.0))
    panel.grid(visible=False, axis="y")
    panel.tick_params(axis="y", length=0)
    write_note(below, note)
    return figure


def draw_effect(panel: Axes, place: float, effect: Effect, limit: float) -> None:
    """Draw a row of a forest plot: a point, its interval cut at ± `limit`, and the figures at the right."""
    difference = effect.difference
    low, high = ends_of(effect)
    shown = difference.known and low * high > 0
    look: dict[str, Any] = {"color": plotting.BLUE, "zorder": 3}
    if difference.known:
        panel.plot([max(low, -limit), min(high, limit)], [place, place], linewidth=1.2, label="interval", **look)
        for beyond, end, marker in ((low < -limit, -limit, "<"), (high > limit, limit, ">")):
            if beyond:
                panel.plot([end], [place], marker, **look)
    panel.plot(
        [difference.mean], [place], "s", markersize=4, markerfacecolor=plotting.BLUE if shown else "white", **look
    )
    seeds = " and ".join(map(str, difference.seeds)) if not difference.paired else str(difference.seeds[0])
    interval = f" ({interval_text(difference)})" if difference.known else ""
    panel.annotate(
        f"{difference.mean:+.2f}{interval}, n = {seeds}",
        (1, place),
        **AT_SIDE,
    )


def ends_of(effect: Effect) -> tuple[float, float]:
    """Return the ends of the interval of an effect; the difference itself if there is no interval."""
    difference = effect.difference
    return difference.interval if difference.known else (difference.mean, difference.mean)


def reach_of(effects: Sequence[Effect]) -> float:
    """Return the largest absolute difference that a forest plot shows, in points.

    Intervals of two seeds are ten times as wide as others, and would squeeze these. They are cut at the largest
    difference plus three times the median half-width of all intervals.
    """
    halves = [(high - low) / 2 for low, high in map(ends_of, effects)]
    furthest = max(abs(effect.difference.mean) for effect in effects)
    ends = max(abs(end) for effect in effects for end in ends_of(effect))
    return min(100.0, max(min(ends, furthest + 3 * statistics.median(halves)), LEAST / 5))


def finish_percent(grid: Grid, groups: Sequence[Group], which: str) -> None:
    """Limit axes of top-1 to 0 to 100 %, let them span at least LEAST points, and draw chance if it is inside them."""
    from matplotlib.ticker import MaxNLocator

    for (student, regime), panel in grid.panels.items():
        axis, get, put = (
            (panel.xaxis, panel.get_xlim, panel.set_xlim)
            if which == "x"
            else (panel.yaxis, panel.get_ylim, panel.set_ylim)
        )
        low, high = get()
        missing = max(LEAST - (high - low), 0) / 2
        put(low - missing, high + missing)
        plotting.limit_percent(panel, which)
        axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        low, high = get()
        chances = {g.chance for g in groups if (g.student, g.regime) == (student, regime)} - {None}
        for chance in chances:
            if chance is not None and low <= chance <= high:
                plotting.add_chance(panel, round(100 / chance), which)


def counts_of(groups: Sequence[Group]) -> list[str]:
    """Return a text with the number of seeds of the groups, in a list."""
    counts = sorted({len(group.runs) for group in groups})
    if len(counts) == 1:
        return [f"n = {counted(counts[0], 'seed')} each"]
    return [f"n = {counts[0]} to {counts[-1]} seeds"]


def note_of(notes: Sequence[str], groups: Sequence[Group], width: float) -> tuple[str, float]:
    """Return the text below a figure, with the chance of the groups, and the height of the text in cm."""
    chances = sorted({group.chance for group in groups if group.chance is not None})
    said = [*notes, *(f"chance: {chance:.3g} %" for chance in chances)]
    text = wrap("; ".join(said), width - 1, SMALL)
    return text, LINE * (text.count("\n") + 1)


def write_note(below: Axes, text: str) -> None:
    """Write a small grey text at the lower edge of the axes below the panels, in the middle of the figure."""
    note = below.text(0.5, 0, text, ha="center", va="bottom", fontsize=SMALL, color=GREY, transform=across(below))
    note.set_in_layout(False)


def across(below: Axes) -> Any:
    """Return coordinates whose x is a share of the width of the figure, and y of the height of the axes `below`."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(below.figure.transFigure, below.transAxes)


def width_of_text(text: str) -> float:
    """Return the width in cm of the longest line of a small text."""
    return max(plotting.text_width(line, SMALL) for line in text.split("\n"))
