"""Groups of a report are named in words, its figures stay inside their axes, and its web page works in a browser."""

import csv
import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path, PurePath

import pytest
from finished_runs import make_run
from helpers import run
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import every_setting
from utils.report import command
from utils.report.evidence import find_evidence
from utils.report.figures import Effect, draw_curves, draw_forest, draw_top1, drawing
from utils.report.groups import group_runs
from utils.report.runs import FinishedRun, find_runs
from utils.report.settings import LABEL_FACTS
from utils.report.significance import Difference
from utils.report.tables import Table
from utils.report.web_page import sort_key, table_html
from utils.report.words import WORDS, changes_in_words, short_paths

POLICY = {"seed": 42, "min_scale": 0.08, "mix_type": "cutmix", "cutmix_alpha": 1.0, "hflip": 0.5}
BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome-headless-shell", "chrome"


def label_facts(min_scale=0.08, bits=16, teacher="resnet18", **changed):
    """Return entries of `labels` in summary.json, as packed labels have them."""
    return {
        "policy": POLICY | {"min_scale": min_scale},
        "codec": {"bits": bits, "keep_topk": None, "views": "stored"},
        "settings": {"teachers": [{"arch": teacher, "weights": teacher.ljust(32, "0")}], "ensemble": "mean"},
        "num_classes": 10,
        **changed,
    }


def finished(name, seed=0, top1=60.0, facts=None, **changed):
    """Return a finished run without files."""
    args = {"model": "resnet18", "seed": seed, "epochs": 4, "loss_type": "kl", "train_dir": "data/d", **changed}
    last = {"epoch": 3, "top1": top1, "top5": 99.0}
    labels = {"dialect": "packed"} | (facts or {})
    summary = {"args": args, "last": last, "best": last, "labels": labels, "images": {"digest": args["train_dir"]}}
    return FinishedRun(Path(name), summary, {0: 12.0, 3: top1})


def test_every_setting_has_words():
    """A new setting that keeps runs apart needs an entry in WORDS; so do the facts of labels."""
    compared = {name for name, about in every_setting().items() if about.meaning.report} - {"seed"}
    assert not compared - WORDS.keys()
    assert all(any(part.startswith(f"labels.{fact}") for part in WORDS) for fact in LABEL_FACTS)


def test_groups_are_named_by_what_differs():
    """Two label sets differ in the policy of their views, their bits and their teacher: no dict, no digest."""
    pair = [
        finished("a", facts=label_facts(), labels="v2:" + "1" * 32, fkd_path="x/a", epochs=100),
        finished("b", facts=label_facts(0.5, 4, "resnet50"), labels="v2:" + "2" * 32, fkd_path="x/b", epochs=300),
    ]
    one, other = group_runs(pair)[0]
    assert one.name == "resnet18, soft labels, d, teacher resnet18, labels at 16 bits, crops ≥ 0.08, epochs 100"
    assert other.name == "resnet18, soft labels, d, teacher resnet50, labels at 4 bits, crops ≥ 0.5, epochs 300"
    assert changes_in_words(["labels.policy", "sgd"], one.values, other.values | {"sgd": True}) == [
        "smallest crop 0.08 against 0.5",
        "optimizer none against SGD",
    ]


def test_label_sets_that_differ_in_nothing_known_are_named_by_their_folders():
    """Paths are cut to the shortest end that tells them apart; folders of one path get digests."""
    pair = [finished(str(n), labels=f"v2:{n}" + "0" * 31, fkd_path=f"save/{n}/labels") for n in (1, 2)]
    assert [group.words for group in group_runs(pair)[0]] == [("labels 1/labels",), ("labels 2/labels",)]
    pair = [finished(str(n), labels=f"v2:{n}" + "0" * 31, fkd_path="save/labels") for n in (1, 2)]
    assert [group.words[0] for group in group_runs(pair)[0]] == ["labels labels (100000)", "labels labels (200000)"]


def test_groups_whose_values_are_cut_alike_are_numbered():
    """Two long values that differ at the end are the same words."""
    pair = [finished(str(n), facts={"settings": {"new": "x" * 50 + str(n)}}) for n in (1, 2)]
    assert [group.words[-1] for group in group_runs(pair)[0]] == ["number 1", "number 2"]


SOME_FACTS = st.fixed_dictionaries(
    {},
    optional={
        "policy": st.fixed_dictionaries({"min_scale": st.sampled_from([0.08, 0.5]), "hflip": st.sampled_from([0, 1])}),
        "codec": st.fixed_dictionaries({"bits": st.sampled_from([4, 16]), "keep_topk": st.sampled_from([None, 5])}),
        "settings": st.fixed_dictionaries(
            {"teachers": st.lists(st.fixed_dictionaries({"arch": st.sampled_from(["r18", "r50"])}), max_size=2)},
            optional={"new": st.dictionaries(st.sampled_from("ab"), st.sampled_from(["x" * 50, "x" * 50 + "y"]))},
        ),
        "epochs": st.sampled_from([100, 300]),
    },
)
SOME_RUN = st.fixed_dictionaries(
    {"facts": SOME_FACTS},
    optional={
        "sgd": st.booleans(),
        "milestones": st.lists(st.integers(1, 3), max_size=2),
        "ema_decay": st.sampled_from([None, 0.99]),
        "labels": st.sampled_from(["v2:" + "0" * 32, "v2:" + "0" * 31 + "1"]),
        "teachers": st.sampled_from([None, [{"arch": "r18", "weights": "a"}], [{"arch": "r18", "weights": "b"}]]),
    },
)


@given(st.lists(SOME_RUN, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_names_are_unique_words(several):
    """Whatever the groups differ in, no two have the same name, and no name looks like Python."""
    groups, _ = group_runs([finished(str(number), **changed) for number, changed in enumerate(several)])
    assert len({group.name for group in groups}) == len(groups)
    assert not [group.name for group in groups if re.search(r"[{}\[\]']|None", group.name)]


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=5))
def test_short_paths_are_unique_ends(several):
    """A name is the shortest end of its path that no other path has."""
    paths = {f"v2:{number}00000": PurePath(*parts) for number, parts in enumerate(several)}
    names = short_paths(paths)
    assert len(set(names.values())) == len(paths)
    for key, name in names.items():
        if "(" not in name:
            shorter = PurePath(*PurePath(name).parts[1:]).parts
            assert paths[key].parts[-len(PurePath(name).parts) :] == PurePath(name).parts
            others = [path for other, path in paths.items() if other != key]
            assert not shorter or any(path.parts[-len(shorter) :] == shorter for path in others)


def groups_with(top1, names=("distilled", "random"), seeds=3, spread=0.1, **changed):
    """Return groups with image sets of these names, whose mean top-1 are `top1`."""
    runs = [
        finished(f"{name}{seed}", seed, min(max(mean + (seed - 1) * spread, 0), 100), train_dir=name, **changed)
        for name, mean in zip(names, itertools.cycle(top1), strict=False)
        for seed in range(seeds)
    ]
    return group_runs(runs)[0]


@pytest.mark.parametrize(("top1", "seeds"), [((99.95, 0.05), 3), ((100, 99.9), 1), ((60.1, 60.0), 5), ((0, 0), 2)])
def test_axes_of_top1_end_at_0_and_100(top1, seeds):
    """Also with bars and bands that would reach further; an axis without any spread still has a width."""
    with drawing():
        figures = [draw(groups_with(top1, seeds=seeds)) for draw in (draw_top1, draw_curves)]
    for figure, which in zip(figures, ("get_xlim", "get_ylim"), strict=True):
        figure.draw_without_rendering()
        for panel in figure.axes[:-1]:
            low, high = getattr(panel, which)()
            assert (0 <= low < high <= 100, high - low > 0.2) == (True, True)


def test_each_panel_has_an_axis_of_its_own():
    """Two points between soft labels are a large part of their panel, though hard labels are 40 points lower."""
    groups = groups_with((92, 90)) + groups_with((50, 48), loss_type="ce")
    with drawing():
        panels = draw_top1(groups).axes[:-1]
    assert [panel.get_title(loc="left") for panel in panels] == ["resnet18, hard labels", "resnet18, soft labels"]
    assert all(high - low < 3 for low, high in (panel.get_xlim() for panel in panels))


@pytest.mark.parametrize(("classes", "drawn"), [(10, True), (1000, False)])
def test_chance_is_drawn_where_the_axis_shows_it(classes, drawn):
    """The note below states it in any case."""
    with drawing():
        figure = draw_top1(groups_with((10.2, 9.8), facts={"num_classes": classes}))
    assert any(text.get_text() == "chance" for text in figure.axes[0].texts) == drawn
    assert f"chance: {100 / classes:g} %" in " ".join(figure.axes[-1].texts[0].get_text().split())


def test_the_forest_shows_the_intervals_of_the_table(tmp_path):
    """Each bar ends where the columns of evidence.csv say."""
    for number, (name, top1) in enumerate({"random": 50, "d": 53, "e": 49}.items()):
        for seed in range(3):
            make_run(tmp_path, f"{name}{seed}", top1 + (seed - 1) * (0.5 + number / 3), seed, images=name)
    result = run(command, tmp_path, "--output", tmp_path / "out")
    assert result.code == 0, result.err
    with open(tmp_path / "out" / "evidence.csv") as file:
        rows = list(csv.DictReader(file))
    findings = find_evidence(group_runs(find_runs([str(tmp_path)]).finished)[0], "random", {})
    with drawing():
        panel = draw_forest([Effect(f.group.name, f.difference) for f in findings], "random", "set").axes[0]
    bars = [line.get_xdata() for line in panel.lines if line.get_label() == "interval"]
    expected = [[float(row["ior_low"]), float(row["ior_high"])] for row in rows]
    assert [list(bar) for bar in bars] == [pytest.approx(ends, rel=1e-6) for ends in expected]
    assert [tick.get_text() for tick in panel.get_yticklabels()] == [row["name"] for row in rows]
    page = (tmp_path / "out" / "report.md").read_text()
    assert all(f"{low:+.2f} to {high:+.2f}" in page for low, high in expected)


def test_a_huge_interval_does_not_hide_the_others():
    """It is cut with an arrow, and the note says so; without an interval there is only a point."""
    small = [Effect(str(n), Difference(n / 10, True, (5, 5), (0.1,))) for n in range(4)]
    with drawing():
        figure = draw_forest(
            [
                *small,
                Effect("x", Difference(0.2, True, (2, 2), (5.0,))),
                Effect("y", Difference(0.1, True, (1, 1), ())),
            ],
            "a",
            "b",
        )
    panel, below = figure.axes
    assert panel.get_xlim()[1] < 1
    assert {line.get_marker() for line in panel.lines} >= {"<", ">"}
    note = " ".join(below.texts[0].get_text().split())
    assert "arrows: the interval goes on; no bar: too few seeds for an interval" in note
    assert sum(line.get_label() == "interval" for line in panel.lines) == 5


NAMES = {
    "one": ["distilled"],
    "eighteen": [f"set_{number}" for number in range(18)],
    "long": [f"a_name_of_a_distilled_image_set_with_40_{number:02}" for number in range(3)],
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_nothing_overlaps(names):
    """Legend, note and panels have their own places, all inside the figure; names of rows do not touch."""
    groups = groups_with((60, 70, 65.5), names)
    effects = [Effect(group.name, Difference(1.0, True, (3, 3), (0.5,))) for group in groups]
    with drawing():
        figures = [draw_top1(groups), draw_curves(groups), draw_forest(effects, "random", "image set")]
    for figure in figures:
        figure.draw_without_rendering()
        *panels, below = figure.axes
        legend = [below.get_legend()] if below.get_legend() else []
        boxes = [part.get_window_extent() for part in [*below.texts, *legend]]
        boxes += [panel.get_tightbbox() for panel in panels]
        rows = [tick.get_window_extent() for panel in panels for tick in panel.get_yticklabels() if tick.get_text()]
        for several in (boxes, rows):
            assert not [pair for pair in itertools.combinations(several, 2) if pair[0].overlaps(pair[1])]
        width, height = figure.bbox.width, figure.bbox.height
        for box in boxes:
            assert -1 <= box.x0 < box.x1 <= width + 1, (box, width)
            assert -1 <= box.y0 < box.y1 <= height + 1, (box, height)


class Checker(HTMLParser):
    """Collects unbalanced tags, links, and the text of a page."""

    VOID = "meta", "img", "br", "link", "hr", "input"

    def __init__(self):
        super().__init__()
        self.open, self.links, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag in self.VOID else [tag]
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


EVIL = '<b>&"evil" 🐍'


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Write a report on three image sets, one of which has a name that is no HTML, and a comparison of two of them."""
    root = tmp_path_factory.mktemp("pages")
    for name, top1 in ((EVIL, 9.5), ("d", 80), ("random", 50)):
        for seed in range(3):
            place = {EVIL: "evil"}.get(name, name)
            make_run(root, f"{place}/{seed}", top1 + seed / 2, seed, images=name, facts=label_facts(settings=None))
    (root / "d" / "2" / "summary.json").unlink()
    for words in ([root], ["--compare", root / "evil", root / "d"]):
        result = run(command, *words, "--output", root / "out")
        assert result.code == 0, result.err
    return root / "out"


@pytest.mark.parametrize("name", ["report", "compare"])
def test_pages_are_complete_and_need_nothing_else(name, pages):
    """Tags are balanced, text is escaped, figures are inside, and there is no address of another file."""
    text = (pages / f"{name}.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert [link for link in checker.links if not link.startswith(("data:image/svg+xml;base64,", "#s"))] == []
    assert not re.search(r"https?:", text)
    assert f"resnet18, soft labels, {EVIL}" in " ".join(checker.texts)
    assert "<b>&" not in text
    figures = {"report": 3, "compare": 1}[name]
    assert (text.count("<figure>"), sum(link.startswith("data:") for link in checker.links)) == (figures, figures)
    for title in (
        "The answer in words",
        "Settings that all runs share",
        "Where the figures come from",
        "smallest crop",
    ):
        assert title in text
    if name == "report":
        assert "Unfinished runs" in text


def test_cells_have_keys_for_sorting():
    """Numbers are compared as numbers, with their units; a cell without a number has no key."""
    cells = ["93.98 ± 0.31", "+1.20", "1,234 MB", "9,999 B", "< 0.001", "–", "", "-0.48 to +4.48"]
    assert [sort_key(cell) for cell in cells] == [93.98, 1.2, 1.234e9, 9999, 0.001, None, None, -0.48]
    text = table_html(Table("t", ["name", "n", "remark"], [["5", "5", "5"]], remark=True))
    assert text.count('data-key="5"') == 1


PROBE = """<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("securitypolicyviolation", event => errors.push(event.violatedDirective));
addEventListener("load", () => {
  const table = document.querySelectorAll("table")[0];
  const column = name => [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === name);
  const read = name => [...table.tBodies[0].rows].map(row => row.cells[column(name)].textContent).join("|");
  const click = name => table.tHead.rows[0].cells[column(name)].querySelector("button").click();
  const found = [];
  for (const name of ["top-1 (%)", "top-1 (%)", "images"]) { click(name); found.push(read(name)); }
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  document.documentElement.dataset.found = JSON.stringify({found, broken, wide, errors});
});
</script>"""


def test_a_browser_sorts_the_tables(pages, tmp_path):
    """Numbers are sorted as numbers (9.5 below 80), twice in turn, then names; the console has no error."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser on PATH ({', '.join(BROWSERS)})")
    copy = tmp_path / "copy.html"
    copy.write_text((pages / "report.html").read_text().replace("<body>", f"<body>{PROBE}"))
    command_line = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=400,800", "--dump-dom"]
    command_line += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0", copy.as_uri()]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', done.stdout)[1]))
    assert (found["errors"], found["broken"], found["wide"]) == ([], 0, False)
    assert not re.search(r"CONSOLE.*", done.stderr)
    figures = ["80.25 ± 0.35", "50.50 ± 0.50", "10.00 ± 0.50"]
    assert found["found"] == ["|".join(figures), "|".join(figures[::-1]), f"{EVIL}|d|random"]
