"""Temperatures of kl and dist over a run: the teacher's follows a schedule; the student's may be calibrated."""

from collections.abc import Callable

import torch

from utils.system.ranks import ALONE, World
from utils.training.losses import LastMicroBatch, Temperature

CANDIDATES = [number / 100 for number in range(1, 101)]  # LPQLD's candidates for the student's temperature


class Temperatures:
    """Teacher's and student's temperature in the current epoch.

    A temperature that changes during a run is a 0-dim tensor on the device that `start_epoch` fills in place, so
    that a captured step sees the new value; a constant one is a plain number.

    Args:
        schedule: epoch -> the teacher's temperature; see `temperature_at`.
        student: `teacher` (same as the teacher's), `calibrated` (LPQLD's calibrated student-teacher alignment), or a
            number.
        varies: whether the schedule has more than one value.
        last: the `LastMicroBatch` that the loss fills; required if student is `calibrated`.
        device: torch.device.

    Attributes:
        teacher, student: divisors of the teacher's and of the student's logits.
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
            calibrated: the student's temperature, if it is calibrated.
        """
        teacher = self.schedule(epoch)
        student = {"teacher": teacher, "calibrated": calibrated}.get(str(self.kind), self.kind)
        for temperature, value in ((self.teacher, teacher), (self.student, student)):
            if isinstance(temperature, torch.Tensor):
                temperature.fill_(float(value))
        return teacher, float(student)

    def calibrate(self, world: World = ALONE) -> float:
        """Return the temperature t that minimises KL(teacher || softmax(o/t)) on the last micro-batch, over all ranks.

        o are the student's logits before the last update. Of equal candidates the smallest is returned.
        """
        assert self.last is not None, "needs student='calibrated'"
        divergences = world.all_reduce_sum(self.last.divergences(CANDIDATES)).tolist()
        return CANDIDATES[divergences.index(min(divergences))]
