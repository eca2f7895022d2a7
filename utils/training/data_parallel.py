"""The sums over ranks that make a step of several processes the step of one process with all the rows."""

import torch
from torch import nn

from utils.labels.types import each
from utils.system.ranks import World, share
from utils.views.batch import Batch


def all_rows(rows: torch.Tensor, number: int, world: World) -> torch.Tensor:
    """Put this rank's rows of a micro-batch among those of the other ranks, which are constants for autograd.

    Args:
        rows: [own, …].
        number: rows of the micro-batch over all ranks.
        world: every rank must call.

    Returns:
        [number, …].
    """
    own = share(number, world.rank, world.size)
    whole = rows.new_zeros(number, *rows.shape[1:])
    whole[own.start : own.stop] = rows.detach()
    world.all_reduce_sum(whole)
    return torch.cat([whole[: own.start], rows, whole[own.stop :]])


def gather_micro_batch(micro_batch: Batch, world: World) -> Batch:
    """Return a micro-batch with the answers and classes of all ranks; its images stay this rank's own."""
    number = micro_batch.whole
    soft_labels = each(micro_batch.soft_labels, lambda rows: all_rows(rows, number, world))
    return Batch(micro_batch.images, soft_labels, all_rows(micro_batch.targets, number, world))


def sum_gradients(model: nn.Module, world: World) -> None:
    """Sum the gradients over ranks, all in one tensor; nothing is to be done for one process."""
    if world.size == 1:
        return
    gradients = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # this rank had no rows
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    total = world.all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, piece in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view(gradient.shape))
