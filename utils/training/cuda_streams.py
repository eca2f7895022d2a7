"""Several students take the same batches: on a GPU each on a CUDA stream of its own, so that they fill it together."""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from utils.views.batch import Batch

HELD = 2  # batches that students may be working on while the host prepares the next one


class Streams:
    """How the students of a run share its batches.

    On a GPU the batches are made on the current stream. A student's stream waits for the batch; the batch, and so
    its memory, is held until every student is done with it. That also keeps the host from running far ahead.

    Recorded steps share one place in device memory for the state of its random numbers. So from the first
    student that draws there (dropout), all work on the current stream, one after the other.

    Args:
        device: of the students.
        several: there is more than one student: views are replayed once, outside of the recorded steps.
    """

    def __init__(self, device: torch.device, several: bool) -> None:
        self.device, self.several = device, several
        self.beside = several and device.type == "cuda"
        self.own: dict[Any, torch.cuda.Stream] = {}
        self.held: deque = deque()

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
        if not self.beside:
            yield
            return
        if student not in self.own:
            self.own[student] = torch.cuda.Stream(self.device)
        stream = self.own[student]
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield
        if student.random.draws_on_device:
            self.join()
            self.beside = False

    def hold(self, batch: Batch) -> None:
        """Keep the batch until all are done with it; wait for the one that is `HELD` batches old."""
        if not self.beside:
            return
        self.held.append((batch, [stream.record_event() for stream in self.own.values()]))
        if len(self.held) > HELD:
            for event in self.held.popleft()[1]:
                event.synchronize()

    def join(self) -> None:
        """Have the current stream wait for all students, whose models may then be used on it."""
        for stream in self.own.values():
            torch.cuda.current_stream(self.device).wait_stream(stream)
        self.held.clear()
