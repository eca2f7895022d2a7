"""The optimizer, and the exponential moving average (EMA) of the weights."""

import copy
from functools import partial
from typing import Any

import torch
from torch import nn

from utils.config import EMA_BUFFERS


def build_optimizer(
    model: nn.Module, sgd: bool, lr: float, weight_decay: float, momentum: float = 0.0, decay_all: bool = False
) -> torch.optim.Optimizer:
    """Return an optimizer: SGD if `sgd` is true, else AdamW. It is fused if the installed PyTorch supports that.

    Weight decay applies only to parameters of at least two dimensions whose names end in `weight`; with `decay_all`, it
    applies to all parameters. AdamW ignores `momentum`.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = name.endswith("weight") and parameter.dim() > 1
        (decayed if matrix or decay_all else plain).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    make = partial(torch.optim.SGD, momentum=momentum) if sgd else torch.optim.AdamW
    try:
        # pass copies, because a failed call changes the given dicts
        return make([dict(group) for group in groups], lr=lr, weight_decay=weight_decay, fused=True)
    except (RuntimeError, TypeError):  # fused SGD and fused optimizers on the CPU need PyTorch 2.4
        return make(groups, lr=lr, weight_decay=weight_decay)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def forget_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Set an optimizer's state to zero, in place, because a captured CUDA graph continues to use the same tensors."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                value.zero_()


class AveragedModel:
    """EMA of a model's weights: ema = decay * ema + (1 - decay) * weights; it starts at the model's current weights.

    If `buffers` is `averaged`, float buffers are averaged too, and integer buffers (batch counters) are shared with the
    model in training. If `buffers` is `live`, all buffers are shared with the model in training. EDC (Shao et al.,
    2024) evaluates averaged weights with live buffers.

    The averages equal those of `timm.utils.ModelEmaV3`, bit for bit, but cost less time. At each step, ModelEmaV3
    builds two state dicts and copies integer buffers one by one. For a ResNet, this takes milliseconds on the host.
    `update` averages all tensors in a single call of a PyTorch function instead.

    Args:
        model: the model in training, on its device.
        decay: in (0, 1].
        buffers: one of EMA_BUFFERS.

    Attributes:
        model: the averaged model, in eval mode, without gradients.
    """

    def __init__(self, model: nn.Module, decay: float, buffers: str = EMA_BUFFERS[0]) -> None:
        self.live = buffers == "live"
        # deepcopy does not copy the objects in its second argument, so both models share these buffers
        shared = {id(buffer): buffer for buffer in model.buffers() if self.live or not buffer.is_floating_point()}
        self.model = copy.deepcopy(model, shared).eval().requires_grad_(False)
        self.decay = decay
        # build the lists of tensors only once, because training changes only the values of these tensors
        self.averages = self.averaged_tensors(self.model)
        self.weights = self.averaged_tensors(model)

    def averaged_tensors(self, model: nn.Module) -> list[torch.Tensor]:
        """Return the tensors of `model` to average: float parameters and, if buffers are `averaged`, float buffers."""
        tensors: list[torch.Tensor] = list(model.parameters())
        if not self.live:
            tensors += model.buffers()
        return [tensor.detach() for tensor in tensors if tensor.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights of the model in training.

        This launches a few kernels and does not wait for the device.
        """
        torch._foreach_lerp_(self.averages, self.weights, 1 - self.decay)
