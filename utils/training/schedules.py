"""Schedules: the learning rate, and the temperatures of teacher and student, in each epoch."""

import math
from collections.abc import Callable, Sequence

import torch

from utils.config import STEP_FLOOR
from utils.system.distributed import ALONE, World
from utils.training.losses import LastMicroBatch, Temperature


def lr_factor(
    schedule: str,
    epoch: int,
    epochs: int,
    smoothing: float = 2.0,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    warmup_epochs: int = 0,
    warmup_factor: float = 0.01,
) -> float:
    """Return the factor by which the initial learning rate is multiplied in `epoch`.

    In the first N = warmup_epochs epochs, the factor rises linearly: w + (1 - w) epoch / N, where w is warmup_factor.
    The schedule `step` counts its milestones from epoch 0; the other schedules start after the warm-up. PyTorch gives
    the same rates with LinearLR, followed by another scheduler in SequentialLR; torchvision's references use this.

    With e = epoch - N, E = epochs - N, s = smoothing, the schedules are:

    * linear: 1 - e/E.
    * linear-smoothed: 1 - e/(s E), with s >= 1; used by EDC's script in place of `smoothed`.
    * cos: 0.5 (1 + cos(pi e / E)).
    * smoothed: 0.5 (1 + cos(pi e / (s E))), from the EDC paper (Shao et al., 2024).
    * cos2: 0.5 (1 + cos(pi e / (s E))) for e <= 5E/6, then 0.5 (1 + cos(5 pi / (6 s))) (E - e) / E, with s >= 1; a
      smoothed cosine with a linear end, used by EDC for CIFAR-100 and ImageNet-10.
    * prism: cos2 with s = 2.5, used by PRISM.
    * step: gamma^n, where n is the number of milestones m with m <= epoch.
    """
    if epoch < warmup_epochs:
        return warmup_factor + (1 - warmup_factor) * epoch / warmup_epochs
    if schedule == "step":
        return gamma ** sum(milestone <= epoch for milestone in milestones)
    epoch, epochs = epoch - warmup_epochs, epochs - warmup_epochs
    if schedule == "linear":
        return 1 - epoch / epochs
    if schedule == "linear-smoothed":
        return 1 - epoch / (smoothing * epochs)
    if schedule == "cos":
        return half_cosine(epoch / epochs)
    if schedule == "smoothed":
        return half_cosine(epoch / (smoothing * epochs))
    if schedule in ("cos2", "prism"):
        stretch = 2.5 if schedule == "prism" else smoothing
        if epoch <= epochs * 5 / 6:
            return half_cosine(epoch / (stretch * epochs))
        return half_cosine(5 / (6 * stretch)) * (epochs - epoch) / epochs
    raise ValueError(f"unknown schedule {schedule!r}")


def half_cosine(fraction: float) -> float:
    """Return 0.5 (1 + cos(pi · fraction)), which falls from 1 to 0 while fraction grows from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


def temperature_at(
    schedule: str, epoch: int, epochs: int, start: float, step_size: int = 30, gamma: float = 0.7, low: float = 2.0
) -> float:
    """Return the teacher's temperature in `epoch`, by one of the schedules of LPQLD (Xiao and He, 2026).

    With T = start, E = epochs, s = epoch + 1, n = step_size, g = gamma, the schedules are:

    * constant: T.
    * step: T g^(s // n), but never below 2.
    * cosine: low + (T - low) / 2 (1 + cos(pi s / E)), which ends at low.
    * step-reverse: T g^((E - 1 - min(s, E - 1)) // n), which is T in the last n + 1 epochs. It has no lower limit.
    * cosine-reverse: low + (T - low) / 2 (1 - cos(pi s / E)), which ends at T.

    Args:
        schedule: name of the schedule, one of TEMPERATURE_SCHEDULES.
        epoch: number of the epoch, from 0.
        epochs: number of epochs of the run.
        start: T of the formulas.
        step_size, gamma: used by step and step-reverse.
        low: used by cosine and cosine-reverse.
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


# values that LPQLD's calibration tries for the student's temperature
CANDIDATES = [number / 100 for number in range(1, 101)]


class Temperatures:
    """The teacher's and the student's temperature in the current epoch.

    A temperature that changes during a run is a 0-dim tensor on the device. `start_epoch` fills it in place, so that a
    captured CUDA graph reads the new value. A constant temperature is a plain number.

    Args:
        schedule: function from an epoch to the teacher's temperature; see `temperature_at`.
        student: the student's temperature: a number, `teacher` to use the teacher's temperature, or `calibrated` for
            LPQLD's calibrated student-teacher alignment.
        varies: whether the teacher's temperature changes during the run.
        last: the `LastMicroBatch` that the loss fills; required if `student` is `calibrated`.
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
        """Set the temperatures of an epoch.

        Args:
            epoch: number of the epoch, from 0.
            calibrated: the student's temperature in this epoch if it is calibrated; otherwise unused.

        Returns:
            (teacher's temperature, student's temperature).
        """
        teacher = self.schedule(epoch)
        student = {"teacher": teacher, "calibrated": calibrated}.get(str(self.kind), self.kind)
        for temperature, value in ((self.teacher, teacher), (self.student, student)):
            if isinstance(temperature, torch.Tensor):
                temperature.fill_(float(value))
        return teacher, float(student)

    def calibrate(self, world: World = ALONE) -> float:
        """Return the candidate t that minimises KL(teacher || softmax(logits/t)) on the last micro-batch of all ranks.

        The logits are the student's logits from before the last weight update. In a tie, the smallest candidate wins.
        Every rank must call this method.
        """
        assert self.last is not None, "needs student='calibrated'"
        divergences = world.all_reduce_sum(self.last.divergences(CANDIDATES)).tolist()
        return CANDIDATES[divergences.index(min(divergences))]
