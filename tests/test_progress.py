"""A run shows its progress in one line."""

import contextlib
import io
import re
from functools import partial

import pytest
from helpers import BATCH, CLASSES, EPOCHS, PER_CLASS
from tqdm import tqdm

import train_FKD_parallel
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
    """Make tqdm draw at every step."""
    monkeypatch.setattr("utils.run.progress_line.tqdm", partial(tqdm, mininterval=0, miniters=1))  # 0.1 s otherwise


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
