"""The device and the arithmetic of a run: fp32, bf16 or fp16."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from utils.system.errors import InputError
from utils.system.ranks import ALONE, World


class Precision:
    """One code path for fp32, bf16 and fp16: autocast and loss scaling that are off where not needed.

    fp32 by name is laid out NCHW, as in the reference, and reproduces its figures; all else is
    channels-last, which is faster. On CUDA fp32 means 32 bits throughout: see `configure_cuda`.

    Args:
        name: `auto`, `fp32`, `bf16` or `fp16`; auto is bf16 on CUDA and on CPUs with native bf16.
        device: torch.device.
    """

    def __init__(self, name: str, device: torch.device):
        self.memory_format = torch.contiguous_format if name == "fp32" else torch.channels_last
        if name == "auto":
            name = "bf16" if has_fast_bf16(device) else "fp32"
        if name == "fp16" and device.type != "cuda":
            raise InputError("--precision fp16 needs a CUDA device; use bf16 or fp32 on the CPU")
        self.name, self.device = name, device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        scaler = getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler)  # its home moved in PyTorch 2.3
        self.scaler = scaler(enabled=name == "fp16")

    def __str__(self) -> str:
        layout = "NCHW" if self.memory_format == torch.contiguous_format else "channels-last"
        exact = self.name == "fp32" and self.device.type == "cuda"  # elsewhere there is no TF32 to do without
        return f"{self.name} {'without TF32 ' if exact else ''}{layout}"

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in the memory layout; return it."""
        return model.to(self.device).to(memory_format=self.memory_format)

    def autocast(self) -> torch.autocast:
        """Context in which a model runs in this precision."""
        if self.name == "fp32":
            return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=False)
        return torch.autocast(self.device.type, dtype=self.dtype)

    def outputs(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 [B, C] of a model that runs in this precision on images [B, 3, S, S]."""
        with self.autocast():
            outputs = model(images)
        return outputs.float()


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is native: on GPUs since Ampere and AMD's, on CPUs with bf16 instructions.

    PyTorch's own answer is also yes where it is emulated, slowly, as on V100 and T4.
    """
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def pick_device(name: str, world: World = ALONE) -> torch.device:
    """Return the torch.device of --device {auto,cpu,cuda}: of several processes each has a GPU of its own."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no CUDA device; use --device cpu, or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    configure_cuda()
    return torch.device("cuda", world.local_rank)  # with its number, which PyTorch 2.0 asks for


@contextmanager
def without_cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN take the algorithm that it thinks best, for passes whose shape comes once: trying all takes longer."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def configure_cuda() -> None:
    """Choose what PyTorch leaves open on CUDA, for this process.

    * No TF32, whose ten bits of mantissa PyTorch allows in convolutions and not in products: `--precision fp32`
      asks for fp32, and whoever wants speed has bf16.
    * Products in fp16, of which views are replayed, are added up in fp32.
    * cuDNN tries its algorithms at the first batch of a shape and keeps the fastest: a run has a handful of
      shapes, those of a micro-batch, of the short last one, and of the validation batches.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = True
