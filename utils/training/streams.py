"""Train several students on the same batches, each with its own CUDA stream and random state."""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from utils.data.batch import Batch

MAX_BATCHES_IN_FLIGHT = 2  # batches that students may be working on while the host prepares the next one


class Streams:
    """CUDA streams on which all students of a run train on the same batches.

    On a GPU the batches are made on the current stream, and the stream of each student waits for them. A batch stays
    in memory until every student has finished it, which also limits how far the host runs ahead.

    All captured CUDA graphs share one tensor on the device for the random state. So once a student draws random
    numbers on the device (dropout), all students use the current stream, one after another.

    Args:
        device: torch.device of the students.
        several: whether there is more than one student; if so, views are replayed once, outside captured steps.
    """

    def __init__(self, device: torch.device, several: bool) -> None:
        self.device, self.several = device, several
        self.concurrent = several and device.type == "cuda"
        self.streams: dict[Any, torch.cuda.Stream] = {}
        self.in_flight: deque = deque()

    def share(self, batch: Batch) -> Batch:
        """Return the batch for the students; if there are several, its views are replayed here, once for all."""
        return batch.ready() if self.several else batch

    @contextlib.contextmanager
    def stream_of(self, student: Any) -> Iterator[None]:
        """Run on this student's CUDA stream, after the work already queued on the current stream.

        A student never changes streams, because the caching allocator reuses memory per stream.

        Args:
            student: a hashable object whose attribute `random` is its `RandomStream`.
        """
        if not self.concurrent:
            yield
            return
        if student not in self.streams:
            self.streams[student] = torch.cuda.Stream(self.device)
        stream = self.streams[student]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield
        if student.random.draws_on_device:
            self.join()
            self.concurrent = False

    def hold(self, batch: Batch) -> None:
        """Keep the batch until all students have finished it; wait for the batch MAX_BATCHES_IN_FLIGHT before it."""
        if not self.concurrent:
            return
        self.in_flight.append((batch, [stream.record_event() for stream in self.streams.values()]))
        if len(self.in_flight) > MAX_BATCHES_IN_FLIGHT:
            for event in self.in_flight.popleft()[1]:
                event.synchronize()

    def join(self) -> None:
        """Make the current stream wait for all students, so that it can use their models."""
        for stream in self.streams.values():
            torch.cuda.current_stream(self.device).wait_stream(stream)
        self.in_flight.clear()


class RandomStream:
    """Context manager that gives a student its own sequence of random numbers (dropout, stochastic depth).

    The first entry restores the random state at construction, every later entry the state at the last exit. Numbers
    that others draw in between change nothing.

    Args:
        device: device on which the student draws numbers, in addition to the host.

    Attributes:
        draws_on_device: whether the student has drawn numbers on a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.draws_on_device = device, False
        self.state = self.current()

    def current(self) -> list[torch.Tensor]:
        """Return the random state of the host, and of the device if it is a CUDA device."""
        on_device = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *on_device]

    def __enter__(self) -> "RandomStream":
        host, *on_device = self.state
        torch.set_rng_state(host)
        for state in on_device:
            torch.cuda.set_rng_state(state, self.device)
        return self

    def __exit__(self, *_: object) -> None:
        before, self.state = self.state, self.current()
        self.draws_on_device |= not all(map(torch.equal, before[1:], self.state[1:]))
