"""Fixtures that several test modules share. Functions that they share are in helpers.py."""

from helpers import ROOT, Tiny, make_images, make_labels  # noqa: I001  limits threads before PyTorch is loaded

import os
import subprocess

import numpy as np
import pytest
import rank_jobs
import torch
from PIL import Image

from utils.system.log import log
from utils.training import cuda_graph
from utils.training.optimizer import build_optimizer
from utils.data.folders import open_folder
from view_batches import SIZES


def pytest_collection_modifyitems(items):
    """Skip tests that need a CUDA device if there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # a keyword would match names of folders as well
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _no_wandb_key(monkeypatch, tmp_path_factory):
    """Hide the W&B login of the user who runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path_factory.getbasetemp() / "no-netrc"))


@pytest.fixture(autouse=True)
def _quick_curves(request, monkeypatch):
    """Write empty pictures of curves, which saves about a second per run, unless a test asks for `real_curves`."""

    def draw(path, *_):
        Image.new("L", (1, 1)).save(path)
        path.with_suffix(".pdf").write_bytes(b"%PDF")

    if "real_curves" not in request.fixturenames:
        monkeypatch.setattr("utils.run.folder.draw_curves", draw)


@pytest.fixture
def real_curves():
    """Draw the curves of the runs of a test."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny set; no test may write to it."""
    root = tmp_path_factory.mktemp("tiny")
    train, val = make_images(root / "train"), make_images(root / "val", per_class=2, seed=1)
    return Tiny(train, val, make_labels(root / "labels"))


@pytest.fixture(scope="session")
def whole_run(tiny, tmp_path_factory):
    """One complete run on the tiny set."""
    return tiny.train_run(tmp_path_factory.mktemp("whole") / "run", model="resnet18")


@pytest.fixture(scope="module")
def small_student():
    """Train a small network in a module that trains much."""
    with pytest.MonkeyPatch.context() as patch:
        rank_jobs.use_small_student(patch.setattr)
        yield


@pytest.fixture
def program_log(caplog, monkeypatch):
    """Return `caplog`, which sees the program's log; normally that log does not propagate to the root logger."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level("INFO", logger=log.name)
    return caplog


@pytest.fixture
def recording(monkeypatch):
    """Replace the capture of a CUDA graph by eager calls; return a list with one entry per replay."""
    if not build_optimizer(torch.nn.Linear(1, 1), False, 0.1, 0).defaults["fused"]:
        pytest.skip("this PyTorch's AdamW can be recorded on CUDA alone")
    replayed = []

    def record(step, _device, restore):
        def replay():
            replayed.append(True)
            step()

        for _ in range(cuda_graph.WARM_UP_STEPS):
            step()
        restore()
        return replay

    monkeypatch.setattr(cuda_graph, "capture_graph", record)  # capture needs CUDA
    return replayed


@pytest.fixture
def uneven_images(tmp_path):
    """Seven noisy images of unequal sizes in two classes."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        path = tmp_path / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return open_folder(tmp_path, "--train-dir")


@pytest.fixture
def launch(tmp_path):
    """Return a function that runs a launcher with a Python that prints its arguments, one per line."""
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)

    def call(launcher, *arguments, **environment):
        settings = {"PATH": os.environ["PATH"], "PYTHON": str(stub)} | environment
        command = ["sh", str(ROOT / launcher), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=settings, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return call
