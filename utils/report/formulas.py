"""The formulas of a report. Figures are top-1 in percent, differences in percentage points.

Sources: DD-Ranking (Li et al., 2025, arXiv 2505.13300) for `improvement_over_random`, `hard_label_recovery`
and `label_robust_score`. docs/evidence.md says what each depends on and which conclusions it does not allow.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean of n values and their sample standard deviation (divided by n - 1), which is None for one value."""

    mean: float
    deviation: float | None
    n: int

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for one value."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.n)


def spread(values: Sequence[float]) -> Spread:
    """Return the `Spread` of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Spread | None:
    """Return the `Spread` of `ours - theirs` over common seeds; None if there are none.

    The same seed gives both students the same initial weights, so the effect of the seed cancels out.

    Args:
        ours, theirs: seed -> figure.
    """
    common = sorted(ours.keys() & theirs.keys())
    return spread([ours[seed] - theirs[seed] for seed in common]) if common else None


def improvement_over_random(distilled: float, random: float) -> float:
    """IOR: top-1 with the distilled images minus top-1 with as many random real images, in the same regime."""
    return distilled - random


def hard_label_recovery(full: float, distilled: float) -> float:
    """HLR: top-1 with all real images minus top-1 with the distilled ones, same student, both with hard labels.

    It is the gap that is left, so smaller is better.
    """
    return full - distilled


def label_robust_score(improvement: float, recovery: float, weight: float = 0.5) -> float:
    """LRS: alpha = w IOR - (1 - w) HLR, with both as fractions, then (e^alpha - 1/e) / (e - 1/e), in percent.

    It is 0 at alpha = -1 and 100 at alpha = 1. At alpha = 0 it is 26.9: the images are as good as random ones in their
    regime, and as good as all real images with hard labels.
    """
    alpha = (weight * improvement - (1 - weight) * recovery) / 100
    return 100 * (math.exp(alpha) - math.exp(-1)) / (math.e - math.exp(-1))
