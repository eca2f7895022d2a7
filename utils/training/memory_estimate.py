"""Estimate the device memory that training and evaluating a model need, before the run starts."""

import copy

import torch
from torch import nn

from utils.training.precision import Precision, without_cudnn_benchmark

# gradients, two optimizer moments, and the snapshot that is taken before a CUDA graph is captured: each of these four
# needs as much memory as the weights
WEIGHT_COPIES = 4
# number of layer outputs that evaluation needs at the same time: input and output of a layer, and a residual shortcut
OUTPUT_COPIES = 3
# number of float32 copies of a batch's images that exist while images are cropped, normalised and mixed
VIEW_COPIES = 4
# factor on the saved activations: it allows for the gradients of activations and the workspace of convolutions
ACTIVATION_OVERHEAD = 1.5
# batch sizes of the two forward passes that are measured; batch norm needs at least two rows
PROBE_BATCH_SIZES = 2, 4


class MemoryEstimate:
    """Estimates, in bytes, of the device memory that a model needs in addition to its weights.

    The tensors that a forward pass saves for backward take some bytes per row, and a fixed number of bytes for weights
    that autocast has converted. Both numbers are measured at two batch sizes. `model` is left unchanged.

    Args:
        model: the model, on its device.
        input_size: side S of the images, in pixels.
        precision: `Precision` of the forward passes.
        in_channels: C, number of channels of the images.
    """

    def __init__(self, model: nn.Module, input_size: int, precision: Precision, in_channels: int = 3) -> None:
        small, large = PROBE_BATCH_SIZES
        self.input_size, self.in_channels = input_size, in_channels
        self.weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        self.small_batch_bytes = saved_activation_bytes(model, small, input_size, precision, in_channels)
        large_batch_bytes = saved_activation_bytes(model, large, input_size, precision, in_channels)
        self.bytes_per_row = (large_batch_bytes - self.small_batch_bytes) / (large - small)
        self.output_bytes = largest_output_bytes(model, input_size, precision, in_channels)

    def training_bytes(self, batch: int, micro_batch: int) -> int:
        """Return the bytes that training needs: for gradients, optimizer state, a snapshot, and one step.

        Args:
            batch: number of rows of a batch.
            micro_batch: number of rows of a forward pass.
        """
        return WEIGHT_COPIES * self.weight_bytes + self.step_bytes(batch, micro_batch)

    def step_bytes(self, batch: int, micro_batch: int) -> int:
        """Return the bytes that one step on `batch` rows needs for images and activations.

        `micro_batch` is the number of rows of a forward pass. Without a CUDA graph, a step frees these bytes at its
        end. A CUDA graph keeps the bytes allocated.
        """
        activations = self.small_batch_bytes + (micro_batch - PROBE_BATCH_SIZES[0]) * self.bytes_per_row
        return int(ACTIVATION_OVERHEAD * activations + self.view_bytes(batch))

    def evaluation_bytes(self, rows: int) -> int:
        """Return the bytes for evaluating `rows` images at once.

        Evaluation saves no activations, so only the images and the largest layer outputs count.
        """
        return int(OUTPUT_COPIES * self.output_bytes * rows + self.view_bytes(rows))

    def view_bytes(self, rows: int) -> int:
        """Return the bytes needed to crop, normalise and mix a batch of `rows` images."""
        return VIEW_COPIES * self.in_channels * 4 * rows * self.input_size**2


def largest_output_bytes(model: nn.Module, input_size: int, precision: Precision, in_channels: int = 3) -> float:
    """Find the layer with the largest output; return the bytes of its output for one image of S x S pixels."""
    sizes = [0]

    def record_size(_layer: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() * output.element_size())

    probe = copy.deepcopy(model).eval()
    for layer in probe.modules():
        layer.register_forward_hook(record_size)
    with torch.no_grad():
        pass_forward(probe, PROBE_BATCH_SIZES[0], input_size, precision, in_channels)
    return max(sizes) / PROBE_BATCH_SIZES[0]


def saved_activation_bytes(
    model: nn.Module, rows: int, input_size: int, precision: Precision, in_channels: int = 3
) -> int:
    """Return the bytes that a forward pass of `rows` images saves for backward, without weights and buffers."""
    probe = copy.deepcopy(model).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*probe.parameters(), *probe.buffers())}
    saved: dict[int, tuple[int, torch.Tensor]] = {}

    def record_storage(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # keep the tensor alive, so that no later tensor gets the same address and replaces this entry
            saved[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(record_storage, lambda tensor: tensor):
        pass_forward(probe, rows, input_size, precision, in_channels)
    return sum(size for size, _ in saved.values())


def pass_forward(model: nn.Module, rows: int, input_size: int, precision: Precision, in_channels: int) -> None:
    """Run a forward pass on `rows` images of zeros; restore the global random states afterwards."""
    images = torch.zeros(rows, in_channels, input_size, input_size, device=precision.device)
    cuda_devices = [precision.device] if precision.device.type == "cuda" else []
    with torch.random.fork_rng(cuda_devices), without_cudnn_benchmark(), precision.autocast():
        model(images.to(memory_format=precision.memory_format))
