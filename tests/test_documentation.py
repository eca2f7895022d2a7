"""Commands in README, docs and launchers exist, and every benchmark runs."""

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT, make_images, save_teacher

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "RESULTS.md",
    *(ROOT / "docs").glob("*.md"),
]
PAGES = [page for page in PAGES if page.exists()]
LINKED_PAGES = [*PAGES, ROOT / "CHANGELOG.md"]
COMMAND = re.compile(r"(?:\w+=\S+ )*(?:\S*python3? |sh |torchrun |make )")
# Each benchmark at its smallest; {work} is a folder with images as the demo makes them. Same figures, no meaning.
BENCHMARKS = {
    "gpu": "{work}/gpu --device cpu --quick --rows job relabel",
    "profile_step": "--model shufflenet_v2_x0_5 --setting 2/1 --images 2 --steps 1 --device cpu "
    "--json {work}/profile.json",
    "throughput": "--quick --images 8 --steps 1 --rounds 1 --settings 4/2 --models shufflenet_v2_x0_5 -j 1 "
    "--reference-workers 1 --json {work}/throughput.json",
    "glyphs": "{work}/glyphs --classes 3 --train 2 --distilled 1 --val 1",
    "label_store": "--images 60 --epochs 3 --pool 2 --json {work}/label_store.json",
    "side_by_side": "--quick --images 8 --steps 1 --rounds 1 --setting 4/2 --model shufflenet_v2_x0_5 --students 1 2 "
    "--json {work}/side_by_side.json",
    "many_classes": "{work}/many --glyphs '--classes 4 --train 2 --distilled 2 --val 1' --model shufflenet_v2_x0_5 "
    "--teacher-epochs 1 --epochs 1 --batch-size 4 --topk 2 --bits 8 --seeds 1 --json {work}/many_classes.json "
    "--csv {work}/many_classes.csv --figure {work}/many_classes.png",
    "small_images": "--quick --device cpu --json {work}/small_images.json",
    "memory_table": "--students shufflenet_v2_x0_5 --size 32 --classes 4 --validation 10 --batches 4/2 --ipc 1 "
    "--json {work}/memory_table.json",
    "label_sizes": "--work {work} --seeds 1 --epochs 2 --only full --json {work}/label_sizes.json",
}


def code_of(page):
    """Yield the commands in the code of a Markdown page: blocks that are indented or fenced, and `spans`."""
    text = page.read_text()
    blocks = re.findall(r"(?:^ {4,}.*\n?)+", re.sub(r"^```.*$", "", text, flags=re.M), flags=re.M)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))]
    for block in (*blocks, *fenced, *spans):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.split("  #")[0].strip()
            if COMMAND.match(line):
                yield line


COMMANDS = sorted({(page.name, line) for page in PAGES for line in code_of(page)})


def words_of(line):
    """Return the words of a command line without assignments before it and without placeholders."""
    words = shlex.split(line.replace("…", " ").replace("[", " ").replace("]", " "))
    while words and "=" in words[0]:
        words.pop(0)
    return [word for word in words if word not in ("&&", ";")]


@cache
def help_of(*program):
    """Return the help text of a program: a script's path, or -m and a module, and optionally a subcommand."""
    module = program[0] == "-m"
    name, rest = (program[1], program[2:]) if module else (str(ROOT / program[0]), program[1:])
    out = io.StringIO()
    run = runpy.run_module if module else runpy.run_path
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [name, *rest, "--help"])
        if not module:
            patch.syspath_prepend((ROOT / name).parent)  # as Python does for a script
        patch.setattr(sys, "orig_argv", [sys.executable, name, *rest, "--help"])
        with pytest.raises(SystemExit) as end:
            run(name, run_name="__main__")
    assert not end.value.code
    return out.getvalue()


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line[:70] for _, line in COMMANDS])
def test_documented_commands_exist(page, line):
    """Scripts, modules, make targets and flags in the documentation exist."""
    words = words_of(line)
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)} <= set(targets)
        return
    scripts = [word for word in words if re.fullmatch(r"[\w/.]+\.(py|sh)", word)]
    for script in scripts:
        assert (ROOT / script).is_file()
    module = words[words.index("-m") + 1] if "-m" in words else ""
    program = ["-m", module] if module.startswith(("utils", "patches")) else [s for s in scripts if s.endswith(".py")]
    if not program or "pytest" in words or program == ["-m", "patches.fetch_patch"] or "tests/" in program[0]:
        return
    after = words[words.index(program[-1]) + 1 :]
    if program in (["-m", "utils.labels"], ["-m", "utils.images"]) and after:
        program, after = [*program, after[0]], after[1:]
    flags = [word.split("=")[0] for word in after if re.match(r"--?[A-Za-z]", word)]
    known = set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", help_of(*program)))
    assert set(flags) <= known


def test_pages_hold_commands():
    """The pages contain commands; otherwise the test above would pass on nothing."""
    assert sum(page == "README.md" for page, _ in COMMANDS) > 10


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Make a folder like `make demo`: distilled and validation images, and a teacher."""
    folder = tmp_path_factory.mktemp("work")
    for name in ("distilled", "val"):
        make_images(folder / name)
    save_teacher(folder / "teacher.pth", "resnet18")
    return folder


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_benchmarks_run(name, work):
    """Every benchmark runs at its smallest size."""
    words = shlex.split(BENCHMARKS[name].format(work=work))
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # where the project is not installed
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, env=environment)
    assert done.returncode == 0, done.stderr
    for written in re.findall(r"\S+\.json", BENCHMARKS[name]):
        assert Path(written.format(work=work)).stat().st_size > 2


def test_no_script_edits_the_path():
    """The project is installed, or PYTHONPATH names it."""
    folders = [ROOT, *(ROOT / name for name in ("benchmarks", "demo", "patches", "scripts", "tests"))]
    files = [*(path for folder in folders for path in folder.glob("*.py")), *(ROOT / "utils").rglob("*.py")]
    assert len(files) > 50
    word = ".".join(["sys", "path"])
    # small_commands.py runs scripts as Python does, which puts their folder on the path
    assert [path.name for path in files if word in path.read_text()] == ["small_commands.py"]


def headings_of(page):
    """Return the anchors of a page's headings, as Git hosts and `make docs` make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return [re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles]


def links_of(page):
    """Yield (file, anchor) of each relative link of a page, in Markdown or HTML, outside code."""
    text = re.sub(r"^```.*?^```|^ {4,}[^\n]*$|`[^`]*`", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r'(?:\]\(|(?:src|href)=")([^\s)"]+)', text):
        if not re.match(r"\w+:", link):
            name, _, anchor = link.partition("#")
            yield page.parent / name if name else page, anchor


@pytest.mark.parametrize("page", LINKED_PAGES, ids=[page.name for page in LINKED_PAGES])
def test_links_resolve(page):
    """A relative link leads to a file of the repository, and its anchor to a heading; headings of a page differ."""
    for file, anchor in links_of(page):
        assert file.is_file(), f"{page.name} links to {file}"
        assert not anchor or anchor in headings_of(file), f"{page.name} links to #{anchor} of {file.name}"
    headings = headings_of(page)
    assert sorted(headings) == sorted(set(headings))


def test_index_lists_every_page():
    """docs/README.md, from which `make docs` takes its navigation, names every page once."""
    index = ROOT / "docs" / "README.md"
    listed = [file.name for file, _ in links_of(index) if file.parent == index.parent]
    assert sorted(listed) == sorted({page.name for page in index.parent.glob("*.md")} - {"README.md"})
    assert sum(len(list(links_of(page))) for page in LINKED_PAGES) > 40  # so that the test above sees links


def test_site_is_strict_and_loads_nothing(tmp_path):
    """Dead links and anchors, which are appended here, stop `make docs`; no page loads anything from elsewhere."""
    pytest.importorskip("material", reason="mkdocs-material is not installed (pip install '.[docs]')")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for name in {path for page in LINKED_PAGES for path, _ in links_of(page)}:
        name = name.resolve().relative_to(ROOT)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "scripts").mkdir(exist_ok=True)
    for name in ("mkdocs.yml", "scripts/site_hooks.py"):
        shutil.copy(ROOT / name, tmp_path / name)

    losses = tmp_path / "docs" / "losses.md"
    losses.write_text(losses.read_text() + "\n[a](nowhere.md) [b](models.md#nowhere) [c](../README.md#nowhere)\n")
    command = [sys.executable, "-m", "mkdocs", "build"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    warnings = re.findall("WARNING -.*", done.stderr)
    assert len(warnings) == 3, done.stderr
    assert all("nowhere" in line for line in warnings)
    pages = list((tmp_path / "build" / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        paragraphs = re.findall(r"<p>(.*?)</p>", page.read_text(), re.S)
        unread = [text for text in paragraphs if re.search(r"^(\*|-|\d+\.|\|) ", text, re.M)]
        assert unread == [], f"{page.name}: lists and tables need an empty line before them"
        assert re.findall(r'(?:<link|<script|<img|<iframe)[^>]*(?:src|href)="?(?:\w+:)?//', page.read_text()) == []
