"""Train several students on the same batches, each with its own CUDA stream and random state."""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from utils.data.batch import Batch
from utils.system.machine import backend, device_random_state, set_device_random_state

# number of batches on which students may still be working while the host prepares the next batch
MAX_BATCHES_IN_FLIGHT = 2


class Streams:
    """CUDA streams of the students of a run, one for each student; all students train on the same batches.

    On a GPU, the images of a batch are computed on the current stream, and the students' streams wait for them. Every
    batch is held in memory until all students have finished it. The number of batches held at a time is limited.

    All CUDA graphs of a process share one random state on the device. If a student draws numbers from it (for dropout),
    all students run one after another on the current stream. A single student also runs on the current stream.

    Args:
        device: torch.device of the students.
        several: whether there is more than one student. Several students share the images of a batch: the images
            are computed once, outside the students' CUDA graphs.
    """

    def __init__(self, device: torch.device, several: bool) -> None:
        self.device, self.several = device, several
        self.concurrent = several and device.type == "cuda"
        self.streams: dict[Any, torch.cuda.Stream] = {}
        self.in_flight: deque = deque()

    def share(self, batch: Batch) -> Batch:
        """Return the batch on which all students train.

        If there are several students, the images are computed here, once for all students. Otherwise the batch is
        returned unchanged.
        """
        return batch.ready() if self.several else batch

    @contextlib.contextmanager
    def stream_of(self, student: Any) -> Iterator[None]:
        """Run the block on the CUDA stream of a student, after the work already queued on the current stream.

        A student always gets the same stream, because PyTorch's caching allocator reuses memory only within a stream.
        If the students do not run at the same time, the block runs on the current stream.

        Args:
            student: a hashable object with a `RandomStream` in its attribute `random`.
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
        """Hold the batch in memory until all students have finished it.

        If more than MAX_BATCHES_IN_FLIGHT batches are held, wait until the students have finished the oldest batch.
        """
        if not self.concurrent:
            return
        self.in_flight.append((batch, [stream.record_event() for stream in self.streams.values()]))
        if len(self.in_flight) > MAX_BATCHES_IN_FLIGHT:
            for event in self.in_flight.popleft()[1]:
                event.synchronize()

    def join(self) -> None:
        """Make the current stream wait for the streams of all students, so that it can use the students' models."""
        for stream in self.streams.values():
            torch.cuda.current_stream(self.device).wait_stream(stream)
        self.in_flight.clear()

    def finish(self) -> None:
        """Wait until the device has finished all steps. Call this before reading a clock that times the steps."""
        self.join()
        if self.device.type != "cpu":
            backend(self.device).synchronize()


class RandomStream:
    """Context manager that gives a student its own sequence of random numbers (dropout, stochastic depth).

    On the first entry, the random state is set to the state at construction. On every later entry, it is set to the
    state at the previous exit. Random numbers drawn outside the context therefore do not affect the student.

    Args:
        device: device on which the student draws numbers, in addition to the host.

    Attributes:
        draws_on_device: whether the student has drawn numbers on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.draws_on_device = device, False
        self.state = self.current()

    def current(self) -> list[torch.Tensor]:
        """Return the current random state of the host and, on a GPU, of the device."""
        on_device = device_random_state(self.device)
        return [torch.get_rng_state()] if on_device is None else [torch.get_rng_state(), on_device]

    def __enter__(self) -> "RandomStream":
        host, *on_device = self.state
        torch.set_rng_state(host)
        for state in on_device:
            set_device_random_state(self.device, state)
        return self

    def __exit__(self, *_: object) -> None:
        before, self.state = self.state, self.current()
        self.draws_on_device |= not all(map(torch.equal, before[1:], self.state[1:]))
