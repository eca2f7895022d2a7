"""Write the page report.html or compare.html: one file without external resources, readable without JavaScript.

Figures are embedded as SVG. A small script sorts a table when the heading of a column is clicked.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from utils.report.tables import Table

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #f3f4f6; --line: #d0d4da; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181c; --soft: #22252b; --line: #444a54; --mark: #6cb8e8; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
nav ul, ul.answers { padding-left: 1.2rem; } ul.answers li { margin: .5rem 0; }
a { color: var(--mark); }
.warnings { border-left: .3rem solid #d55e00; background: var(--soft); padding: .5rem 1rem; }
.table { overflow-x: auto; } .table:focus { outline: 2px solid var(--mark); }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--soft); border-bottom-width: 2px; vertical-align: bottom; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.text { min-width: 7rem; max-width: 26rem; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--mark); }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
.note { font-size: .9rem; max-width: 60rem; }
figure { margin: 1rem 0; } figure div { overflow-x: auto; } figcaption { font-size: .9rem; }
figure img { display: block; width: max(100%, 34rem); max-width: 52rem; height: auto;
  background: #fff; border: 1px solid var(--line); }
@media print {
  body { max-width: none; font-size: 9pt; } nav { display: none; } .table { overflow: visible; }
  table { font-size: 7pt; } figure img { width: 100%; } tr, figure { break-inside: avoid; } h2 { break-after: avoid; }
}
"""
SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("number");
      const first = numeric ? "descending" : "ascending", second = numeric ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? second : first;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = row => row.cells[column].dataset.key ?? (numeric ? "" : row.cells[column].textContent);
      const compare = (a, b) => numeric ? a - b : a.localeCompare(b, undefined, {numeric: true});
      const rows = [...table.tBodies[0].rows];
      rows.sort((one, other) => {
        const a = key(one), b = key(other);
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * compare(a, b);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
"""
# the page may load nothing, run no script but its own, and send nothing
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
HOW_TO_READ = {
    "Runs and seeds": "A row averages runs that differ only in the seed of the student's initial weights. n is their "
    "number. Runs that differ in any other setting are in different rows, and the names say in what they differ.",
    "Top-1": "Share of the validation images whose class the student ranks first, in percent, after the last epoch. "
    "The best top-1 of a run was picked on the validation images themselves, so it is too good by an unknown amount.",
    "Standard deviation (±)": "How much top-1 varies from seed to seed. Beside differences, ± is the standard error of "
    "the mean difference.",
    "95 % interval": "Range in which the true difference lies, by Student's t, if the seeds are a fair sample. If it "
    "includes 0, the runs do not show which one is better; that is no proof that they are equal. An interval holds for "
    "one comparison: of twenty, one misses by chance.",
    "Pairs": "Runs with the same seed start from the same weights. Their difference varies less than the runs do.",
    "Labels": "hard labels: the class of the image alone. soft labels: stored answers of a teacher. live teacher: the "
    "teacher answers during training.",
    "Chance": "Top-1 of a random guess: 100 % divided by the number of classes.",
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        path: SVG file.
        caption: text below it, which also describes it to people who do not see it.
    """

    path: Path
    caption: str


def web_page(
    title: str,
    summary: Sequence[str],
    warnings: Sequence[str],
    answers: Sequence[str],
    pictures: Sequence[Picture],
    tables: Sequence[Table],
) -> str:
    """Return the page as HTML text.

    Args:
        title: title of the page.
        summary: sentences at the top.
        warnings: sentences that a reader must know before the figures.
        answers: sentences that state what the runs show.
        pictures: figures to embed.
        tables: tables in the order of the page.
    """
    parts = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(text)}</p>" for text in summary)]
    if warnings:
        parts.append(f'<div class="warnings" role="note"><strong>Before you read on</strong>{items(warnings)}</div>')
    sections = []
    if answers:
        sections.append(("The answer in words", items(answers, "answers")))
    if pictures:
        sections.append(("Figures", "".join(map(embedded, pictures))))
    sections += [(table.title, table_html(table)) for table in tables]
    how = "".join(
        f"<dt><strong>{escape(name)}</strong></dt><dd>{escape(text)}</dd>" for name, text in HOW_TO_READ.items()
    )
    sections.append(("How to read the numbers", f"<dl>{how}</dl>"))
    links = "".join(f'<li><a href="#s{n}">{escape(name)}</a></li>' for n, (name, _) in enumerate(sections))
    parts.append(f'<nav aria-label="contents"><ul>{links}</ul></nav>')
    parts += [f'<section id="s{n}"><h2>{escape(name)}</h2>{body}</section>' for n, (name, body) in enumerate(sections)]
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def items(texts: Sequence[str], kind: str = "") -> str:
    """Return an HTML list of texts; `kind` is its class."""
    return f'<ul class="{kind}">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'


def embedded(picture: Picture) -> str:
    """Return a figure whose image is part of the page."""
    data = base64.b64encode(picture.path.read_bytes()).decode()
    caption = escape(picture.caption)
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
    return f"<figure><div>{image}</div><figcaption>{caption}</figcaption></figure>"


def table_html(table: Table) -> str:
    """Return a table as HTML. Cells of right-aligned columns get their number as `data-key`, for sorting."""
    numbers = [table.is_number(column) for column in range(len(table.columns))]
    heads = [
        f'<th scope="col" class="{"number" if number else "text"}">{escape(name)}</th>'
        for name, number in zip(table.columns, numbers, strict=True)
    ]
    rows = []
    for row in table.rows:
        cells = []
        for cell, number in zip(row, numbers, strict=True):
            key = sort_key(cell) if number else None
            kept = "" if key is None else f' data-key="{key:.10g}"'
            cells.append(f'<td class="{"number" if number else "text"}"{kept}>{escape(cell)}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    # a region that scrolls can be scrolled by keys if it takes the focus
    region = f'<div class="table" tabindex="0" role="region" aria-label="{escape(table.title)}">'
    return f"{region}<table>{head}<tbody>{''.join(rows)}</tbody></table></div>{note}"


def sort_key(cell: str) -> float | None:
    """Return the number at the start of a cell, times its unit of bytes; None if there is none.

    `93.98 ± 0.31` gives 93.98, `< 0.001` gives 0.001, and `1,234 MB` gives 1.234e9.
    """
    number, _, rest = cell.removeprefix("< ").replace(",", "").partition(" ")
    try:
        return float(number) * {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}.get(rest, 1)
    except ValueError:
        return None
