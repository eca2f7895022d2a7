"""Run the scripts of this project many times in one set of processes, for tests of several distributed.

    python -m torch.distributed.run --nproc_per_node 2 tests/rank_jobs.py JOBS.json

JOBS.json is a list of [script, argument, …]. The student is a small network, which keeps the many runs short. Each
rank writes to `decoded.RANK.json`, beside JOBS.json, the number of images that each job decoded.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import relabel_FKD
import train_FKD_parallel
import train_KD_parallel
from utils.data import validation, workers
from utils.run import folder, student, summary
from utils.system import distributed
from utils.system.process import run_script

SCRIPTS = {script.__name__: script for script in (relabel_FKD, train_FKD_parallel, train_KD_parallel)}


def small_student(_name, num_classes, seed, _stem, _input_size=None, _in_channels=3):
    """Return two convolutions with batch normalisation."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


def use_small_student(patch):
    """Patch in the small student, and skip curves and git, which other tests cover; `patch(object, name, value)`."""
    patch(student, "build_student", small_student)
    patch(folder, "draw_curves", lambda *_: None)
    patch(summary, "git_commit", lambda: None)


def kill_at(epoch):
    """Make this process kill itself by SIGKILL in the middle of an epoch, which comes after `epoch` whole ones."""
    train_step = train_FKD_parallel.train_step

    def train_or_die(student, batch):
        if student.progress.epoch == epoch and student.sums.losses:  # a batch of the epoch is done
            os.kill(os.getpid(), signal.SIGKILL)
        train_step(student, batch)

    train_FKD_parallel.train_step = train_or_die


def launch(processes, path, **environment):
    """Start `rank_jobs.py` in `processes` processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])} | environment
    command = [*launcher, __file__, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=settings)


def main(path):
    torch.set_num_threads(1)
    use_small_student(setattr)
    world = distributed.start("cpu")
    distributed.start, finish = (lambda _device: world), distributed.finish
    distributed.finish = lambda: None
    if os.environ.get("DIE") == str(world.rank):
        kill_at(1)
    decoded = []
    load_image = workers.load_image

    def counting(image, channels):
        decoded[-1] += 1
        return load_image(image, channels)

    workers.load_image = validation.load_image = counting
    for script, *words in json.loads(Path(path).read_text()):
        decoded.append(0)
        code = run_script(SCRIPTS[script].main, words)
        if code:
            return code
    Path(path).with_name(f"decoded.{world.rank}.json").write_text(json.dumps(decoded))
    world = None
    distributed.start = None  # the last reference to the process group
    finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
