"""What training and evaluating a model takes on a device, before it is done."""

import copy

import torch
from torch import nn

from utils.training.precision import Precision, unsearched

COPIES = 4  # of the weights, beside themselves: gradients, two moments, what is put back after recording a step
OUTPUTS = 3  # of the largest layer that an evaluation holds at a time: what goes in, what comes out, a shortcut
VIEWS = 4  # float32 copies of a batch's views while they are replayed, normalised and mixed
SPARE = 1.5  # gradients of activations, and the work space of convolutions
PROBED = 2, 4  # rows of two forward passes; two are the fewest that batch statistics need


def training_bytes(model: nn.Module, batch: int, micro_batch: int, input_size: int, precision: Precision) -> int:
    """Estimate the device memory of training `model`, whose weights are there already, in bytes.

    What a forward pass keeps for the backward one is measured with few rows and with some more, since a part of it
    does not grow with them: the weights in the precision of the pass. `model` stays as it is.
    """
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return COPIES * weights + step_bytes(model, batch, micro_batch, input_size, precision)


def step_bytes(model: nn.Module, batch: int, micro_batch: int, input_size: int, precision: Precision) -> int:
    """The part of `training_bytes` that a step on `batch` rows takes for its time, or a recorded one for good."""
    few, more = (saved_bytes(model, rows, input_size, precision) for rows in PROBED)
    kept = few + (micro_batch - PROBED[0]) * (more - few) / (PROBED[1] - PROBED[0])
    return int(SPARE * kept + views_bytes(batch, input_size))


def evaluation_bytes(model: nn.Module, rows: int, input_size: int, precision: Precision) -> int:
    """Estimate the device memory of evaluating `model`, whose weights are there already, on so many rows at once.

    Where a forward pass keeps nothing for a backward one, its largest outputs count; `model` stays as it is.
    """
    sizes = [0]

    def note(_layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() * output.element_size())

    probe = copy.deepcopy(model).eval()
    for layer in probe.modules():
        layer.register_forward_hook(note)
    with torch.no_grad():
        pass_forward(probe, PROBED[0], input_size, precision)
    return int(OUTPUTS * max(sizes) * rows / PROBED[0] + views_bytes(rows, input_size))


def views_bytes(rows: int, input_size: int) -> int:
    """Bytes of the views of a batch while they are made ready."""
    return VIEWS * 3 * 4 * rows * input_size**2


def saved_bytes(model: nn.Module, rows: int, input_size: int, precision: Precision) -> int:
    """Bytes that a forward pass of `rows` images of S x S pixels keeps for the backward pass, `model`'s own aside."""
    probe = copy.deepcopy(model).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*probe.parameters(), *probe.buffers())}
    seen: dict[int, tuple[int, torch.Tensor]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes(), tensor  # held, so that its place is not given away
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        pass_forward(probe, rows, input_size, precision)
    return sum(size for size, _ in seen.values())


def pass_forward(model: nn.Module, rows: int, input_size: int, precision: Precision) -> None:
    """Show a model so many black images; random states stay as they were."""
    images = torch.zeros(rows, 3, input_size, input_size, device=precision.device)
    own_states = [precision.device] if precision.device.type == "cuda" else []
    with torch.random.fork_rng(own_states), unsearched(), precision.autocast():
        model(images.to(memory_format=precision.memory_format))
