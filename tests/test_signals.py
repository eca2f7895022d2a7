"""After a signal the step finishes, the state is saved in mid-epoch, and no process stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import run, same_weights, signal_in_step, wait_for

import train_FKD_parallel
from utils.data.resident import ResidentBatches
from utils.system.process import StopSignals

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    """Return a function that makes one complete run per precision."""
    made = {}

    def get(precision):
        if precision not in made:
            made[precision] = tiny.train_run(tmp_path_factory.mktemp("whole") / "run", precision=precision)
        return made[precision]

    return get


@pytest.mark.parametrize(
    ("precision", "number", "step", "workers"),
    [
        ("fp32", signal.SIGINT, 1, 0),
        ("fp32", signal.SIGTERM, 5, 2),
        ("fp32", signal.SIGUSR1, 6, 0),  # the last step of an epoch
        ("bf16", signal.SIGTERM, 4, 0),
        ("bf16", signal.SIGINT, 9, 0),  # the last step of the run
    ],
)
def test_stop_and_resume_within_an_epoch(precision, number, step, workers, uninterrupted, tiny, tmp_path, monkeypatch):
    """The exit code is 128 + signal; the resumed run is bit-identical to an uninterrupted one."""
    handler = signal.getsignal(number)
    flags = {"precision": precision, "workers": workers, "loader": "workers" if workers else "auto"}
    with pytest.MonkeyPatch.context() as patch:
        signal_in_step(patch, number, step)
        stopped = run(train_FKD_parallel, *tiny.flags(tmp_path / "run", **flags))
    assert stopped.code == 128 + number
    assert stopped.err.startswith(
        f"stopped: {number.name} in epoch {(step - 1) // 3 + 1} after {(step - 1) % 3 + 1} batches"
    )
    assert len(stopped.err.splitlines()) == 1
    assert signal.getsignal(number) is handler
    assert not (tmp_path / "run" / ".lock").exists()

    whole, resumed = uninterrupted(precision), tiny.train_run(tmp_path / "run", resume=True, **flags)
    assert same_weights(resumed.weights(), whole.weights())
    for column in ("epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1"):
        assert [row[column] for row in resumed.rows] == [row[column] for row in whole.rows], column


def test_a_stopped_evaluation_is_repeated(uninterrupted, tiny, tmp_path):
    """No metric comes from a part of the validation set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_FKD_parallel, "evaluate", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or [])
        stopped = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"))
    assert stopped.code == 143, stopped.err
    assert "after 3 batches" in stopped.err
    assert not (tmp_path / "run" / "metrics.csv").exists()
    resumed, whole = tiny.train_run(tmp_path / "run", resume=True), uninterrupted("fp32")
    assert [row["val_loss"] for row in resumed.rows] == [row["val_loss"] for row in whole.rows]
    assert [row["train_loss"] for row in resumed.rows] == [row["train_loss"] for row in whole.rows]


def start(tiny, output, **changed):
    """Start a long run with two workers; return it as soon as it trains."""
    flags = {"workers": 2, "loader": "workers", "epochs": 3000, "reuse_labels": True, "eval_every": 5000} | changed
    command = [sys.executable, train_FKD_parallel.__file__, *tiny.flags(output, **flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (output / "metrics.csv").exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def descendants(pid):
    """Return the pids of all processes below `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def alive(pid):
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@LINUX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(number, tiny, tmp_path):
    """Within 5 s of a signal to the parent alone, it and its workers are gone, whatever the signal."""
    process = start(tiny, tmp_path / "run")
    family = [process.pid, *descendants(process.pid)]
    assert len(family) >= 3
    process.send_signal(number)
    gone = wait_for(lambda: process.poll() is not None and not any(map(alive, family)), 5)
    out, err = process.communicate(timeout=60)
    assert gone, (out, err)
    assert process.returncode == (143 if number == signal.SIGTERM else -number)
    assert "Traceback" not in err


@LINUX
def test_a_signal_to_every_process_stops_cleanly(tiny, tmp_path):
    """Slurm and terminals signal every process; workers leave the reaction to their parent."""
    process = start(tiny, tmp_path / "run")
    for pid in [*descendants(process.pid), process.pid]:
        os.kill(pid, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, (out, err)
    assert "--resume" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_no_batch_comes(number, tiny, tmp_path, monkeypatch):
    """One signal is enough if the next batch never comes; the trained batches are saved."""
    monkeypatch.setattr("utils.system.process.PATIENCE", 0.2)
    epoch = ResidentBatches.epoch

    def stuck(self, *place):
        yield next(epoch(self, *place))
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr("utils.data.resident.ResidentBatches.epoch", stuck)
    started = time.monotonic()
    stopped = run(train_FKD_parallel, *tiny.flags(tmp_path / "run"))
    assert time.monotonic() - started < 30
    assert stopped.code == 128 + number, stopped.err
    assert "in epoch 1 after 1 batches; the state is saved" in stopped.err
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_slow_batch_is_waited_for(monkeypatch):
    """Nothing is cut short during a step, or if several processes stop together."""
    monkeypatch.setattr("utils.system.process.PATIENCE", 0.05)

    def slow():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        yield "item"

    with StopSignals(alone=False) as signals:
        assert list(signals.until_stop(slow())) == ["item"]
    with StopSignals() as signals:
        for item in signals.until_stop(["first", "second"]):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            assert item == "first"


def test_a_second_run_on_a_folder_is_refused(tiny, tmp_path):
    """The error names the running process; a lock that was left behind is taken over."""
    output = tmp_path / "run"
    process = start(tiny, output, workers=0)
    try:
        command = [sys.executable, train_FKD_parallel.__file__, *tiny.flags(output, overwrite=True)]
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2
        assert f"in use by process {process.pid} on host {os.uname().nodename}" in second.stderr
        assert len(second.stderr.splitlines()) == 1
    finally:
        process.kill()
        process.communicate()
    assert (output / ".lock").exists()
    tiny.train_run(output, overwrite=True, epochs=1)
    assert not (output / ".lock").exists()


FAILING = """
import contextlib, os, signal, sys
from utils.system.errors import InputError
from utils.system.process import StopSignals, run_script

def main(_argv):
    with contextlib.ExitStack() as stack:
        stack.callback(os.kill, os.getpid(), signal.SIGTERM)  # after the handlers have been restored
        with StopSignals():
            raise InputError("the reason")

code = run_script(main, [])
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
sys.exit(code)
"""


def test_a_failed_run_prints_its_reason_before_a_signal_ends_it():
    """When a rank dies, torchrun sends SIGTERM to the others, which are about to print why they fail."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", FAILING], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: the reason\n")
