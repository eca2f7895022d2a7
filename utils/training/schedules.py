"""Learning-rate factor and temperature as pure functions of the epoch, so that resuming needs no scheduler state.

e is the epoch (from 0) and E the number of epochs. The factor multiplies the initial learning rate.
"""

import math

SCHEDULES = ("linear", "linear-smoothed", "cos", "smoothed", "prism")
TEMPERATURE_SCHEDULES = ("constant", "step", "cosine", "step-reverse", "cosine-reverse")
STEP_FLOOR = 2.0  # lowest temperature of `step`


def lr_factor(schedule: str, epoch: int, epochs: int, smoothing: float = 2.0) -> float:
    """Return the factor on the initial learning rate in `epoch`.

    * linear: 1 - e/E.
    * linear-smoothed: 1 - e/(s E), s = smoothing, at least 1; in EDC's script, which was meant to use `smoothed`.
    * cos: 0.5 (1 + cos(pi e / E)).
    * smoothed: 0.5 (1 + cos(pi e / (s E))), s = smoothing; EDC (Shao et al., 2024).
    * prism: 0.5 (1 + cos(pi e / (2.5 E))) up to 5E/6, then 0.5 (1 + cos(pi/3)) (E - e) / E;
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
    """0.5 (1 + cos(pi · fraction))."""
    return 0.5 * (1 + math.cos(math.pi * fraction))


def temperature_at(
    schedule: str, epoch: int, epochs: int, start: float, step_size: int = 30, gamma: float = 0.7, low: float = 2.0
) -> float:
    """Return the teacher's temperature in `epoch`; formulas count epochs from 1, s = e + 1 (LPQLD, Xiao and He, 2026).

    Args:
        schedule: one of TEMPERATURE_SCHEDULES; T = start, n = step_size, g = gamma:

            * constant: T.
            * step: T g^(s // n), at least 2.
            * cosine: low + (T - low) / 2 (1 + cos(pi s / E)), which ends at low.
            * step-reverse: T g^((E - 1 - min(s, E - 1)) // n): rises to T, reached n epochs before the end; no floor.
            * cosine-reverse: low + (T - low) / 2 (1 - cos(pi s / E)), which ends at T.
        epoch, epochs: e and E.
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
