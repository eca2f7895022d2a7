"""Learning rate and temperatures in each epoch."""

import math
from collections.abc import Callable

import torch

from utils.config import STEP_FLOOR
from utils.system.distributed import ALONE, World
from utils.training.losses import LastMicroBatch, Temperature


def lr_factor(schedule: str, epoch: int, epochs: int, smoothing: float = 2.0) -> float:
    """Return the factor on the initial learning rate in `epoch`.

    With e = epoch, E = epochs, s = smoothing:

    * linear: 1 - e/E.
    * linear-smoothed: 1 - e/(s E), s >= 1; EDC's script uses it, but was meant to use `smoothed`.
    * cos: 0.5 (1 + cos(pi e / E)).
    * smoothed: 0.5 (1 + cos(pi e / (s E))); EDC (Shao et al., 2024).
    * prism: 0.5 (1 + cos(pi e / (2.5 E))) for e <= 5E/6, then 0.5 (1 + cos(pi/3)) (E - e) / E;
      PRISM's smoothed cosine, linear at the end.
    """
    if schedule == "linear":
        return 1 - epoch / epochs
    if schedule == "linear-smoothed":
        return 1 - epoch / (smoothing * epochs)
    if schedule == "cos":
        return half_cosine(epoch / epochs)
    if schedule == "smoothed":
        return half_cosine(epoch / (smoothing * epochs))
    if schedule == "prism":
        if epoch <= epochs * 5 / 6:
            return half_cosine(epoch / (2.5 * epochs))
        return half_cosine(1 / 3) * (epochs - epoch) / epochs
    raise ValueError(f"unknown schedule {schedule!r}")


def half_cosine(fraction: float) -> float:
    """Return 0.5 (1 + cos(pi · fraction))."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


def temperature_at(
    schedule: str, epoch: int, epochs: int, start: float, step_size: int = 30, gamma: float = 0.7, low: float = 2.0
) -> float:
    """Return the teacher's temperature in `epoch` (LPQLD, Xiao and He, 2026).

    Args:
        schedule: one of TEMPERATURE_SCHEDULES. With s = e + 1, T = start, n = step_size, g = gamma:

            * constant: T.
            * step: T g^(s // n), at least 2.
            * cosine: low + (T - low) / 2 (1 + cos(pi s / E)), which ends at low.
            * step-reverse: T g^((E - 1 - min(s, E - 1)) // n), which is T in the last n + 1 epochs; no lower limit.
            * cosine-reverse: low + (T - low) / 2 (1 - cos(pi s / E)), which ends at T.
        epoch, epochs: e, from 0, and E.
    """
    step = epoch + 1
    if schedule == "constant":
        return start
    if schedule == "step":
        return max(start * gamma ** (step // step_size), STEP_FLOOR)
    if schedule == "step-reverse":
        return start * gamma ** ((epochs - 1 - min(step, epochs - 1)) // step_size)
    if schedule == "cosine":
        return low + (start - low) * half_cosine(step / epochs)
    if schedule == "cosine-reverse":
        return low + (start - low) * half_cosine(1 - step / epochs)
    raise ValueError(f"unknown temperature schedule {schedule!r}")


CANDIDATES = [number / 100 for number in range(1, 101)]  # LPQLD's candidates for the student's temperature


class Temperatures:
    """The teacher's and the student's temperature in the current epoch.

    A temperature that changes during a run is a 0-dim tensor on the device. `start_epoch` fills it in place, so that a
    captured CUDA graph reads the new value. A constant temperature is a plain number.

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
            calibrated: the student's temperature if the student's kind is `calibrated`, else unused.
        """
        teacher = self.schedule(epoch)
        student = {"teacher": teacher, "calibrated": calibrated}.get(str(self.kind), self.kind)
        for temperature, value in ((self.teacher, teacher), (self.student, student)):
            if isinstance(temperature, torch.Tensor):
                temperature.fill_(float(value))
        return teacher, float(student)

    def calibrate(self, world: World = ALONE) -> float:
        """Return the temperature t that minimises KL(teacher || softmax(o/t)) on the last micro-batch, over all ranks.

        o are the student's logits before the last update. A tie between candidates goes to the smallest.
        """
        assert self.last is not None, "needs student='calibrated'"
        divergences = world.all_reduce_sum(self.last.divergences(CANDIDATES)).tolist()
        return CANDIDATES[divergences.index(min(divergences))]
