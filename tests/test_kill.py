"""SIGKILL at random moments, among them the writing of a checkpoint: resumed, the result is the same.

python tests/test_kill.py 20      twenty kills of one run
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import EPOCHS, Tiny, make_images, make_labels, read_run, same_weights

import train_FKD_parallel

SAVE_OFTEN = """
import sys
import time
import torch
import utils.run.student
utils.run.student.CHECKPOINT_SECONDS = -1  # after every epoch, however short
save = torch.save
def slow_save(state, file):
    save(state, file)
    file.truncate(file.tell() // 2)  # as a slow disk leaves it for a while
    time.sleep(0.2)
    file.seek(0)
    save(state, file)
torch.save = slow_save
import train_FKD_parallel
from utils.system.script import run_script
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
    """Same weights bit for bit, same metrics, no file left over."""
    assert same_weights(killed.weights(), whole.weights())
    for column in ("epoch", "lr", "train_loss", "val_loss", "val_top1"):
        assert [row[column] for row in killed.rows] == [row[column] for row in whole.rows], column
    assert {path.name for path in killed.path.iterdir()} == {path.name for path in whole.path.iterdir()}


def test_three_kills(tiny, tmp_path):
    """At random moments of training, evaluation and writing."""
    done, killed, whole = kill_and_resume(tiny, tmp_path, 3, 4, seed=0)
    assert done >= 1
    check(killed, whole)


def main(kills):
    """Kill one run so many times."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        train_dir, val_dir = make_images(root / "train"), make_images(root / "val", per_class=2, seed=1)
        tiny = Tiny(train_dir, val_dir, make_labels(root / "labels", epochs=EPOCHS))
        done, killed, whole = kill_and_resume(tiny, root, kills, 2 * kills, seed=time.time_ns())
        check(killed, whole)
    print(f"{done} of {kills} SIGKILLs hit a run in progress; resumed, it ended bit-identical")


if __name__ == "__main__":
    main(int(sys.argv[1]))
