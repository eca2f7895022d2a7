"""An exponential moving average of a model's weights, taken after every optimizer step."""

import copy

import torch
from torch import nn

from utils.config import EMA_BUFFERS


class AveragedModel:
    """The average of a model's weights, and of its float buffers too unless they are live; it starts from today's.

    Other buffers (batch counters, and all of them if they are live) are shared with the model in training. Source:
    EDC (Shao et al., 2024) evaluates averaged weights with live buffers.

    Args:
        model: on its device.
        decay: share of the average that stays in each update, in (0, 1].
        buffers: one of EMA_BUFFERS.

    Attributes:
        model: the averaged model, without gradients.
    """

    def __init__(self, model: nn.Module, decay: float, buffers: str = EMA_BUFFERS[0]) -> None:
        self.live = buffers == "live"
        shared = {id(buffer): buffer for buffer in model.buffers() if self.live or not buffer.is_floating_point()}
        self.model = copy.deepcopy(model, shared).eval().requires_grad_(False)
        self.decay = decay
        self.pairs = [self.floats(self.model), self.floats(model)]

    def floats(self, model: nn.Module) -> list[torch.Tensor]:
        """The tensors that are averaged."""
        tensors = [*model.parameters(), *([] if self.live else model.buffers())]
        return [tensor.detach() for tensor in tensors if tensor.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model: in a few kernels, without waiting for the device."""
        average, weights = self.pairs
        torch._foreach_lerp_(average, weights, 1 - self.decay)
