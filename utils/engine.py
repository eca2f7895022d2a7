"""Train for one epoch, evaluate: the only place that steps an optimizer."""

import ctypes
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

from utils.distributed import ALONE, World, share
from utils.errors import InputError
from utils.metrics import MetricSums

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


class Precision:
    """One code path for fp32, bf16 and fp16: autocast and loss scaling that are off where not needed.

    fp32 by name is laid out NCHW, as in the reference, and reproduces its figures; all else is
    channels-last, which is faster.

    Args:
        name: `auto`, `fp32`, `bf16` or `fp16`; auto is bf16 on CUDA and on CPUs with native bf16.
        device: torch.device.
    """

    def __init__(self, name, device):
        self.memory_format = torch.contiguous_format if name == "fp32" else torch.channels_last
        if name == "auto":
            name = "bf16" if has_fast_bf16(device) else "fp32"
        if name == "fp16" and device.type != "cuda":
            raise InputError("--precision fp16 needs a CUDA device; use bf16 or fp32 on the CPU")
        self.name, self.device = name, device
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        scaler = getattr(torch.amp, "GradScaler", torch.cuda.amp.GradScaler)  # its home moved in PyTorch 2.3
        self.scaler = scaler(enabled=name == "fp16")

    def __str__(self):
        return f"{self.name} {'NCHW' if self.memory_format == torch.contiguous_format else 'channels-last'}"

    def autocast(self):
        """Context in which a model runs in this precision."""
        if self.name == "fp32":
            return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=False)
        return torch.autocast(self.device.type, dtype=self.dtype)


def has_fast_bf16(device):
    """Whether bf16 arithmetic is native: on CUDA devices that say so, on CPUs with bf16 instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def pick_device(name, world=ALONE):
    """Return the torch.device of --device {auto,cpu,cuda}: of several processes each has a GPU of its own."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this PyTorch sees no CUDA device; use --device cpu, or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", world.local_rank) if world.size > 1 else torch.device("cuda")


def keep_freed_memory():
    """Let this process keep the memory that it frees; return whether its C library can (glibc can).

    glibc hands large blocks back to the system, which must fill them with zeros, page by page, when the
    next step asks for them again: a tenth of a training step on the CPU. See mallopt(3).
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return all(set_option(option, value) for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)))


def build_optimizer(model, sgd, lr, weight_decay, momentum=0.0):
    """Return AdamW, or SGD; weight decay only on `*weight` parameters of two or more dimensions."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        (decayed if name.endswith("weight") and parameter.dim() > 1 else plain).append(parameter)
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    make = partial(torch.optim.SGD, momentum=momentum) if sgd else torch.optim.AdamW
    try:  # on copies, since a constructor that fails leaves its defaults in the groups
        return make([dict(group) for group in groups], lr=lr, weight_decay=weight_decay, fused=True)
    except (RuntimeError, TypeError):  # PyTorch has it from 2.4 on for SGD and on the CPU
        return make(groups, lr=lr, weight_decay=weight_decay)


def set_lr(optimizer, lr):
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def train_step(model, batch, loss_fn, optimizer, precision, micro_batch, sums):
    """One optimizer step on a `Batch`, in micro-batches of `micro_batch` rows.

    Micro-batch i weighs n_i / N, so that a short last batch still is one true mean.
    """
    optimizer.zero_grad(set_to_none=True)
    for micro in batch.split(micro_batch):
        with precision.autocast():
            outputs = model(micro.images)  # [n_i, C]
        outputs = outputs.float()
        loss = loss_fn(outputs, micro.soft_labels, micro.targets)
        precision.scaler.scale(loss * (len(micro) / len(batch))).backward()
        sums.add(loss, outputs, micro.targets)
    precision.scaler.step(optimizer)
    precision.scaler.update()


@dataclass(frozen=True)
class SharedStep:
    """`train_step` by one of several processes; the update is that of one process with all the rows.

    Attributes:
        world: `World`.
        join_always: run the model also on an empty share, since its batch statistics are everybody's.
        whole_loss: the loss is not a mean over rows (dist): it is computed of all ranks' outputs.
    """

    world: World
    join_always: bool
    whole_loss: bool

    def __call__(self, model, batch, loss_fn, optimizer, precision, micro_batch, sums):
        """One optimizer step on this rank's rows; each weighs one N-th of the whole batch."""
        optimizer.zero_grad(set_to_none=True)
        for micro in batch.split(micro_batch):
            if not (len(micro) or self.join_always or self.whole_loss):
                continue
            with precision.autocast():
                outputs = model(micro.images)  # [own, C]
            outputs = outputs.float()
            loss, rows = self.loss(loss_fn, outputs, micro)
            precision.scaler.scale(loss * (rows / batch.whole)).backward()
            sums.add(loss, outputs, micro.targets)
        sum_gradients(model, self.world)
        precision.scaler.step(optimizer)
        precision.scaler.update()

    def loss(self, loss_fn, outputs, micro):
        """Return (loss of a micro-batch, rows that it is the mean of)."""
        if self.whole_loss:
            tensors = outputs, micro.soft_labels, micro.targets
            return loss_fn(*(self.join(tensor, micro.whole) for tensor in tensors)), micro.whole
        if not len(micro):
            return outputs.sum(), 0
        return loss_fn(outputs, micro.soft_labels, micro.targets), len(micro)

    def join(self, tensor, rows):
        """Put this rank's rows [own, …] among those of the others [rows, …], which are constants here."""
        own = share(rows, self.world.rank, self.world.size)
        whole = tensor.new_zeros(rows, *tensor.shape[1:])
        whole[own.start : own.stop] = tensor.detach()
        self.world.sum_(whole)
        return torch.cat([whole[: own.start], tensor, whole[own.stop :]])


def sum_gradients(model, world):
    """Sum the gradients over ranks, in one piece."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        if parameter.grad is None:  # this rank had no rows
            parameter.grad = torch.zeros_like(parameter)
    total = world.sum_(torch.cat([parameter.grad.flatten() for parameter in parameters]))
    for parameter, piece in zip(parameters, total.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(piece.view(parameter.shape))


def train_one_epoch(
    model, batches, loss_fn, optimizer, precision, micro_batch, step=train_step, sums=None, world=ALONE
):
    """Train on every `Batch` of an epoch; return its `Metrics`, read from the device once.

    `step` is `train_step`, or what `graphs.pick_step` makes of it; `sums` are those to add to; those of
    all ranks of `world` are summed at the end.
    """
    model.train()
    sums = sums or MetricSums(precision.device)
    for batch in batches:
        step(model, batch, loss_fn, optimizer, precision, micro_batch, sums)
        sums.end_batch()
    return sums.sum_over(world).result()


@torch.no_grad()
def evaluate(model, batches, precision, world=ALONE):
    """Return `Metrics` of the model on the (images, targets) batches of all ranks; the loss is cross-entropy.

    Every rank evaluates rank 0's model: where batch statistics differ between ranks, its are taken.
    """
    world.broadcast(model.buffers())
    model.eval()
    sums = MetricSums(precision.device)
    for images, targets in batches:
        with precision.autocast():
            outputs = model(images)
        outputs = outputs.float()
        sums.add(F.cross_entropy(outputs, targets), outputs, targets)
    return sums.sum_over(world).result()
