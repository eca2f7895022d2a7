"""Every command in code blocks and tables of README.md and docs/*.md is run, in the order of its page, at small size.

How to write a command so that it is run:

* It begins with `python`, `python3`, `sh`, `torchrun` or assignments before one of these, and stands in a code block
  (indented or fenced) or, between backticks, in a table. In blocks that are fenced as ```sh, every line is run.
* Write a word in capitals for data of the reader: DISTILLED, IMAGENET/val, TEACHER.pth, SRC. Each command gets small
  data of the kind that its flag wants, in a place of its own. Paths below data/ (data/distilled, data/labels) are made
  when a command first names them, and stay for the commands after it. demo/work has what `make demo` leaves.
* `…` stands for the usual flags or values, which are supplied; `[--flag]` is optional and left out.
* `TRAIN stands for `python …`` in the text defines a word for the commands of this page.
* A code block that begins with a comment with a file's name (`# my_model.py`) is written to that file.
* On pages in SEQUENCES a reader types one command after the other. There, all other files must have been made by the
  commands before, and an output folder that exists is refused as usual. Other pages have single commands; what they
  name is made, and what they write to is overwritten.

Epochs, batch size, size of the images and device are replaced (tests/small_commands.py), and networks are small.
A command that no test can run is in NOT_RUN, with the reason. To run one page:

    python -m pytest tests/test_documented_commands.py -k tutorial
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT
from small_commands import CLIENT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SEQUENCES = ("README.md", "tutorial.md")
# Beginnings of commands that are not run. An entry that no page needs any more must be deleted.
NOT_RUN = {
    "make ": "CI runs the targets itself",
    "srun ": "needs Slurm",
}
PROGRAMS = ("python", "python3", "sh", "torchrun", "$EDITOR")
ASSIGNMENTS = r"(?:\w+=(?:\"[^\"]*\"|'[^']*'|\S*)\s+)*"
COMMAND = re.compile(rf"{ASSIGNMENTS}(?:{'|'.join(map(re.escape, PROGRAMS))})\s")
NAME = re.compile(r"python -m [\w.]+(?: \w+)?")  # the name of a module or of its command, without what it needs
PLACEHOLDER = re.compile(r"[A-Z][A-Z_-]+\b")


def blocks_of(text):
    """Yield (language, code) of each code block and each code span of a table in a Markdown text, in order."""
    fenced = r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<code>(?:.*\n)*?)(?P=fence)[ ]*$"
    indented = r"(?P<indented>(?:^ {4}.*\n|^[ ]*\n(?= {4}))+)"
    for found in re.finditer(rf"{fenced}|{indented}|^(?P<row>\|.*)$", f"{text}\n", re.M):
        if found["row"]:
            yield from (("", span) for span in re.findall(r"`([^`]+)`", found["row"]) if not NAME.fullmatch(span))
        else:
            yield found["language"] or "", found["code"] or re.sub(r"^ {4}", "", found["indented"], flags=re.M)


def lines_of(code):
    """Yield the logical lines of a block without comments; a loop or condition of the shell is one line."""
    waiting = []
    for line in code.replace("\\\n", " ").splitlines():
        line = re.sub(r"\s{2,}#.*", "", line).removeprefix("$ ").strip()
        if line and not line.startswith("#"):
            waiting.append(line)
            words = re.findall(r"\b(?:for|while|if|done|fi)\b", " ".join(waiting))
            if sum(1 if word in ("for", "while", "if") else -1 for word in words) <= 0 or not is_loop(waiting[0]):
                yield "\n".join(waiting)
                waiting = []


def is_loop(line):
    """Return whether a line of a shell script begins a loop or a condition."""
    return re.match(r"(for|while|if) .*(;|$)", line) is not None


def expanded(line, abbreviations):
    """Return a command as a shell can run it: without `[--optional]` and `…`, with abbreviations written out."""
    for word, command in abbreviations.items():
        line = re.sub(rf"^{word}\b", command.replace("\\", ""), line)
    line = re.sub(r"\[(?:-|flags)[^\]]*\]", "", line)
    return re.sub(r"(?:-\S+\s+)?…", "", line).strip()


def commands_of(page):
    """Return the commands of a page in order, and its files: ([command], {name: content})."""
    text = page.read_text()
    abbreviations = dict(re.findall(r"\b([A-Z]{3,}) stands for\s+`([^`]+)`", text))
    commands, files = [], {}
    for language, code in blocks_of(text):
        if named := re.match(r"\s*# ([\w/.]+\.\w+)\n", code):
            files[named[1]] = code
            continue
        for line in lines_of(code):
            shell = language in ("sh", "bash", "console")
            line = expanded(line, abbreviations)
            if shell or COMMAND.match(f"{line} ") or line.startswith(tuple(NOT_RUN)):
                commands.append(line)
    return commands, files


class Sandbox:
    """A folder with this project's scripts, in which commands are run.

    Args:
        folder: where to make it.
        socket: socket of the server in tests/small_commands.py.
    """

    def __init__(self, folder, socket):
        self.folder = folder
        programs = folder / ".bin"
        programs.mkdir(parents=True)
        for name in ("python", "python3"):
            (programs / name).write_text(CLIENT.format(executable=sys.executable))
        (programs / "torchrun").write_text('#!/bin/sh\nexec python -m torch.distributed.run "$@"\n')
        for program in programs.iterdir():
            program.chmod(0o755)
        for entry in ROOT.iterdir():
            if entry.suffix in (".py", ".sh") or entry.name in ("scripts", "utils", "patches", "benchmarks", "tests"):
                (folder / entry.name).symlink_to(entry)
        (folder / "demo").mkdir()
        for entry in (ROOT / "demo").glob("*.*"):
            (folder / "demo" / entry.name).symlink_to(entry)
        left_out = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON", "WORK")
        self.environment = {name: value for name, value in os.environ.items() if name not in left_out}
        self.environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "COMMANDS_SOCKET": str(socket)}
        self.environment |= {"EDITOR": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(self, command, strict=False):
        """Run a command; return what it printed if it failed, or an empty string."""
        for entry in self.folder.iterdir():  # each command has its own data of the reader
            if PLACEHOLDER.match(entry.name):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        environment = self.environment | ({"COMMANDS_STRICT": "yes"} if strict else {})
        done = subprocess.run(
            ["sh", "-ec", command], env=environment, cwd=self.folder, capture_output=True, text=True, timeout=120
        )
        return "" if done.returncode == 0 else f"$ {command}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start the server that runs the commands; return its socket."""
    path = tmp_path_factory.mktemp("server") / "socket"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(ROOT / "tests" / "small_commands.py"), str(path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield path
        process.kill()


@pytest.fixture(scope="module")
def demo(server, tmp_path_factory):
    """Make a folder as `make demo` leaves it in demo/work."""
    sandbox = Sandbox(tmp_path_factory.mktemp("demo") / "sandbox", server)
    work = "demo/work"
    for command in (
        f"python -m utils.report.random_images {work}/train --per-class 4 --output {work}/distilled",
        f"python relabel_FKD.py --data {work}/distilled -a resnet18 --checkpoint {work}/teacher.pth --use-fp16 "
        f"--mix-type cutmix --fkd-path {work}/labels",
        f"TRAIN_DIR={work}/distilled VAL_DIR={work}/val FKD_PATH={work}/labels OUTPUT_DIR={work}/student_fkd "
        "sh train.sh",
        f"python train_KD_parallel.py --loss-type ce --train-dir {work}/distilled --val-dir {work}/val "
        f"--output-dir {work}/student_hard",
    ):
        assert not (failure := sandbox.run(command)), failure
    (sandbox.folder / work / "teacher.json").write_text('{"top1": 98.8}')
    return sandbox.folder / work


RUN_PAGES = [page for page in PAGES if commands_of(page)[0]]


@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_run(page, server, demo, tmp_path):
    """All of them succeed, one after the other."""
    sandbox = Sandbox(tmp_path / "sandbox", server)
    shutil.copytree(demo, sandbox.folder / "demo" / "work", symlinks=False)
    commands, files = commands_of(page)
    for name, content in files.items():
        (sandbox.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (sandbox.folder / name).write_text(content)
    commands = [command for command in commands if not command.startswith(tuple(NOT_RUN))]
    failures = [failure for command in commands if (failure := sandbox.run(command, page.name in SEQUENCES))]
    assert not failures, "\n".join(failures)


def test_what_is_not_run_stands_on_a_page():
    """Each entry of NOT_RUN is used, and README.md has commands that are run."""
    commands = [command for page in PAGES for command in commands_of(page)[0]]
    unused = {start for start in NOT_RUN if not any(command.startswith(start) for command in commands)}
    assert unused == set()
    assert len([command for command in commands_of(ROOT / "README.md")[0] if COMMAND.match(command)]) > 10
