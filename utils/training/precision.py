"""Device and precision of a run: fp32, bf16 or fp16."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from utils.system.distributed import ALONE, World
from utils.system.errors import InputError


class Precision:
    """Autocast, loss scaling and memory layout for training in fp32, bf16 or fp16.

    Autocast is disabled in fp32. Loss scaling is enabled only in fp16. fp32 never uses TF32, see `configure_cuda`.
    `--precision fp32` uses the NCHW layout, to reproduce results of the reference code. `bf16`, `fp16` and `auto` use
    channels-last, which is faster. On devices where `auto` means fp32, `auto` still uses channels-last.

    Args:
        name: `auto`, `fp32`, `bf16` or `fp16`. `auto` means bf16 if the device computes bf16 natively, else fp32.
        device: torch.device.

    Raises:
        InputError: fp16 on a device other than CUDA.
    """

    def __init__(self, name: str, device: torch.device):
        self.memory_format = torch.contiguous_format if name == "fp32" else torch.channels_last
        if name == "auto":
            name = "bf16" if has_fast_bf16(device) else "fp32"
        if name == "fp16" and device.type != "cuda":
            raise InputError("--precision fp16 needs a CUDA device; use bf16 or fp32 on others")
        self.name = name
        self.device = device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        scaler = getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler)  # in torch.amp since PyTorch 2.3
        self.scaler = scaler(enabled=name == "fp16")

    def __str__(self) -> str:
        layout = "NCHW" if self.memory_format == torch.contiguous_format else "channels-last"
        exact = self.name == "fp32" and self.device.type == "cuda"  # TF32 exists on CUDA only
        return f"{self.name} {'without TF32 ' if exact else ''}{layout}"

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, convert its weights to this precision's memory layout, and return the model."""
        return model.to(self.device).to(memory_format=self.memory_format)

    def autocast(self) -> torch.autocast:
        """Return the autocast context of this precision, which does nothing in fp32."""
        if self.name == "fp32":
            return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=False)
        return torch.autocast(self.device.type, dtype=self.dtype)

    def outputs(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Run a model in this precision on images [B, 3 or 1, S, S]; return its logits, float32 [B, C]."""
        with self.autocast():
            outputs = model(images)
        return outputs.float()


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether a device computes bf16 natively.

    True for NVIDIA GPUs since Ampere, AMD GPUs, Intel GPUs that report bf16, and CPUs with bf16 instructions.

    `torch.cuda.is_bf16_supported` is not used, because it also accepts GPUs that emulate bf16 slowly (V100, T4).
    """
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "xpu":
        return bool(torch.xpu.is_bf16_supported()) if hasattr(torch.xpu, "is_bf16_supported") else False
    if device.type == "mps":  # recent Apple GPUs have bf16, but PyTorch does not tell whether this one does
        return False
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def pick_device(name: str, world: World = ALONE) -> torch.device:
    """Return the device of this process; on CUDA, also call `configure_cuda`.

    Args:
        name: value of --device: `cpu`, `cuda`, `cuda:N`, `mps`, `xpu`, or `auto` for CUDA if available, else the CPU.
        world: ranks of the run; the process with local rank i gets GPU i of its machine.

    Raises:
        InputError: PyTorch sees no such device, or several processes were asked to share one device.
    """
    kind, _, number = name.partition(":")
    if world.size > 1 and (number or kind in ("mps", "xpu")):
        raise InputError(f"--device {name} trains in one process, not in {world.size}; start without torchrun")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: this PyTorch sees no Apple GPU; use --device cpu, or auto")
    if kind == "xpu" and not (hasattr(torch, "xpu") and torch.xpu.is_available()):
        raise InputError("--device xpu: this PyTorch sees no Intel GPU; use --device cpu, or auto")
    if kind in ("mps", "xpu"):
        return torch.device(kind, 0)
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this PyTorch sees no CUDA device; use --device cpu, or auto")
    if kind == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; give a lower N")
    if number:
        torch.cuda.set_device(int(number))  # streams and CUDA graphs are created on the current device
    configure_cuda()
    return torch.device("cuda", int(number or world.local_rank))  # PyTorch 2.0 needs an index in the device


@contextmanager
def without_cudnn_benchmark() -> Iterator[None]:
    """Disable cuDNN autotuning until the block ends.

    Autotuning costs more time than it saves for input shapes that occur only once.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def configure_cuda() -> None:
    """Set PyTorch's numerical options for CUDA in this process.

    * TF32 is disabled, because its mantissa has only ten bits. PyTorch allows it in convolutions by default, but
      `--precision fp32` should mean full fp32. Users who prefer speed have bf16.
    * Matrix products in fp16 are accumulated in fp32. `resize_views` crops and resizes images by such products.
    * cuDNN autotuning is enabled. At the first batch of each shape, it tries all algorithms and picks the fastest. A
      run has few shapes: those of a full micro-batch, of a short last micro-batch, and of the validation batches.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = True
