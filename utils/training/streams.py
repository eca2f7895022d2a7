"""Let several students take the same batches: a CUDA stream and a random state for each."""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from utils.data.batch import Batch

MAX_BATCHES_IN_FLIGHT = 2  # batches that students may be working on while the host prepares the next one


class Streams:
    """Hands each batch to all students of a run.

    On a GPU the batches are made on the current stream, and the stream of each student waits for them. A batch, and
    so its memory, is kept until every student has finished with it; this also limits how far the host runs ahead.

    All captured steps share one tensor on the device for the state of the random generator. So if a student draws
    random numbers on the device (dropout), all students use the current stream from then on, one after another.

    Args:
        device: torch.device of the students.
        several: there is more than one student; views are then replayed once, outside of the captured steps.
    """

    def __init__(self, device: torch.device, several: bool) -> None:
        self.device, self.several = device, several
        self.concurrent = several and device.type == "cuda"
        self.streams: dict[Any, torch.cuda.Stream] = {}
        self.in_flight: deque = deque()

    def share(self, batch: Batch) -> Batch:
        """Return the batch as the students take it: with its views made, if there are several students."""
        return batch.ready() if self.several else batch

    @contextlib.contextmanager
    def stream_of(self, student: Any) -> Iterator[None]:
        """Run on this student's CUDA stream, after the work already queued on the current stream.

        A student never changes streams, because the caching allocator reuses memory per stream.

        Args:
            student: hashable, with its `RandomStream` as `random`.
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
        """Keep the batch until all students have finished it; wait for the one that is MAX_BATCHES_IN_FLIGHT older."""
        if not self.concurrent:
            return
        self.in_flight.append((batch, [stream.record_event() for stream in self.streams.values()]))
        if len(self.in_flight) > MAX_BATCHES_IN_FLIGHT:
            for event in self.in_flight.popleft()[1]:
                event.synchronize()

    def join(self) -> None:
        """Make the current stream wait for all students, whose models may then be used on it."""
        for stream in self.streams.values():
            torch.cuda.current_stream(self.device).wait_stream(stream)
        self.in_flight.clear()


class RandomStream:
    """Context in which the process's random numbers are one student's (dropout, stochastic depth).

    It goes on from the random state in which it was made, then from the one in which it was last left; what
    others draw in between does not count.

    Args:
        device: where the student draws, beside the host.

    Attributes:
        draws_on_device: it has drawn numbers on a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.draws_on_device = device, False
        self.state = self.current()

    def current(self) -> list[torch.Tensor]:
        """The random states of the host and, if it is a CUDA device, of the device."""
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
