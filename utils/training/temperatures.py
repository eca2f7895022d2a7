"""The temperatures of kl and dist over a run: the teacher's on a schedule, the student's beside it."""

from collections.abc import Callable

import torch

from utils.system.ranks import ALONE, World
from utils.training.losses import LastMicroBatch, Temperature

CANDIDATES = [number / 100 for number in range(1, 101)]  # what LPQLD's calibration chooses from


class Temperatures:
    """The two temperatures of the epoch in training.

    Those that change in the course of a run are 0-dim tensors on the device, filled by `start_epoch`, so that a
    recorded step follows; the others are plain numbers.

    Args:
        schedule: epoch -> the teacher's temperature; see `temperature_at`.
        student: `teacher` for the teacher's, `calibrated` (LPQLD's calibrated student-teacher alignment), or a number.
        varies: whether the schedule has more than one value.
        last: filled by the loss; needed where the student's is calibrated.
        device: torch.device.

    Attributes:
        teacher, student: what the loss divides by.
    """

    def __init__(
        self,
        schedule: Callable[[int], float],
        student: str | float,
        varies: bool,
        last: LastMicroBatch | None,
        device: torch.device,
    ) -> None:
        self.schedule, self.kind, self.last = schedule, student, last
        self.teacher: Temperature = torch.ones((), device=device) if varies else schedule(0)
        self.student: Temperature = self.teacher
        if student != "teacher":
            self.student = torch.ones((), device=device) if student == "calibrated" else float(student)

    def start_epoch(self, epoch: int, calibrated: float) -> tuple[float, float]:
        """Set the temperatures of `epoch`; return (teacher's, student's).

        Args:
            epoch: from 0.
            calibrated: the student's, where it is calibrated.
        """
        teacher = self.schedule(epoch)
        student = {"teacher": teacher, "calibrated": calibrated}.get(str(self.kind), self.kind)
        for temperature, value in ((self.teacher, teacher), (self.student, student)):
            if isinstance(temperature, torch.Tensor):
                temperature.fill_(float(value))
        return teacher, float(student)

    def calibrate(self, world: World = ALONE) -> float:
        """Return the candidate that brings the student nearest to the teacher in the last micro-batch of all ranks.

        That is the smallest KL(teacher || softmax(o/t)), of the student before the update; the first of equals.
        """
        assert self.last is not None, "only where the student's temperature is calibrated"
        divergences = world.all_reduce_sum(self.last.divergences(CANDIDATES)).tolist()
        return CANDIDATES[divergences.index(min(divergences))]
