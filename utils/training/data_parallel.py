"""Make a step of several processes equal to the step of one process with all rows.

PyTorch's SyncBatchNorm needs GPUs. The class here works on any device, computes in float32, and computes the variance
in two passes, as a single process does. A rank may have no rows.
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
        rows: this rank's rows, [own, …].
        number: rows of the micro-batch over all ranks.
        world: `World`; every rank must call this function.

    Returns:
        the rows of all ranks, [number, …].
    """
    own = share(number, world.rank, world.size)
    whole = rows.new_zeros(number, *rows.shape[1:])
    whole[own.start : own.stop] = rows.detach()
    world.all_reduce_sum(whole)
    return torch.cat([whole[: own.start], rows, whole[own.stop :]])


def gather_micro_batch(micro_batch: Batch, world: World) -> Batch:
    """Return a micro-batch with the soft labels and classes of all ranks, but only this rank's images."""
    number = micro_batch.whole
    soft_labels = each(micro_batch.soft_labels, lambda rows: all_rows(rows, number, world))
    return Batch(micro_batch.images, soft_labels, all_rows(micro_batch.targets, number, world))


def sum_gradients(model: nn.Module, world: World) -> None:
    """All-reduce the sum of the gradients, in one tensor; do nothing if there is only one process."""
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


class Normalise(torch.autograd.Function):
    """x -> (x - mean) / sqrt(var + eps), with mean and variance per channel over the rows of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, eps: float, world: World) -> tuple[torch.Tensor, ...]:
        """Return (normalised x [b, C, …], mean [C], biased variance [C], rows x pixels over all ranks)."""
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
        """Return dx = scale · (dy - mean(dy) - x̂ · mean(dy · x̂)), with means over the rows of all ranks."""
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
    """Synchronised batch norm that replaces a BatchNorm1d, 2d or 3d `layer` and uses its parameters and buffers."""

    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None

    def __init__(self, layer: AnyBatchNorm, world: World):
        super().__init__()
        self.world, self.eps, self.momentum = world, layer.eps, layer.momentum
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(layer, name))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [b, C, …]; training mode uses the statistics over the rows of all ranks."""
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
        running_mean, running_var, batches = self.buffers()  # in the order of registration
        batches += 1
        momentum = 1 / batches if self.momentum is None else self.momentum
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (variance - running_var)


def synchronise(model: nn.Module, world: World) -> None:
    """Replace every batch-norm layer of `model` in place by `SyncBatchNorm`; the state dict stays the same.

    Raises:
        InputError: the model has a kind of batch normalisation that cannot be replaced.
    """
    for name, child in model.named_children():
        if not isinstance(child, AnyBatchNorm):
            synchronise(child, world)
        elif type(child) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            setattr(model, name, SyncBatchNorm(child, world))
        else:
            raise InputError(f"--sync-bn cannot replace this model's {type(child).__name__} layers; leave it out")
