"""Tiny image folders, tiny label sets, and scripts run in this process."""

import contextlib
import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads only slow tiny tensors down, most of all on a busy machine

import numpy as np
import pytest
import torch
from PIL import Image

import train_FKD_parallel
from utils.labels.sre2l import TarWriter
from utils.labels.types import BatchLabels
from utils.labels.views import DrawnViews, ViewPolicy
from utils.system.script import run_script

REFERENCE = Path(__file__).parent / "data" / "reference"
CLASSES, PER_CLASS, BATCH, EPOCHS, SIDE = 3, 4, 5, 3, 32
LIGHT = "shufflenet_v2_x0_5"  # where any student will do: its checkpoints take no time to write
IMAGE_SIZE = (36, 44)  # (H, W)


def pytest_collection_modifyitems(items):
    """Skip what needs a CUDA device where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not a keyword: those are names of folders, too
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _no_wandb_key(monkeypatch, tmp_path_factory):
    """No test sees, or uses, the W&B login of whoever runs it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path_factory.getbasetemp() / "no-netrc"))


@dataclass
class Result:
    """How a script ended."""

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
    """Return the `BatchLabels` of one batch of `DrawnViews`, answered by a random teacher."""
    drawn = views.read(epoch, batch)
    (height, width), rows = IMAGE_SIZE, len(drawn.index)
    boxes, flips = zip(*(drawn.view(slot, IMAGE_SIZE) for slot in range(rows)), strict=True)
    logits = torch.randn(rows, classes, generator=torch.Generator().manual_seed(100 * epoch + batch))
    coords = torch.tensor(boxes) / torch.tensor([height, width, height, width])
    return BatchLabels(coords, torch.tensor(flips), drawn.mix, logits, drawn.index)


def make_labels(
    folder, mix_type="cutmix", epochs=EPOCHS, batch_size=BATCH, images=CLASSES * PER_CLASS, dtype=torch.float16
):
    """Write labels in the 7-item dialect for a `make_images` folder."""
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
        """The command line that trains on this set; `changed` replaces flags, None leaves one out."""
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
        """Train with these flags, which must work, and return what `read_run` does."""
        result = run(train_FKD_parallel, *self.flags(output, **changed))
        assert result.code == 0, result.err
        return read_run(output)


@dataclass
class Run:
    """What a run left behind."""

    path: Path
    summary: dict
    rows: list

    def weights(self):
        """The last checkpoint's state dict."""
        return torch.load(self.path / "checkpoint.pth.tar", weights_only=True)["state_dict"]


def read_run(path):
    """Read summary.json and metrics.csv of an output folder; cells are floats, or None where empty."""
    with open(Path(path) / "metrics.csv") as file:
        rows = [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]
    return Run(Path(path), json.loads((Path(path) / "summary.json").read_text()), rows)


def same_weights(one, other):
    """Whether two state dicts are equal, to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny set, read-only for all tests."""
    root = tmp_path_factory.mktemp("tiny")
    train, val = make_images(root / "train"), make_images(root / "val", per_class=2, seed=1)
    return Tiny(train, val, make_labels(root / "labels"))


@pytest.fixture(scope="session")
def whole_run(tiny, tmp_path_factory):
    """One complete run on the tiny set."""
    return tiny.train_run(tmp_path_factory.mktemp("whole") / "run", model="resnet18")
