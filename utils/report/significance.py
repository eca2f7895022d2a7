"""Decide whether the top-1 of two groups of runs differs: confidence intervals, p-values, and the seeds that it takes.

All tests are two-sided and use Student's t: the paired test for runs with the same seeds, and Welch's test (Welch,
Biometrika 1947) for other runs. Top-1 is in percent; differences are in percentage points.

scipy is imported late, because its import takes longer than everything else in this module.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from utils.report.groups import Spread, spread

LEVEL = 0.05  # probability of an interval that misses the true difference, and of a difference that is called by chance
POWER = 0.8  # probability that a difference of the given size is shown
ROUNDING = 1e-9  # points; a smaller standard error is one of floating point, not of the runs


@dataclass(frozen=True)
class Difference:
    """Difference of top-1 between two groups of runs, second minus first.

    Attributes:
        mean: the difference in percentage points.
        paired: whether it was computed from pairs of runs with the same seed.
        seeds: numbers of runs of the two groups that were used; equal if `paired`.
        deviations: sample standard deviations that give the error: of the differences if `paired`, else of the top-1 of
            both groups. Empty if the runs are too few.

    `freedom`, `interval` and `p` exist only if `known` is True.
    """

    mean: float
    paired: bool
    seeds: tuple[int, int]
    deviations: tuple[float, ...]

    @property
    def known(self) -> bool:
        """Return whether the runs give an interval: two pairs, or two runs in each group, that are not all alike."""
        return self.error > ROUNDING

    @property
    def alike(self) -> bool:
        """Return whether there are enough runs, but without any spread, so that the interval would have no width."""
        return bool(self.deviations) and not self.known

    @property
    def variances(self) -> list[float]:
        """Return the terms s² / n of the squared standard error: one term if `paired`, else one for each group."""
        return [deviation**2 / n for deviation, n in zip(self.deviations, self.seeds, strict=False)]

    @property
    def error(self) -> float:
        """Return the standard error of the difference in percentage points."""
        return math.sqrt(sum(self.variances))

    @property
    def freedom(self) -> float:
        """Return the degrees of freedom by Welch and Satterthwaite, which are n - 1 for pairs."""
        shares = [variance / (n - 1) * variance for variance, n in zip(self.variances, self.seeds, strict=False)]
        return sum(self.variances) ** 2 / sum(shares)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the lower and the upper end of the 95 % confidence interval of the difference."""
        from scipy.special import stdtrit

        reach = float(stdtrit(self.freedom, 1 - LEVEL / 2)) * self.error
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float:
        """Return the probability of a difference at least as large, if the two groups do not differ in truth."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.freedom, -abs(self.mean) / self.error))


def compare_seeds(first: Mapping[int, float], second: Mapping[int, float], may_pair: bool = True) -> Difference:
    """Compare the top-1 of two groups: by pairs if they have two seeds in common, else by Welch's test.

    Args:
        first, second: seed -> top-1 in percent.
        may_pair: whether two runs with the same seed belong together. They do if they start from the same weights.
    """
    common = sorted(first.keys() & second.keys())
    few = min(len(first), len(second)) == 1  # too few for Welch's test; a single pair is at least a fair comparison
    if may_pair and (len(common) > 1 or (common and few)):
        gains = spread([second[seed] - first[seed] for seed in common])
        return Difference(gains.mean, True, (gains.n, gains.n), deviations_of(gains))
    one, two = spread(list(first.values())), spread(list(second.values()))
    deviations = () if few else deviations_of(one, two)
    return Difference(two.mean - one.mean, False, (one.n, two.n), deviations)


def deviations_of(*spreads: Spread) -> tuple[float, ...]:
    """Return the standard deviations in `spreads`, without those that are None."""
    return tuple(one.deviation for one in spreads if one.deviation is not None)


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by the method of Holm (Scandinavian Journal of Statistics, 1979).

    If every corrected p-value below LEVEL is called a difference, the probability of one wrong call is at most LEVEL.

    Returns:
        the corrected p-values, in the order of `values`.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = largest
    return corrected


def seeds_needed(found: Difference, size: float) -> int:
    """Return the smallest number of seeds with which a difference of `size` points is shown with probability POWER.

    The standard deviations of `found`, which must be `known`, are taken for the true ones. The test is that of `found`,
    for a single comparison at LEVEL: for pairs, n is the number of pairs, otherwise the number of runs in each group.
    """
    variance = sum(deviation**2 for deviation in found.deviations)
    fourth = sum(deviation**4 for deviation in found.deviations)
    # degrees of freedom per n - 1, by Welch and Satterthwaite with n runs in each group; 1 for pairs
    ratio = variance**2 / fourth
    return smallest(lambda n: power_of(size * math.sqrt(n / variance), ratio * (n - 1)))


def power_of(shift: float, freedom: float) -> float:
    """Return the probability that a t test at LEVEL shows a difference of `shift` standard errors with its sign."""
    from scipy.special import nctdtr, stdtrit

    shift = min(shift, 1000.0)  # the probability is 1 there; of far larger shifts scipy returns nan
    return float(1 - nctdtr(freedom, shift, stdtrit(freedom, 1 - LEVEL / 2)))


def smallest(power: Callable[[int], float]) -> int:
    """Return the smallest n of at least 2 for which `power(n)`, which grows with n, reaches POWER."""
    high = 2
    while power(high) < POWER:
        high *= 2
    low = high // 2  # too few, or below 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
