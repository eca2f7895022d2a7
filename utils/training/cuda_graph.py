"""Capture the whole optimizer step as one CUDA graph, so that small batches are not bound by kernel launches.

A step on 25 images launches hundreds of kernels, each of which takes less time than its launch.
A graph captures them once (replay and mixing of the views, forward, backward, update, metric sums)
and launches them together. The batch's `tensors()` and the learning rate are copied into static tensors
before each launch. A batch of other shapes, such as a short last one, takes the eager step.
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

WARM_UP_STEPS = 3  # steps before the capture, in which cuDNN and cuBLAS choose algorithms and allocate memory


def captures(precision: Precision, world: World = ALONE) -> bool:
    """Return whether steps can be captured: on CUDA, by one process, without fp16's loss scaling."""
    if precision.device.type != "cuda" or world.size > 1:
        return False
    if precision.scaler.is_enabled():
        log.info("step    eager: the loss scaling of fp16 needs the host in every step")
        return False
    return True


class Trains(Protocol):
    """The attributes of a student that its steps use; see `run.student.Student`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    sums: MetricSums


Step = Callable[[Any, Batch], None]  # an eager optimizer step of a student on a batch


class CapturedStep:
    """Optimizer step that is launched as a CUDA graph and has the result of the eager step.

    The step is captured at the first batch, and again at every batch that has more rows. Student, loss
    and micro-batch size must be the same in every call. If the capture fails (a model that synchronises with the
    device, an old PyTorch), one log line says so and every step is eager.
    """

    def __init__(self) -> None:
        self.launch: Callable[[], None] | None = None
        self.failed = False

    def __call__(self, step: Step, student: Trains, batch: Batch) -> None:
        """Launch the captured step if it fits the batch, else call `step(student, batch)`."""
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
        """Capture a step on static copies of `batch`; model, optimizer and random state are left unchanged."""
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
            # like() is called inside the step, so that tensors derived from the batch's inputs are captured too
            eager(captured, batch.like(self.inputs))

        before = Snapshot(student.model, optimizer, device)
        try:
            with capturable(optimizer, self.rates), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "(?s).*capturable=True")  # the warm-up steps are not captured
                self.launch = capture_graph(step, device, before.restore)
        except (RuntimeError, TypeError, AssertionError) as error:  # old versions of PyTorch's optimizers assert
            before.restore()
            optimizer.zero_grad(set_to_none=True)
            self.give_up(" ".join(str(error).split()))
            return
        log.info("step    one CUDA graph of %d images; a shorter last batch is eager", len(batch))

    def give_up(self, reason: str) -> None:
        """Take every step eagerly from now on, and log the reason."""
        self.failed = True
        log.info("step    eager: it cannot be captured as a CUDA graph (%.120s)", reason)


def shapes(batch: Batch) -> tuple[type, list]:
    """Return type, shapes and dtypes of a batch; a captured step fits only batches with equal ones."""
    return type(batch), [None if value is None else (value.shape, value.dtype) for value in batch.tensors()]


@contextmanager
def capturable(optimizer: torch.optim.Optimizer, rates: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let the optimizer read its learning rates from tensors; restore its parameter groups on exit."""
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

    A capture needs warm-up steps; `restore` undoes them. Each graph is captured on a new stream, because cuBLAS has one
    workspace per stream and the graphs of several students run concurrently.
    """
    stream = torch.cuda.Stream(device)
    graph = torch.cuda.CUDAGraph()
    pool = torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        # if the capture fails, torch.cuda.graph does not leave the stream: this context does
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step()
            restore()
            try:  # thread_local lets another thread upload labels during the capture
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    step()
            except BaseException:
                end_failed_capture(graph, pool, device)
                raise
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)
    return graph.replay


FAILED_CAPTURES: list[object] = []  # graphs kept alive, because the allocator may still call into them


def end_failed_capture(graph: object, pool: Any, device: torch.device) -> None:
    """Clean up after a failed capture, which some versions of PyTorch (such as 2.11) do not.

    Without this the allocator keeps the memory of the graph, and drawing random numbers on the device fails until
    another capture succeeds. So a trivial graph is captured. This is harmless in versions that need no cleaning up.
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

    Optimizer state created after the snapshot is set to zero, the initial state of AdamW and SGD.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.weights = [(tensor, tensor.detach().clone()) for tensor in model.state_dict().values()]
        self.state = {id(tensor): tensor.clone() for tensor in self.state_tensors()}
        self.rng = torch.get_rng_state()
        self.device_rng = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def state_tensors(self) -> list[torch.Tensor]:
        """Return all tensors of the optimizer's state."""
        return [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copies back into the tensors that they were taken from."""
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
