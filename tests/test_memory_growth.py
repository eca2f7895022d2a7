"""A run's memory does not grow with its epochs."""

import ctypes
import gc
from contextlib import suppress
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from helpers import CPU
from PIL import Image
from small_network import BareStudent, train_epoch

from train_FKD_parallel import evaluate
from utils.config import IMAGENET_MEAN, IMAGENET_STD
from utils.data.device import DeviceBatches
from utils.data.folders import open_folder
from utils.data.replay import Normalise
from utils.data.resident import ResidentBatches
from utils.data.validation import ValidationBatches
from utils.data.workers import ViewDataset, WorkerBatches
from utils.labels.views import DrawnViews, ViewPolicy
from utils.system.distributed import ALONE
from utils.system.machine import readable_size
from utils.training.losses import build_loss
from utils.training.optimizer import build_optimizer

EPOCHS, SETTLED = 30, 10
ALLOWED = 3 * 2**20  # bytes from epochs 8-12 to 25-29, where 0.2 MB are usual; a leaked batch per epoch is 22 MB


def resident_bytes():
    """Return the resident memory of this process (Linux), without free memory that the allocator keeps."""
    gc.collect()
    with suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(16):
        path = tmp_path / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(path)
    return open_folder(tmp_path, "--train-dir")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("kind", [WorkerBatches, ResidentBatches, DeviceBatches])
def test_memory_stays_level_over_epochs(folder, kind):
    """The test runs thirty epochs of training and evaluation; each batch of images has 1.3 MB."""
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, CPU)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 7, 4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    optimizer = build_optimizer(model, sgd=False, lr=1e-3, weight_decay=0.01)
    student = BareStudent(model, optimizer, build_loss("ce"), micro_batch=8)
    views = DrawnViews(ViewPolicy(0, 120, 0.5, 1.0, "cutmix", 0.8, 1.0), 16, 8)
    batches = kind(ViewDataset(folder.samples, views, 120), range(EPOCHS), normalise, 0, CPU)
    validation = ValidationBatches(folder.samples, 120, normalise, 0, CPU)
    memory = []
    for epoch in range(EPOCHS):
        train_epoch([student], batches.epoch(epoch))
        evaluate([student], validation, ALONE)
        memory.append(resident_bytes())
    assert median(memory[-5:]) - median(memory[SETTLED - 2 : SETTLED + 3]) < ALLOWED


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (340, "340 B"), (999.6, "1 kB"), (12_345, "12.3 kB"), (4.37e9, "4.37 GB"), (1.5e15, "1,500.0 TB")],
)
def test_sizes_are_readable(count, text):
    """A size has three digits, and its unit never rounds it to zero."""
    assert readable_size(count) == text
