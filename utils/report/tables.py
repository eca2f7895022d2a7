"""Writes tables as Markdown, LaTeX (booktabs) and CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from utils.report.groups import Spread
from utils.report.significance import Difference

NONE = "–"  # text of a table cell without a value
SPECIAL = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "–": "--",
    "…": r"\dots{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "→": r"$\to$",
    "²": r"\textsuperscript{2}",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}


@dataclass(frozen=True)
class Table:
    """A table whose cells are texts.

    Attributes:
        title: heading in Markdown, caption in LaTeX.
        columns: headings of the columns.
        rows: rows of cells, one text per column.
        note: explanation below the table; may be empty.
        left: number of columns to align left, counted from the first; the other columns are right-aligned.
        remark: whether the last column has long text; it is then left-aligned, and LaTeX may wrap it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    left: int = 1
    remark: bool = False

    def is_number(self, column: int) -> bool:
        """Return whether a column is right-aligned, so that its cells begin with numbers."""
        return column >= self.left and not (self.remark and column == len(self.columns) - 1)

    def markdown(self) -> str:
        """Return the table in Markdown, with the title as a heading above and the note below."""
        marks = ["---"] * self.left + ["---:"] * (len(self.columns) - self.left)
        marks[-1] = "---" if self.remark else marks[-1]
        lines = [self.columns, marks, *([cell.replace("|", "\\|") for cell in row] for row in self.rows)]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.title}\n\n{body}\n" + (f"\n{self.note}\n" if self.note else "")

    def latex(self) -> str:
        """Return the table as a LaTeX `table` environment, with a caption and the rules of the package booktabs."""
        kinds = "l" * self.left + "r" * (len(self.columns) - self.left)
        kinds = f"{kinds[:-1]}p{{50mm}}" if self.remark else kinds
        lines = [" & ".join(map(tex, row)) + r" \\" for row in (self.columns, *self.rows)]
        title = self.title if self.title.endswith("?") else f"{self.title}."
        caption = f"{title} {self.note}".strip()
        return "\n".join(
            [
                r"\begin{table}[ht]\centering\footnotesize\setlength{\tabcolsep}{3pt}",
                rf"\caption{{{tex(caption)}}}",
                rf"\begin{{tabular}}{{{kinds}}}",
                *(r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"),
                r"\end{tabular}",
                r"\end{table}",
            ]
        )


def tex(text: str) -> str:
    """Escape a text for LaTeX; letters outside Latin-1 become question marks."""
    escaped = "".join(SPECIAL.get(letter, letter) for letter in text)
    return escaped.encode("latin-1", "replace").decode("latin-1")


def document(tables: Sequence[Table]) -> str:
    """Return a complete LaTeX document that contains all tables."""
    head = [r"\documentclass{article}", r"\usepackage[margin=15mm]{geometry}"]
    head += [r"\usepackage{booktabs}  % \toprule, \midrule, \bottomrule: a paper needs it too", r"\begin{document}"]
    return "\n\n".join(["\n".join(head), *(table.latex() for table in tables), r"\end{document}"]) + "\n"


def csv_text(columns: Sequence[str], rows: Sequence[dict]) -> str:
    """Return rows as CSV text with a header. None becomes an empty cell; floats have seven significant digits."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {name: "" if value is None else value for name, value in row.items()}
        writer.writerow({name: f"{v:.7g}" if isinstance(v, float) else v for name, v in cells.items()})
    return out.getvalue()


def with_deviation(value: Spread | None) -> str:
    """Return mean and standard deviation as text for a table cell: `93.98 ± 0.31`.

    A single value has no deviation and is shown alone. None is shown as a dash.
    """
    if value is None:
        return NONE
    return f"{value.mean:.2f}" if value.deviation is None else f"{value.mean:.2f} ± {value.deviation:.2f}"


def with_error(value: Spread | None, sign: bool = False) -> str:
    """Return mean and standard error as text for a table cell: `1.20 ± 0.35`, or `+1.20 ± 0.35` with `sign`.

    A single value has no error and is shown alone. None is shown as a dash.
    """
    if value is None:
        return NONE
    mean = f"{value.mean:+.2f}" if sign else f"{value.mean:.2f}"
    return mean if value.error is None else f"{mean} ± {value.error:.2f}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural, such as `1 seed` or `3 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def interval_text(difference: Difference) -> str:
    """Return a 95 % interval as text for a table cell: `-0.48 to +4.48`; a dash if the runs give none."""
    if not difference.known:
        return NONE
    low, high = difference.interval
    return f"{low:+.2f} to {high:+.2f}"


def size(count: float | None) -> str:
    """Return a number of bytes as text, like `1,234 MB`; None is shown as a dash.

    The unit is the first of B, kB, MB and GB in which the number has at most four digits. Larger numbers are in TB.
    """
    if count is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if count < 9999.5:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.0f} TB"
