"""Does a series fall? A line through its last values, and how sure one can be of it."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

__all__ = ["Trend", "error_of", "normal", "student", "trend_of"]

_MOST_ALIKE: Final = 0.9
"""The largest correlation of neighbours that is allowed for."""


class Trend(NamedTuple):
    """A line through values.

    Attributes:
        level: their mean.
        fall: what the line falls by from one value to the next; negative where it rises.
        error: standard error of the fall.
        noise: deviation of a value from the line, as large as the mean of many makes it: neighbours
            that are alike say less than as many that are not.
    """

    level: float
    fall: float
    error: float
    noise: float


def trend_of(values: Sequence[float]) -> Trend:
    """Draw a line through values, n of them, by least squares.

    Where what the line leaves over is alike from one value to the next by a correlation ρ, its
    deviation counts √((1+ρ)/(1-ρ)) times, for ρ in [0, 0.9].

    Source: Marriott and Pope 1954 for the bias of ρ.

    Args:
        values: finite, at least 5.

    >>> trend_of([5.0, 4.0, 3.0, 2.0, 1.0])
    Trend(level=3.0, fall=1.0, error=0.0, noise=0.0)
    """
    series = np.array(values, np.float64)
    n = len(series)
    steps = np.arange(n) - (n - 1) / 2
    level = series.mean()
    rise = steps @ (series - level) / (steps @ steps)
    rest = series - level - rise * steps
    squares = rest @ rest
    alike = rest[1:] @ rest[:-1] / squares if squares > 0 else 0.0
    alike = (alike + 2 / n) / (1 - 4 / n)  # a line takes 2/n of the correlation and 4/n more away
    alike = min(max(float(alike), 0.0), _MOST_ALIKE)
    noise = math.sqrt(squares / (n - 2) * (1 + alike) / (1 - alike))
    return Trend(float(level), float(0.0 - rise), error_of(noise, n), noise)


def error_of(noise: float, n: int) -> float:
    """Give the standard error of a line's fall through n values of that noise.

    >>> error_of(math.sqrt(5), 4)
    1.0
    """
    return noise * math.sqrt(12 / (n**3 - n))


def student(margin: float, error: float, freedom: int) -> float:
    """Give Student's distribution function at margin/error; 0 or 1 where there is no error.

    Args:
        margin: finite.
        error: at least 0.
        freedom: degrees of freedom, at least 8 for an error of less than 0.001.

    Source: Abramowitz and Stegun 1964, 26.7.8.

    >>> round(student(1.697, 1.0, 30), 3)  # the table says 0.950
    0.95
    """
    if not error > 0:
        return float(margin > 0)
    t = margin / error
    return normal(t * (1 - 1 / (4 * freedom)) / math.sqrt(1 + t * t / (2 * freedom)))


def normal(z: float) -> float:
    """Give the normal distribution function.

    >>> normal(0.0)
    0.5
    """
    return math.erfc(-z / math.sqrt(2)) / 2
