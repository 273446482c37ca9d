"""Means, standard errors, paired differences and ranks, of few numbers.

A value that is not finite is a run that diverged. It is never dropped: it makes its mean and its
difference infinitely bad, and its rank the last. Nor is it a merit of the one that it is compared
with, whose difference is infinite, and no better by any number of errors.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import NamedTuple

__all__ = ["Difference", "Mean", "mean_of", "paired", "ranks", "share_closed", "value_at"]

SURE = 2.0
"""Standard errors of a paired difference from which on it counts."""


class Mean(NamedTuple):
    """A mean over seeds.

    Attributes:
        value: the mean; NaN without values or where a run diverged.
        error: its standard error; NaN where there are fewer than two values.
    """

    value: float
    error: float


class Difference(NamedTuple):
    """How much better one contestant did than another, on the same seeds.

    Attributes:
        value: mean difference, positive where the first is better; -inf where it diverged.
        error: standard error of the mean difference; NaN with fewer than two seeds.
        seeds: how many seeds both have.
    """

    value: float
    error: float
    seeds: int

    @property
    def in_errors(self) -> float:
        """The difference in standard errors: ±inf where all seeds differ by exactly the same.

        >>> Difference(1.0, 0.5, 3).in_errors, Difference(0.0, 0.0, 3).in_errors
        (2.0, 0.0)
        """
        if self.value == 0 or math.isinf(self.value):
            return self.value
        if self.error == 0:
            return math.copysign(math.inf, self.value)
        return self.value / self.error

    def at_least(self, errors: float) -> bool:
        """Say whether the difference is at least so many of its standard errors.

        Nothing is known with fewer than two seeds, so nothing is claimed.

        >>> Difference(-1.0, 1.0, 5).at_least(-2), Difference(-1.0, math.nan, 1).at_least(-2)
        (True, False)
        """
        return self.in_errors >= errors

    @property
    def is_better(self) -> bool:
        """Whether the first is better by two standard errors, where neither diverged.

        >>> Difference(1.0, 0.5, 3).is_better, Difference(math.inf, math.nan, 3).is_better
        (True, False)
        """
        return math.isfinite(self.value) and self.at_least(SURE)

    @property
    def is_worse(self) -> bool:
        """Whether the first is worse by two standard errors, or diverged."""
        return not self.at_least(-SURE)


def mean_of(values: Iterable[float]) -> Mean:
    """Give mean and standard error, the deviation of a sample over the root of its size.

    >>> mean_of([1.0, 2.0, 3.0])
    Mean(value=2.0, error=0.5773502691896258)
    """
    every = list(values)
    if not every or not all(map(math.isfinite, every)):
        return Mean(math.nan, math.nan)
    error = stdev(every) / math.sqrt(len(every)) if len(every) > 1 else math.nan
    return Mean(fmean(every), error)


def paired(one: Mapping[int, float], other: Mapping[int, float], *, higher: bool) -> Difference:
    """Compare two contestants seed by seed; seeds that only one of them has are left out.

    Args:
        one: values by seed.
        other: values by seed of the contestant that it is compared with.
        higher: whether higher values are better.

    >>> paired({0: 3.0, 1: 5.0}, {0: 2.0, 1: 2.0, 2: 9.0}, higher=True)
    Difference(value=2.0, error=1.0, seeds=2)
    """
    common = sorted(one.keys() & other.keys())
    if not common:
        return Difference(math.nan, math.nan, 0)
    if not all(math.isfinite(one[seed]) for seed in common):
        return Difference(-math.inf, math.nan, len(common))
    sign = 1 if higher else -1
    mean = mean_of(sign * (one[seed] - other[seed]) for seed in common)
    if math.isnan(mean.value):  # the other one diverged
        return Difference(math.inf, math.nan, len(common))
    return Difference(mean.value, mean.error, len(common))


def ranks(values: Mapping[str, float], *, higher: bool) -> dict[str, float]:
    """Rank contestants, 1 the best; equal ones share the average of their ranks.

    >>> ranks({"a": 0.9, "b": 0.7, "c": 0.9, "d": math.nan}, higher=True)
    {'a': 1.5, 'b': 3.0, 'c': 1.5, 'd': 4.0}
    """
    sign = -1 if higher else 1
    keys = {
        name: sign * value if math.isfinite(value) else math.inf for name, value in values.items()
    }
    return {
        name: sum(other < key for other in keys.values())
        + (sum(other == key for other in keys.values()) + 1) / 2
        for name, key in keys.items()
    }


def share_closed(value: float, uniform: float, full: float) -> float:
    """Say how much of the gap between uniform and full training was closed.

    1 is as good as full training, 0 as good as uniform; NaN where there is no gap.

    >>> share_closed(85, uniform=80, full=90)
    0.5
    """
    return (value - uniform) / (full - uniform) if full != uniform else math.nan


def value_at(points: Sequence[tuple[float, float]], seconds: float) -> float:
    """Read off what would be reached in a time, on lines between points over the time's logarithm.

    Args:
        points: seconds, above 0, and values; at least one, in any order.
        seconds: above 0; outside of the points the nearest one counts.

    >>> value_at([(1.0, 10.0), (4.0, 20.0)], 2.0)
    15.0
    """
    ordered = sorted(points)
    if seconds <= ordered[0][0]:
        return ordered[0][1]
    for (before, low), (after, high) in pairwise(ordered):
        if seconds <= after:
            place = math.log(seconds / before) / math.log(after / before)
            return low + place * (high - low)
    return ordered[-1][1]
