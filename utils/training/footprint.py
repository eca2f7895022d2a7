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


class Footprint:
    """Estimates of the device memory that a model takes, in bytes, its weights aside, which are there already.

    What a forward pass keeps for the backward one is measured once, with few rows and with some more, since a part of
    it does not grow with them: the weights in the precision of the pass. `model` stays as it is.

    Args:
        model: on its device.
        input_size: S.
        precision: of its passes.
    """

    def __init__(self, model: nn.Module, input_size: int, precision: Precision) -> None:
        self.input_size = input_size
        self.weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        self.few, more = (saved_bytes(model, rows, input_size, precision) for rows in PROBED)
        self.row = (more - self.few) / (PROBED[1] - PROBED[0])
        self.output = largest_output(model, input_size, precision)

    def training(self, batch: int, micro_batch: int) -> int:
        """Of the optimizer and of steps on `batch` rows, recorded or not."""
        return COPIES * self.weights + self.step(batch, micro_batch)

    def step(self, batch: int, micro_batch: int) -> int:
        """The part of it that one step takes for its time, or a recorded one for good."""
        kept = self.few + (micro_batch - PROBED[0]) * self.row
        return int(SPARE * kept + self.views(batch))

    def evaluation(self, rows: int) -> int:
        """Of evaluating so many rows at once, where nothing is kept for a backward pass: the largest outputs count."""
        return int(OUTPUTS * self.output * rows + self.views(rows))

    def views(self, rows: int) -> int:
        """Of the views of a batch while they are made ready."""
        return VIEWS * 3 * 4 * rows * self.input_size**2


def largest_output(model: nn.Module, input_size: int, precision: Precision) -> float:
    """Bytes of the largest output of any layer for one image of S x S pixels."""
    sizes = [0]

    def note(_layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() * output.element_size())

    probe = copy.deepcopy(model).eval()
    for layer in probe.modules():
        layer.register_forward_hook(note)
    with torch.no_grad():
        pass_forward(probe, PROBED[0], input_size, precision)
    return max(sizes) / PROBED[0]


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
