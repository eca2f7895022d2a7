"""A run shows its progress: in one line of a terminal, elsewhere in a line each minute."""

import contextlib
import io
import re
from functools import partial

import pytest
from helpers import BATCH, CLASSES, EPOCHS, PER_CLASS, relabel_flags, run, save_teacher

import relabel_FKD
import train_FKD_parallel
from utils.labels import command
from utils.run import progress_line
from utils.system import log
from utils.system.log import ProgressBar
from utils.system.process import run_script

BATCHES = -(-CLASSES * PER_CLASS // BATCH)


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def shown(words):
    """Train with a terminal as stdout and stderr; return all output, bars and log."""
    terminal = Terminal()
    with contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(terminal):
        assert run_script(train_FKD_parallel.main, [str(word) for word in words]) == 0
    return terminal.getvalue()


@pytest.fixture
def every_step(monkeypatch):
    """Show progress at every step, not after 0.1 s in a terminal and after a minute elsewhere."""
    bar = partial(ProgressBar, mininterval=0, miniters=1)
    for module in (progress_line, log, relabel_FKD):
        monkeypatch.setattr(module, "ProgressBar", bar)
    monkeypatch.setattr(log, "EVERY", 0)


def test_one_line_for_the_whole_run(tiny, tmp_path, every_step):
    """The bar counts the batches of all epochs and shows time left, speed and top-1; log lines do not overlap it."""
    text = shown(tiny.flags(tmp_path / "run"))
    states = re.findall(r"\r(epoch \d.*?)(?=\r|\n|\x1b)", text)
    percents = [int(percent) for state in states for percent in re.findall(r" (\d+)%\|", state)]
    assert percents == sorted(percents)
    assert {f"{100 * done / (EPOCHS * BATCHES):.0f}" for done in range(1, EPOCHS * BATCHES)} <= set(map(str, percents))
    last = states[-1]
    figures = r"<\d\d:\d\d.* images/s, top-1 \d+\.\d\d%, best \d+\.\d\d%"
    assert re.search(rf"epoch {EPOCHS}/{EPOCHS}.*{figures}", last), last
    lines = [line.split("\r")[-1] for line in text.split("\n")]
    assert sum(line.startswith("epoch") and "train loss" in line for line in lines) == EPOCHS
    assert not any("images/s, top-1" in line and "train loss" in line for line in lines)


def test_no_progress(tiny, tmp_path, every_step):
    """With --no-progress only the log is printed, also on a terminal."""
    assert "\r" not in shown(tiny.flags(tmp_path / "run", epochs=1, no_progress=True))


def test_lines_where_there_is_no_terminal(tiny, tmp_path, every_step):
    """Lines with the time left and no carriage return; their text says what the bar shows."""
    result = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"))
    lines = result.err.splitlines()
    assert len(lines) >= EPOCHS * BATCHES - 1
    assert "\r" not in result.err + result.out
    line = rf"epoch {EPOCHS}/{EPOCHS}: \d+ % in \d\d:\d\d, \d\d:\d\d left, \d+ images/s, top-1 .*%, best .*%"
    assert re.fullmatch(line, lines[-1]), lines[-1]
    labels = tmp_path / "labels"
    words = relabel_flags(tiny.train, save_teacher(tmp_path / "t.pth", "resnet18"), labels, "--accept-labels")
    lines = run(relabel_FKD, *words).err.splitlines()
    assert re.fullmatch(r"labels of epoch 2/2: 83 % in .* left", lines[-1]), lines
    assert "verify: 50 % in" in run(command, "verify", labels).err


def test_lines_are_rare(tiny, tmp_path):
    """A run of less than a minute has none."""
    assert run(train_FKD_parallel, *tiny.flags(tmp_path / "run", epochs=1)).err == ""
