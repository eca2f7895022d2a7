"""Capture the whole optimizer step as one CUDA graph, so that small batches are not bound by kernel launches.

A step on 25 images launches hundreds of kernels, each of which runs for less time than its launch takes.
A CUDA graph records all kernels of a step once: crop, flip and mixing of the images, forward pass, backward pass,
weight update and metric sums. It then launches all of them together. The graph reads the batch and the learning rate
from static tensors, which are overwritten before each launch. A shorter batch, such as the last one of an epoch, is
trained eagerly, without the graph.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any, Protocol

import torch
from torch import nn

from utils.data.batch import Batch
from utils.system.distributed import ALONE, World
from utils.system.log import log
from utils.training.metrics import MetricSums
from utils.training.precision import Precision

# number of eager steps before the capture: in these steps, cuDNN and cuBLAS choose algorithms and allocate memory
WARM_UP_STEPS = 3


def captures(precision: Precision, world: World = ALONE) -> bool:
    """Return whether a run's optimizer steps can be captured as a CUDA graph.

    This requires a CUDA device, a single process, and a precision without loss scaling, thus not fp16.
    """
    if precision.device.type != "cuda" or world.size > 1:
        return False
    if precision.scaler.is_enabled():
        log.info("step    eager: the loss scaling of fp16 needs the host in every step")
        return False
    return True


class Trains(Protocol):
    """Protocol: the attributes of a student that an optimizer step reads or updates; see `run.student.Student`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    sums: MetricSums


# function (student, batch) that takes one optimizer step eagerly, without a CUDA graph
Step = Callable[[Any, Batch], None]


class CapturedStep:
    """Optimizer step that runs as one CUDA graph and has the same result as the eager step.

    The graph is captured at the first call, and again if a later batch has more rows. All calls must have the same
    student, loss and micro-batch size. The capture may fail, for example because the model synchronises with the
    device or because PyTorch is old. Then the reason is logged, and all steps run eagerly.
    """

    def __init__(self) -> None:
        self.launch: Callable[[], None] | None = None
        self.failed = False

    def __call__(self, step: Step, student: Trains, batch: Batch) -> None:
        """Train the student on the batch, with the CUDA graph or by an eager call of `step(student, batch)`.

        The graph is captured for the first batch, and again for a batch with more rows than the captured batch. Other
        batches are trained with the graph if their `shapes` are equal to those of the captured batch, else eagerly.
        After a failed capture, every batch is trained eagerly.
        """
        if not self.failed and (self.launch is None or len(batch) > self.rows):
            self.capture(step, student, batch)
        if self.launch is None or shapes(batch) != self.shapes:
            step(student, batch)
            return
        for static, value in zip(self.inputs, batch.tensors(), strict=True):
            if static is not None and value is not None:
                static.copy_(value, non_blocking=True)
        for lr, group in zip(self.rates, student.optimizer.param_groups, strict=True):
            lr.fill_(group["lr"])
        self.launch()
        student.sums.sums += self.sums.sums
        student.sums.samples += len(batch)

    def capture(self, eager: Step, student: Trains, batch: Batch) -> None:
        """Capture the step `eager` as a CUDA graph that reads its inputs from static copies of the batch's tensors.

        The capture leaves the model, the optimizer and the random state unchanged. If it fails, `give_up` is called.
        """
        device, optimizer = student.precision.device, student.optimizer
        self.launch = None
        self.rows = len(batch)
        self.shapes = shapes(batch)
        if not all(group.get("fused") for group in optimizer.param_groups):
            self.give_up("this PyTorch's optimizer synchronises with the device")
            return
        self.inputs = [None if value is None else value.clone() for value in batch.tensors()]
        self.rates = [torch.tensor(float(group["lr"]), device=device) for group in optimizer.param_groups]
        self.sums = MetricSums(device)
        captured = copy(student)
        captured.sums = self.sums

        def step() -> None:
            self.sums.sums.zero_()
            # build the batch inside the captured step, so that the graph also computes the images of the batch
            eager(captured, batch.like(self.inputs))

        before = Snapshot(student.model, optimizer, device)
        try:
            with capturable(optimizer, self.rates), warnings.catch_warnings():
                # PyTorch warns if a capturable optimizer runs outside a capture; in the warm-up steps, this is intended
                warnings.filterwarnings("ignore", "(?s).*capturable=True")
                self.launch = capture_graph(step, device, before.restore)
        except (RuntimeError, TypeError, AssertionError) as error:  # old PyTorch optimizers raise AssertionError
            before.restore()
            optimizer.zero_grad(set_to_none=True)
            self.give_up(" ".join(str(error).split()))
            return
        log.info("step    one CUDA graph of %d images; a shorter last batch is eager", len(batch))

    def give_up(self, reason: str) -> None:
        """Run all later steps eagerly, without a CUDA graph, and log the reason."""
        self.failed = True
        log.info("step    eager: it cannot be captured as a CUDA graph (%.120s)", reason)


def shapes(batch: Batch) -> tuple[type, list]:
    """Return the type of a batch, and the shapes and dtypes of its tensors.

    A CUDA graph can only be launched for a batch with the same type, shapes and dtypes as the captured batch.
    """
    return type(batch), [None if value is None else (value.shape, value.dtype) for value in batch.tensors()]


@contextmanager
def capturable(optimizer: torch.optim.Optimizer, rates: Sequence[torch.Tensor]) -> Iterator[None]:
    """Make the optimizer read its learning rates from the tensors `rates`, one for each parameter group.

    When the block ends, the parameter groups get their previous settings back.
    """
    kept: list[dict[str, Any]] = [
        {key: group[key] for key in ("lr", "capturable") if key in group} for group in optimizer.param_groups
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, kept, strict=True):
            group.update(values)


def capture_graph(step: Callable[[], object], device: torch.device, restore: Callable[[], None]) -> Callable[[], None]:
    """Capture `step` as a CUDA graph and return the function that launches it.

    Before the capture, `step` runs a few times as a warm-up, and `restore` is called to undo the effects of these runs.
    cuBLAS has one workspace per stream. Each graph is captured on a new stream, so that the graphs of several students,
    which run concurrently, do not share a workspace.
    """
    stream = torch.cuda.Stream(device)
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        # torch.cuda.graph does not return to the previous stream if the capture fails, but this outer context does
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step()
            restore()
            try:
                # in the mode thread_local, another thread may upload labels to the device during the capture
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    step()
            except BaseException:
                end_failed_capture(graph, pool, device)
                raise
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)
    return graph.replay


# graphs of failed captures; this list keeps them alive, because PyTorch's memory allocator may still call them
FAILED_CAPTURES: list[object] = []


def end_failed_capture(graph: object, pool: Any, device: torch.device) -> None:
    """Release the memory pool of a failed capture, and capture a trivial graph.

    Without this clean-up, some versions of PyTorch (such as 2.11) would never free the memory of the failed graph, and
    could not draw random numbers on the device until a capture succeeds. In other versions, it is harmless.
    """
    FAILED_CAPTURES.append(graph)
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    stream = torch.cuda.Stream(device)
    trivial = torch.cuda.CUDAGraph()
    with (
        suppress(RuntimeError, TypeError),
        torch.cuda.stream(stream),
        torch.cuda.graph(trivial, stream=stream, capture_error_mode="thread_local"),
    ):
        torch.zeros(1, device=device)


class Snapshot:
    """Copies of a model's tensors, an optimizer's state and the random state, which `restore` writes back in place.

    AdamW and SGD start with zeros. If the optimizer has created state since the snapshot, `restore` therefore sets
    the new state to zero.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.weights = [(tensor, tensor.detach().clone()) for tensor in model.state_dict().values()]
        self.state = {id(tensor): tensor.clone() for tensor in self.state_tensors()}
        self.rng = torch.get_rng_state()
        self.device_rng = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def state_tensors(self) -> list[torch.Tensor]:
        """Return all tensors of the optimizer's state, such as moments and step counters."""
        return [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copies back in place: into the model, the optimizer's state and the random number generators."""
        for tensor, value in self.weights:
            tensor.copy_(value)
        for tensor in self.state_tensors():
            if id(tensor) in self.state:
                tensor.copy_(self.state[id(tensor)])
            else:
                tensor.zero_()
        torch.set_rng_state(self.rng)
        if self.device_rng is not None:
            torch.cuda.set_rng_state(self.device_rng, self.device)
