"""How old the losses were that made room for others."""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["EVICTED_AGE_BOUNDS_S", "EVICTED_CELLS", "EvictedAges", "count_ages", "read_ages"]

EVICTED_AGE_BOUNDS_S: Final = (1, 10, 60, 600, 3600, 21600, 86400, 604800)
"""8 bounds for the age of an evicted loss, from a second to a week; the last cell is above."""

EVICTED_CELLS: Final = len(EVICTED_AGE_BOUNDS_S) + 2
"""Cells of an array of counts: one a bound, one for what is older, and the sum of the seconds."""

_BOUNDS: Final = np.array(EVICTED_AGE_BOUNDS_S, np.int64)


class EvictedAges(NamedTuple):
    """A histogram of ages.

    Attributes:
        counts: losses no older than each bound but older than the one before, and the oldest;
            shape (9,), int64.
        sum_s: all ages added up, in seconds.
    """

    counts: npt.NDArray[np.int64]
    sum_s: int


def count_ages(cells: npt.NDArray[np.int64], ages_s: npt.NDArray[np.int64]) -> None:
    """Add ages to `cells`, shape (EVICTED_CELLS,).

    >>> cells = np.zeros(EVICTED_CELLS, np.int64)
    >>> count_ages(cells, np.array([1, 2, 10**6]))
    >>> cells.tolist()
    [1, 1, 0, 0, 0, 0, 0, 0, 1, 1000003]
    """
    if len(ages_s):
        found = _BOUNDS.searchsorted(ages_s)
        cells[:-1] += np.bincount(found, minlength=EVICTED_CELLS - 1)
        cells[-1] += ages_s.sum()


def read_ages(cells: npt.NDArray[np.int64]) -> EvictedAges:
    """Return what was counted.

    >>> read_ages(np.arange(EVICTED_CELLS)).sum_s
    9
    """
    return EvictedAges(cells[:-1].copy(), int(cells[-1]))
