"""One optimizer step by several processes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from utils.labels.types import each
from utils.system.ranks import World, share
from utils.training.learner import Learner
from utils.training.losses import SoftLoss
from utils.views.batch import Batch


@dataclass(frozen=True)
class SharedStep:
    """`train_step` by one of several processes; the update is that of one process with all the rows.

    Attributes:
        world: `World`.
        join_always: run the model also on an empty share, since its batch statistics are everybody's.
        whole_loss: the loss is not a mean over rows (dist): it is computed of all ranks' outputs.
    """

    world: World
    join_always: bool
    whole_loss: bool

    def __call__(self, learner: Learner, batch: Batch) -> None:
        """One optimizer step on this rank's rows; each weighs one N-th of the whole batch."""
        optimizer, scaler = learner.optimizer, learner.precision.scaler
        optimizer.zero_grad(set_to_none=True)
        for micro in batch.split(learner.micro_batch):
            if not len(micro):
                clear_last_micro_batch(learner.loss_fn)
            if not (len(micro) or self.join_always or self.whole_loss):
                continue
            outputs = learner.precision.outputs(learner.model, micro.images)  # [own, C]
            loss, rows = self.loss(learner.loss_fn, outputs, micro)
            scaler.scale(loss * (rows / batch.whole)).backward()
            learner.sums.add(loss, outputs, micro.targets)
        sum_gradients(learner.model, self.world)
        scaler.step(optimizer)
        scaler.update()

    def loss(self, loss_fn: Callable, outputs: torch.Tensor, micro: Batch) -> tuple[torch.Tensor, int]:
        """Return (loss of a micro-batch, rows that it is the mean of)."""
        if self.whole_loss:
            tensors = outputs, micro.soft_labels, micro.targets
            return loss_fn(
                *(each(tensor, lambda rows: self.join(rows, micro.whole)) for tensor in tensors)
            ), micro.whole
        if not len(micro):
            return outputs.sum(), 0
        return loss_fn(outputs, micro.soft_labels, micro.targets), len(micro)

    def join(self, tensor: torch.Tensor, rows: int) -> torch.Tensor:
        """Put this rank's rows [own, …] among those of the others [rows, …], which are constants here."""
        own = share(rows, self.world.rank, self.world.size)
        whole = tensor.new_zeros(rows, *tensor.shape[1:])
        whole[own.start : own.stop] = tensor.detach()
        self.world.all_reduce_sum(whole)
        return torch.cat([whole[: own.start], tensor, whole[own.stop :]])


def clear_last_micro_batch(loss_fn: Callable) -> None:
    """Clear the last micro-batch that a loss has recorded: this rank has no rows of the current one."""
    if isinstance(loss_fn, SoftLoss) and loss_fn.last is not None:
        loss_fn.last.clear()


def sum_gradients(model: nn.Module, world: World) -> None:
    """Sum the gradients over ranks, in one piece."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:  # this rank had no rows
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    total = world.all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, piece in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view(gradient.shape))
