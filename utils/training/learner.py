"""A model in training, with all that its steps need, and the step that one process takes."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from utils.training.average import AveragedModel
from utils.training.metrics import MetricSums
from utils.training.precision import Precision
from utils.training.random_numbers import RandomStream
from utils.views.batch import Batch


def train_step(learner: "Learner", batch: Batch) -> None:
    """One optimizer step of a `Learner` on a `Batch`, in micro-batches; loss and hits go into its sums.

    Micro-batch i weighs n_i / N, so that a short last batch still is one true mean.
    """
    optimizer, scaler = learner.optimizer, learner.precision.scaler
    optimizer.zero_grad(set_to_none=True)
    for micro in batch.split(learner.micro_batch):
        outputs = learner.precision.outputs(learner.model, micro.images)  # [n_i, C]
        loss = learner.loss_fn(outputs, micro.soft_labels, micro.targets)
        scaler.scale(loss * (len(micro) / len(batch))).backward()
        learner.sums.add(loss, outputs, micro.targets)
    scaler.step(optimizer)
    scaler.update()


class Learner:
    """A model with what its steps need, and the figures that they add up to.

    Args:
        model: on its device, as initialised or resumed.
        optimizer: of its parameters.
        loss_fn: see `build_loss`.
        precision: `Precision`; its loss scaling belongs to this model alone.
        micro_batch: images that go through the model at once, over all ranks.
        step: takes this learner and a batch: `train_step`, or what `pick_step` makes of it.
        average: what is evaluated instead of the model, where there is one.

    Attributes:
        random: its own stream of random numbers, which goes on from the present random state.
        sums: `MetricSums` of the epoch in training.
        first_batch: number of the batch of this epoch that it takes first.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable,
        precision: Precision,
        micro_batch: int,
        step: Callable[["Learner", Batch], None] = train_step,
        average: AveragedModel | None = None,
    ) -> None:
        self.average = average
        self.model, self.optimizer, self.loss_fn = model, optimizer, loss_fn
        self.precision, self.micro_batch, self.step = precision, micro_batch, step
        self.random = RandomStream(precision.device)
        self.start_epoch()

    def start_epoch(self, first_batch: int = 0, sums: Sequence[float] = (0, 0, 0), samples: int = 0) -> None:
        """Be ready for an epoch, or for what is left of it from `first_batch` on; the rest is in the figures."""
        self.model.train()
        self.first_batch, self.sums = first_batch, MetricSums(self.precision.device, sums, samples)

    def learn(self, batch: Batch) -> None:
        """Take one optimizer step."""
        with self.random:
            self.step(self, batch)
        if self.average is not None:
            self.average.update()
        self.sums.end_batch()

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated."""
        return self.model if self.average is None else self.average.model

    def answer(self, images: torch.Tensor, targets: torch.Tensor, sums: MetricSums) -> None:
        """Add cross-entropy and hits on images [B, 3, S, S] of classes [B] to `sums`."""
        with self.random:
            outputs = self.precision.outputs(self.evaluated, images)
        sums.add(F.cross_entropy(outputs, targets), outputs, targets)
