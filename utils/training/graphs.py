"""The whole optimizer step as one CUDA graph, so that small batches are not bound by kernel launches.

A step of 25 images on a GPU launches hundreds of kernels that each take less time than their launch.
A graph records them once (replay and mixing of the views, forward, backward, update, metric sums)
and launches them together. What varies is copied into fixed tensors first: the batch's `tensors()`
and the learning rate. A batch of other shapes, which is the short last one, takes the eager step.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any, Protocol

import torch
from torch import nn

from utils.system.log import log
from utils.system.ranks import ALONE, World
from utils.training.metrics import MetricSums
from utils.training.precision import Precision
from utils.views.batch import Batch

WARM_UP_STEPS = 3  # lets cuDNN and cuBLAS choose and allocate before the recording


def captures(precision: Precision, world: World = ALONE) -> bool:
    """Return whether steps can be captured: on CUDA, by one process, without fp16's loss scaling."""
    if precision.device.type != "cuda" or world.size > 1:
        return False
    if precision.scaler.is_enabled():
        log.info("step    eager: the loss scaling of fp16 decides on the host")
        return False
    return True


class Trains(Protocol):
    """A student, as far as its steps need it; see `run.student.Student`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    sums: MetricSums


Step = Callable[[Any, Batch], None]  # an eager optimizer step of a student on a batch


class GraphedStep:
    """An optimizer step as a CUDA graph, captured at the first batch, and again at a larger one; same result.

    Student, loss and micro-batch size must be the same in every call. If capturing fails (a model that waits for the
    device, an old PyTorch), one log line says so and every step is eager.
    """

    def __init__(self) -> None:
        self.replay: Callable[[], None] | None = None
        self.failed = False

    def __call__(self, step: Step, student: Trains, batch: Batch) -> None:
        """Take the step that `step(student, batch)` would take."""
        if not self.failed and (self.replay is None or len(batch) > self.rows):
            self.record(step, student, batch)
        if self.replay is None or shapes(batch) != self.shapes:
            step(student, batch)
            return
        for static, value in zip(self.inputs, batch.tensors(), strict=True):
            if static is not None and value is not None:
                static.copy_(value, non_blocking=True)
        for lr, group in zip(self.rates, student.optimizer.param_groups, strict=True):
            lr.fill_(group["lr"])
        self.replay()
        student.sums.sums += self.sums.sums
        student.sums.samples += len(batch)

    def record(self, eager: Step, student: Trains, batch: Batch) -> None:
        """Record a step on fixed copies of `batch`, leaving model, optimizer and random state as they were."""
        device, optimizer = student.precision.device, student.optimizer
        self.replay, self.rows, self.shapes = None, len(batch), shapes(batch)
        if not all(group.get("fused") for group in optimizer.param_groups):
            self.give_up("this PyTorch's optimizer waits for the device")
            return
        self.inputs = [None if value is None else value.clone() for value in batch.tensors()]
        self.rates = [torch.tensor(float(group["lr"]), device=device) for group in optimizer.param_groups]
        recorded = copy(student)
        recorded.sums = self.sums = MetricSums(device)

        def step() -> None:
            self.sums.sums.zero_()
            # like() anew in every call: what a batch derives from its tensors must be in the recording
            eager(recorded, batch.like(self.inputs))

        before = Snapshot(student.model, optimizer, device)
        try:
            with graph_ready(optimizer, self.rates), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "(?s).*capturable=True")  # and not captured: a warm-up
                self.replay = record(step, device, before.restore)
        except (RuntimeError, TypeError, AssertionError) as error:  # an optimizer of old asserts
            before.restore()
            optimizer.zero_grad(set_to_none=True)
            self.give_up(" ".join(str(error).split()))
            return
        log.info("step    one CUDA graph of %d images; a shorter last batch is eager", len(batch))

    def give_up(self, reason: str) -> None:
        """Take every step eagerly from now on, and say why."""
        self.failed = True
        log.info("step    eager: no CUDA graph could be made of it (%.120s)", reason)


def shapes(batch: Batch) -> tuple[type, list]:
    """What must be equal for a recorded step to fit a batch."""
    return type(batch), [None if value is None else (value.shape, value.dtype) for value in batch.tensors()]


@contextmanager
def graph_ready(optimizer: torch.optim.Optimizer, rates: Sequence[torch.Tensor]) -> Iterator[None]:
    """Let the optimizer take its learning rates from tensors; afterwards its groups are as before."""
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


def record(step: Callable[[], object], device: torch.device, restore: Callable[[], None]) -> Callable[[], None]:
    """Record `step` as a CUDA graph and return the function that replays it.

    It is run a few times first, as recording asks for; `restore` undoes that. All is done on a stream of its own, since
    cuBLAS gives each one a workspace, and several students' graphs run at a time.
    """
    stream, graph, pool = torch.cuda.Stream(device), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):  # left also where the recording fails, on which torch.cuda.graph stays on it
            for _ in range(WARM_UP_STEPS):
                step()
            restore()
            try:  # thread_local, since another thread is uploading labels
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    step()
            except BaseException:
                end_recording(graph, pool, device)
                raise
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)
    return graph.replay


FAILED: list[object] = []  # recordings that failed: the allocator may go on asking them


def end_recording(graph: object, pool: Any, device: torch.device) -> None:
    """Undo what PyTorch (2.11, say) leaves as it is where a recording fails.

    The allocator would keep memory for it, and random numbers on the device could not be drawn any more: a recording
    that succeeds resets their state. Where a version needs none of that, nothing happens.
    """
    FAILED.append(graph)
    with suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    stream, trivial = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    with (
        suppress(RuntimeError, TypeError),
        torch.cuda.stream(stream),
        torch.cuda.graph(trivial, stream=stream, capture_error_mode="thread_local"),
    ):
        torch.zeros(1, device=device)


class Snapshot:
    """Copies of a model's tensors, an optimizer's state and the random state, put back in place.

    Optimizer state that did not exist yet becomes zero, which is what AdamW and SGD start from.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.weights = [(tensor, tensor.detach().clone()) for tensor in model.state_dict().values()]
        self.state = {id(tensor): tensor.clone() for tensor in self.state_tensors()}
        self.rng = torch.get_rng_state()
        self.device_rng = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def state_tensors(self) -> list[torch.Tensor]:
        """Every tensor of the optimizer's state."""
        return [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
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
