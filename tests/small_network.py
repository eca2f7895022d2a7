"""A small network, batches for it and a student without a folder, for tests of steps and epochs."""

from types import SimpleNamespace

import torch
from torch import nn

import train_FKD_parallel
from utils.data.batch import Batch
from utils.run.checkpoint import Progress
from utils.run.student import Student
from utils.system.distributed import ALONE
from utils.training.metrics import MetricSums
from utils.training.precision import Precision
from utils.training.streams import RandomStream

FP32 = Precision("fp32", torch.device("cpu"))


def small_model():
    """Return a convolution with batch normalisation and a linear layer for 8 x 8 images and 6 classes, from seed 0."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, bias=False)  # the gradient of a bias would be rounding noise, which AdamW enlarges
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 6))


def batches_on(device, sizes=(8, 8, 8, 3)):
    """Yield random batches of these sizes, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    for size in sizes:
        images = torch.randn(size, 3, 8, 8, generator=generator)
        logits = torch.randn(size, 6, generator=generator)
        yield Batch(images.to(device), logits.to(device), torch.arange(size, device=device) % 6)


class BareStudent(Student):
    """A student of any model, optimizer and loss, without flags, folder and checkpoint; see `train_epoch`.

    Args:
        graph: a `CapturedStep`, or None for eager steps.
        others: attributes of `Student` with other values than those of a plain loss in one process.
    """

    def __init__(self, model, optimizer, loss_fn, precision=FP32, micro_batch=4, graph=None, average=None, **others):
        self.name, self.failed, self.world, self.progress = "student", None, ALONE, Progress()
        self.model, self.optimizer, self.loss_fn, self.precision = model, optimizer, loss_fn, precision
        self.micro_batch_size, self.graph, self.average = micro_batch, graph, average
        self.joint_loss = self.joint_statistics = False
        self.last_micro_batch = None
        self.random = others.get("random") or RandomStream(precision.device)
        vars(self).update(others)
        self.start_epoch(0)

    def start_epoch(self, epoch):
        """Begin the sums of an epoch."""
        self.model.train()
        self.sums = MetricSums(self.precision.device)

    def record_training(self, seconds, label_file=None):
        """End the training, so that `train` returns after one epoch and without an evaluation."""
        self.failed = "the end of the test's epoch"

    def take_step(self, batch):
        """Take one step as `train` does."""
        train_epoch([self], [batch])


def train_epoch(students, batches):
    """Train bare students for one epoch on `batches` by the loop of train_FKD_parallel.py."""
    for student in students:
        student.failed = None
    config = SimpleNamespace(epochs=1, eval_every=1, no_progress=True)
    source = SimpleNamespace(epoch=lambda *_: iter(batches), steps=lambda _: 1)
    signals = SimpleNamespace(until_stop=lambda items: items, agreed=lambda: None)
    train_FKD_parallel.train(config, students, source, None, ALONE, signals)
