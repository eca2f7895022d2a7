"""Data parallelism: an optimizer step of several processes equals the step of one process that has the whole batch.

PyTorch's own SyncBatchNorm needs GPUs. The `SyncBatchNorm` of this module works on any device. It computes in float32,
and it computes the variance in two passes, as a single process does. It also works on a rank without any rows.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm

from utils.data.batch import Batch
from utils.labels.types import each
from utils.system.distributed import World, share
from utils.system.errors import InputError


def all_rows(rows: torch.Tensor, number: int, world: World) -> torch.Tensor:
    """Gather the rows of a micro-batch from all ranks; gradients flow only into this rank's rows.

    Args:
        rows: the rows of the micro-batch that are on this rank, [own, …].
        number: number of rows of the micro-batch on all ranks together.
        world: ranks of the run. Every rank must call this function.

    Returns:
        the rows of all ranks, [number, …].
    """
    own = share(number, world.rank, world.size)
    whole = rows.new_zeros(number, *rows.shape[1:])
    whole[own.start : own.stop] = rows.detach()
    world.all_reduce_sum(whole)
    return torch.cat([whole[: own.start], rows, whole[own.stop :]])


def gather_micro_batch(micro_batch: Batch, world: World) -> Batch:
    """Return a micro-batch that has the soft labels and targets of all ranks, but only the images of this rank.

    Every rank must call this function.
    """
    number = micro_batch.whole
    soft_labels = each(micro_batch.soft_labels, lambda rows: all_rows(rows, number, world))
    return Batch(micro_batch.images, soft_labels, all_rows(micro_batch.targets, number, world))


def sum_gradients(model: nn.Module, world: World) -> None:
    """Replace the gradient of each parameter by its sum over all ranks; do nothing if there is only one process.

    The gradients are concatenated for a single all-reduce. Every rank must call this function.
    """
    if world.size == 1:
        return
    gradients = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:  # this rank had no rows of the batch, and therefore no backward pass
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    total = world.all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, piece in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(piece.view(gradient.shape))


class Normalise(torch.autograd.Function):
    """Autograd function (x - mean) / sqrt(var + eps), with mean and var per channel over the rows of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float, world: World) -> tuple[torch.Tensor, ...]:
        """Normalise x [b, C, …], the b rows of this rank, with the mean and variance over all ranks.

        Returns:
            (normalised x [b, C, …], mean [C], biased variance [C], number of values per channel on all ranks [1]).
        """
        values, axes = x.float(), [0, *range(2, x.dim())]
        count = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float32, device=x.device)
        sums = world.all_reduce_sum(torch.cat([values.sum(axes), count]))
        count = sums[-1]
        mean = sums[:-1] / count
        centred = values - along_channels(mean, x)
        variance = world.all_reduce_sum(centred.square().sum(axes)) / count
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(centred.to(x.dtype), scale, count)
        ctx.world, ctx.axes = world, axes
        ctx.mark_non_differentiable(mean, variance, count)
        return (centred * along_channels(scale, x)).to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: object) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of x: scale · (dy - mean(dy) - x̂ · mean(dy · x̂)).

        Here dy is the gradient of the output, x̂ is the normalised x, and scale is 1 / sqrt(var + eps). Means are per
        channel, over the rows of all ranks.
        """
        centred, scale, count = ctx.saved_tensors
        dy = gradient.float()
        scale = along_channels(scale, gradient)
        normal = centred.float() * scale
        sums = torch.cat([dy.sum(ctx.axes), (dy * normal).sum(ctx.axes)])
        mean_dy, mean_product = (along_channels(part, dy) for part in (ctx.world.all_reduce_sum(sums) / count).chunk(2))
        return (scale * (dy - mean_dy - normal * mean_product)).to(gradient.dtype), None, None


def along_channels(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Reshape values [C] so that they broadcast against `like` [b, C, …]."""
    return values.view(1, -1, *[1] * (like.dim() - 2))


class SyncBatchNorm(nn.Module):
    """Batch norm with batch statistics over the rows of all ranks.

    Args:
        layer: the BatchNorm1d, BatchNorm2d or BatchNorm3d to replace; its parameters and buffers are reused.
        world: ranks of the run.
    """

    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None

    def __init__(self, layer: AnyBatchNorm, world: World):
        super().__init__()
        self.world, self.eps, self.momentum = world, layer.eps, layer.momentum
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(layer, name))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply batch norm to x [b, C, …].

        Training mode uses batch statistics over all ranks; eval mode uses the running statistics. A layer without
        running statistics uses batch statistics in both modes.
        """
        if not self.training and self.running_mean is not None:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        normal, mean, variance, count = Normalise.apply(x, self.eps, self.world)
        if self.training and self.running_mean is not None:
            self.track(mean, variance * count / (count - 1).clamp(min=1))
        if self.weight is None:
            return normal
        weight, bias = along_channels(self.weight, x), along_channels(self.bias, x)
        return (normal.float() * weight + bias).to(x.dtype)

    @torch.no_grad()
    def track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Update the running statistics as PyTorch does, from the mean and the unbiased variance of a batch."""
        running_mean, running_var, batches = self.buffers()  # in the order in which __init__ registered them
        batches += 1
        momentum = 1 / batches if self.momentum is None else self.momentum
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (variance - running_var)


def synchronise(model: nn.Module, world: World) -> None:
    """Replace every batch-norm layer of `model` in place by `SyncBatchNorm`; the model's state dict does not change.

    Raises:
        InputError: a batch-norm layer of the model is not a BatchNorm1d, 2d or 3d, so it cannot be replaced.
    """
    for name, child in model.named_children():
        if not isinstance(child, AnyBatchNorm):
            synchronise(child, world)
        elif type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            setattr(model, name, SyncBatchNorm(child, world))
        else:
            raise InputError(f"--sync-bn cannot replace this model's {type(child).__name__} layers; leave it out")
