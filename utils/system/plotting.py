"""Give every figure of the project one look: colours, markers, line styles, font sizes, and wrapped names.

The functions use matplotlib's object-oriented interface, so they need no display and share no state with `pyplot`. They
import matplotlib only when they are called, because the import takes longer than most checks of a command line.

The colours come from the palette of Okabe and Ito, which colour-blind readers can tell apart. In a figure that is
printed in grey, series differ by marker and line style.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.system.errors import printable
from utils.system.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
GREY = "0.45"  # colour of secondary lines and text, still legible on white
CHANCE: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 1}
# the numbers of colours, markers and line styles have no common divisor, so that they combine in all ways
MARKERS = "o", "s", "^", "D", "v", "P", "X", "<", ">"
DASHES: tuple[Any, ...] = ("-", "--", (0, (1, 1)), "-.")
INCH = 2.54  # cm
COLUMN, PAGE = 8.5, 17.5  # widths in cm of a figure in one column, and in two columns, of a journal
SIZE, SMALL = 8.0, 7.0  # font sizes in points: titles and axis labels; ticks, legends and notes
STYLE: dict[str, Any] = {
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": SIZE,
    "axes.titlesize": SIZE,
    "axes.titlelocation": "left",
    "axes.labelsize": SIZE,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": SIZE + 1,
    "grid.linewidth": 0.4,
    "grid.alpha": 0.4,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "lines.markeredgewidth": 0.8,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "pdf.fonttype": 42,  # journals refuse the Type 3 fonts that matplotlib embeds by default
    "text.hinting": "none",  # hinted letters are wider at some sizes, so that `text_width` would be wrong
    "svg.hashsalt": "figure",  # a random salt would give every SVG file other bytes
}
# what matplotlib would write into a file beside the drawing: its version, and the time
UNDATED: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply the style of the project's figures inside a `with` block; a user's matplotlibrc has no influence there.

    Matplotlib reads most of the style when a line, text or axis is made, so the whole drawing belongs in the block.
    """
    from matplotlib.style import context

    with context(["default", STYLE]):
        yield


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Return an empty figure.

    Args:
        width: width in cm, for example COLUMN or PAGE.
        height: height in cm.
        layout: by default, matplotlib moves the parts of the figure when it is saved, so that they do not overlap. None
            if the caller places every part.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / INCH, height / INCH), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def series(number: int) -> dict[str, Any]:
    """Return the look of a series as keyword arguments of `Axes.plot` and `Axes.errorbar`.

    The first 18 series have 18 different markers (filled and hollow). The pair of marker and line style differs up to
    the 36th series. So series can also be told apart in grey, by their marker alone if the line style means something
    else: in that case, replace the entry `linestyle`.

    Args:
        number: number of the series, from 0.
    """
    colour = COLOURS[number % len(COLOURS)]
    hollow = number // len(MARKERS) % 2 == 1
    return {
        "color": colour,
        "marker": MARKERS[number % len(MARKERS)],
        "markerfacecolor": "white" if hollow else colour,
        "markeredgecolor": colour,
        "linestyle": DASHES[number % len(DASHES)],
    }


def save(figure: Figure, path: Path, kinds: tuple[str, ...] = ("png", "pdf"), dpi: float = 300) -> list[Path]:
    """Write a figure as several files that differ only in their suffix; return their paths.

    The same figure always gives the same bytes with the same version of matplotlib.

    Args:
        figure: the figure.
        path: path of the files; its suffix is replaced. The folder must exist.
        kinds: kinds of files: `png`, `pdf`, `svg`.
        dpi: pixels per inch of a PNG file, and of bitmaps in the other kinds.

    Raises:
        InputError: a file cannot be written.
    """
    paths = [path.with_suffix(f".{kind}") for kind in kinds]
    with style():
        for kind, target in zip(kinds, paths, strict=True):
            with atomic_file(target) as temporary:
                figure.savefig(temporary, format=kind, dpi=dpi, metadata=UNDATED[kind])
            if hasattr(figure, "set_layout_engine"):  # from matplotlib 3.6 on
                figure.set_layout_engine("none")  # the parts keep their places, which saves a third of the time
    return paths


def literal(text: str) -> str:
    """Return `text` such that matplotlib draws it as it is: without formulas between dollar signs, or surrogates."""
    return printable(text).replace("$", r"\$")


def text_width(text: str, size: float = SIZE, weight: str = "normal") -> float:
    """Return the width in cm of a line of text.

    Args:
        text: the line.
        size: font size in points.
        weight: `normal` or `bold`.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(
        family="DejaVu Sans", size=size, weight=weight
    )  # matplotlib's own font, which `style` chooses
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width / 72 * INCH


def wrap(text: str, width: float, size: float = SIZE, weight: str = "normal") -> str:
    """Break a text into lines that fit into a width, and return it as `literal` text with line breaks.

    Lines are broken between words. A word that is wider than a line is broken after one of the characters - _ / . , :
    or, if there is none, between letters. No letter is lost.

    Args:
        text: the text; its white space becomes single spaces.
        width: width in cm.
        size: font size in points.
        weight: `normal` or `bold`.
    """

    def fits(line: str) -> bool:
        return text_width(line, size, weight) <= width

    lines = [""]
    for word in printable(text).split():
        if fits(word):
            parts = [word]
        else:
            parts = re.findall(r"[^-_/.,:]*[-_/.,:]+|[^-_/.,:]+", word)
        for number, part in enumerate(parts):
            space = " " if number == 0 and lines[-1] else ""
            if fits(lines[-1] + space + part):
                lines[-1] += space + part
            else:
                lines += broken(part, fits)
    return literal("\n".join(line for line in lines if line))


def broken(part: str, fits: Callable[[str], bool]) -> list[str]:
    """Break text without spaces between letters into lines that fit, each with at least one letter."""
    lines = [""]
    for letter in part:
        if lines[-1] and not fits(lines[-1] + letter):
            lines.append("")
        lines[-1] += letter
    return lines


def limit_percent(axes: Axes, which: str = "y") -> None:
    """Limit an axis that shows percentages to 0 to 100; call this after everything was drawn on it.

    Args:
        axes: the axes.
        which: `x` or `y`.
    """
    get, put = (axes.get_xlim, axes.set_xlim) if which == "x" else (axes.get_ylim, axes.set_ylim)
    low, high = get()
    put(max(low, 0), min(high, 100))


def add_chance(axes: Axes, classes: int, which: str = "y", named: bool = True) -> None:
    """Draw a dotted line at the top-1 of a random guess, 100 / classes percent.

    Args:
        axes: axes whose y-axis (or x-axis) shows top-1 in percent.
        classes: number of classes among which a student chooses.
        which: axis that shows top-1, `x` or `y`.
        named: whether to write `chance` beside the line; False if a legend names it.
    """
    chance = 100 / classes
    place: dict[str, Any] = {"textcoords": "offset points", "color": GREY, "fontsize": SMALL, "annotation_clip": False}
    if which == "y":
        axes.axhline(chance, **CHANCE)
        place |= {"xy": (1, chance), "xycoords": ("axes fraction", "data"), "xytext": (-2, 2), "ha": "right"}
    else:
        axes.axvline(chance, **CHANCE)
        place |= {"xy": (chance, 1), "xycoords": ("data", "axes fraction"), "xytext": (2, -2), "va": "top"}
    if named:
        axes.annotate("chance", **place)
