"""Kill a training run by SIGKILL at random moments, resume it, and compare it with an uninterrupted run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers import read_run, same_weights

import train_FKD_parallel

SAVE_OFTEN = """
import sys
import time
import torch
import utils.run.student
utils.run.student.CHECKPOINT_SECONDS = -1  # save after every epoch
save = torch.save
def slow_save(state, file):
    save(state, file)
    file.truncate(file.tell() // 2)  # a slow disk leaves half a file for a while
    time.sleep(0.2)
    file.seek(0)
    save(state, file)
torch.save = slow_save
import train_FKD_parallel
from utils.system.process import run_script
sys.exit(run_script(train_FKD_parallel.main, sys.argv[1:]))
"""


def train(flags, seconds=None):
    """Run the training script; kill it after `seconds` of training. Return its exit code."""
    root = Path(train_FKD_parallel.__file__).parent
    output = Path(flags[flags.index("--output-dir") + 1])
    log = output / "train.log"
    seen = log.stat().st_size if log.exists() else 0
    command = [sys.executable, "-c", SAVE_OFTEN, *flags]
    process = subprocess.Popen(
        command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(root)}
    )
    if seconds is not None:
        while process.poll() is None and not (log.exists() and log.stat().st_size > seen):
            time.sleep(0.02)  # until it trains
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode in (0, -signal.SIGKILL), err.decode()
    return process.returncode


def kill_and_resume(tiny, folder, kills, epochs, seed):
    """Kill a run `kills` times; return (how often it was killed before its end, the run, the uninterrupted one)."""
    labels = {"epochs": epochs, "reuse_labels": True, "workers": 2, "loader": "workers"}
    assert train(tiny.flags(folder / "whole", **labels)) == 0
    draw, done = random.Random(seed), 0
    for _ in range(kills):
        saved = (folder / "run" / "checkpoint.pth.tar").exists()
        started = {"resume": True} if saved else {"overwrite": True}
        done += train(tiny.flags(folder / "run", **labels, **started), draw.uniform(0, 1.5)) != 0
    saved = (folder / "run" / "checkpoint.pth.tar").exists()
    assert train(tiny.flags(folder / "run", **labels, **({"resume": True} if saved else {"overwrite": True}))) == 0
    return done, read_run(folder / "run"), read_run(folder / "whole")


def check(killed, whole):
    """Assert bit-identical weights, equal metrics and the same files."""
    assert same_weights(killed.weights(), whole.weights())
    for column in ("epoch", "lr", "train_loss", "val_loss", "val_top1"):
        assert [row[column] for row in killed.rows] == [row[column] for row in whole.rows], column
    assert {path.name for path in killed.path.iterdir()} == {path.name for path in whole.path.iterdir()}
