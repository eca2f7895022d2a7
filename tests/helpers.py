"""Builders and runners that several test modules share: tiny image folders, labels and teachers, scripts run here.

Fixtures are in conftest.py, labels of every format in label_folders.py.
"""

import contextlib
import csv
import io
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads only slow tiny tensors down, most of all on a busy machine

import numpy as np
import pytest
import torch
from PIL import Image

import train_FKD_parallel
from utils.labels import command
from utils.labels.sre2l import TarWriter
from utils.labels.types import BatchLabels
from utils.labels.views import DrawnViews, ViewPolicy
from utils.system.process import run_script
from utils.training.models import build_student

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "tests" / "data" / "reference"
CPU = torch.device("cpu")
CLASSES, PER_CLASS, BATCH, EPOCHS, SIDE = 3, 4, 5, 3, 32
LIGHT = "shufflenet_v2_x0_5"  # a student for tests where any will do: its checkpoints are small
IMAGE_SIZE = (36, 44)  # (H, W)
DC_COLOUR = ROOT / "tests" / "data" / "dc_colour"
# mean training loss of nine epochs on DC_COLOUR, with a milestone after six, as printed by the evaluator of
# github.com/VICO-UoE/DatasetCondensation with seed 0
DC_LOSSES = [2.343466282, 2.248243570, 2.106349707, 1.941062808, 1.741368413, 1.509324074, 1.278506875, 1.274013400]
DC_LOSSES += [1.265520215]


@dataclass
class Result:
    """Exit code and output of a script."""

    code: int
    out: str
    err: str


def run(script, *argv):
    """Run `script.main` as its command line would, and capture exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_script(script.main, [str(word) for word in argv])
    return Result(code, out.getvalue(), err.getvalue())


def make_images(folder, classes=CLASSES, per_class=PER_CLASS, size=IMAGE_SIZE, seed=0):
    """Write an image folder of noise, `class_0/0.png` and so on."""
    rng = np.random.default_rng(seed)
    for name in (f"class_{c}" for c in range(classes)):
        (Path(folder) / name).mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(Path(folder) / name / f"{i}.png")
    return Path(folder)


def draw_labels(epoch, batch, views, classes=CLASSES):
    """Return the `BatchLabels` of one batch of `DrawnViews`, with random logits."""
    drawn = views.read(epoch, batch)
    (height, width), rows = IMAGE_SIZE, len(drawn.index)
    boxes, flips = zip(*(drawn.view(slot, IMAGE_SIZE) for slot in range(rows)), strict=True)
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(100 * epoch + batch))
    coords = torch.tensor(boxes) / torch.tensor([height, width, height, width])
    return BatchLabels(coords, torch.tensor(flips), drawn.mix, logits, drawn.index)


def make_labels(
    folder, mix_type="cutmix", epochs=EPOCHS, batch_size=BATCH, images=CLASSES * PER_CLASS, dtype=torch.float16
):
    """Write labels in the 7-item format for a `make_images` folder."""
    views = DrawnViews(ViewPolicy(42, SIDE, 0.08, 1.0, mix_type, 0.8, 1.0), images, batch_size)
    writer = TarWriter(folder, dtype)
    for epoch in range(epochs):
        writer.write(epoch, [draw_labels(epoch, batch, views) for batch in range(views.batches_per_epoch)])
    return Path(folder)


@dataclass
class Tiny:
    """3 classes x 4 images, batches of 5, 5 and 2, 3 epochs, 32 px."""

    train: Path
    val: Path
    labels: Path

    def flags(self, output, **changed):
        """Return the command line that trains on this set; `changed` replaces flags, None drops a flag."""
        flags = {
            **{"train_dir": self.train, "val_dir": self.val, "fkd_path": self.labels, "output_dir": output},
            **{"input_size": SIDE, "batch_size": BATCH, "epochs": EPOCHS, "eval_every": 1, "workers": 0},
            **{"model": LIGHT},
            **{"device": "cpu", "precision": "fp32"},
        } | changed
        words = []
        for name, value in flags.items():
            if value is not None:
                words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
        return words

    def train_run(self, output, **changed):
        """Train with these flags, assert that it worked, and return the `Run`."""
        result = run(train_FKD_parallel, *self.flags(output, **changed))
        assert result.code == 0, result.err
        return read_run(output)


@dataclass
class Run:
    """An output folder with its summary.json and the rows of its metrics.csv."""

    path: Path
    summary: dict
    rows: list

    def weights(self):
        """Return the state dict of the last checkpoint."""
        return torch.load(self.path / "checkpoint.pth.tar", weights_only=True)["state_dict"]


def read_run(path):
    """Read summary.json and metrics.csv of an output folder; cells are floats, or None where empty."""
    with open(Path(path) / "metrics.csv") as file:
        rows = [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]
    return Run(Path(path), json.loads((Path(path) / "summary.json").read_text()), rows)


def same_weights(one, other):
    """Return whether two state dicts are bit-identical."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def signal_in_step(patch, number, step):
    """Send this process a signal in the middle of its `step`-th optimizer step (1 is the first)."""
    left = [step]
    train_step = train_FKD_parallel.train_step

    def signalled(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        train_step(*arguments)

    patch.setattr(train_FKD_parallel, "train_step", signalled)  # the signal must hit a step


def stop_and_resume(words, output, steps, script=train_FKD_parallel):
    """Train, stop, and resume until the end; return the `Run`.

    Args:
        words: the command line.
        output: its --output-dir.
        steps: SIGTERM comes in the middle of each of these optimizer steps, counted from the last start or resume.
        script: module whose `main` trains.
    """
    for step in steps:
        with pytest.MonkeyPatch.context() as patch:
            signal_in_step(patch, signal.SIGTERM, step)
            result = run(script, *words, *(["--resume"] if output.exists() else []))
        assert result.code == 128 + signal.SIGTERM, result.err
    assert run(script, *words, "--resume").code == 0
    return read_run(output)


def losses(done):
    """Return the training loss of every epoch of a `Run`."""
    return [row["train_loss"] for row in done.rows]


def wait_for(condition, seconds=120):
    """Wait until `condition()` holds; return whether it does. 120 s are enough on a busy machine too."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return met


@contextlib.contextmanager
def threads(number):
    """Let PyTorch use `number` threads within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Command:
    """Object whose pickle runs a shell command that makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def tool(*argv):
    """Run `python -m utils.labels` in this process; return its exit code."""
    return command.main([str(word) for word in argv])


def save_teacher(path, name=LIGHT, classes=CLASSES, seed=0):
    """Save the weights of an untrained teacher whose running statistics come from real activations; return the path."""
    model = build_student(name, classes, seed)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, SIDE, SIDE))
    torch.save(model.state_dict(), path)
    return path


def relabel_flags(images, teacher, labels, *more, arch="resnet18", epochs=2, batch_size=BATCH):
    """Return the command line of relabel_FKD.py for one teacher and an image folder of 32 px views."""
    words = ["--data", images, "-a", arch, "--checkpoint", teacher, "--fkd-path", labels, "-b", batch_size]
    words += ["--epochs", epochs, "--input-size", SIDE, "-j", 0, "--device", "cpu", "--precision", "fp32"]
    return [str(word) for word in [*words, *more]]
