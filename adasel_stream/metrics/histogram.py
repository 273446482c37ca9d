"""Bucket counts of many values at once."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Histogram"]

# A float32 loss never exceeds this; a larger float64 one could overflow the running sum.
_LARGEST = float(np.finfo(np.float32).max)
_MAX_BOUNDS = 32


class Histogram:
    """Count values per bucket as Prometheus does: a bucket holds values up to its bound.

    Counts and sum are replaced together, so that another thread that reads `state` never
    sees counts of one moment with the sum of another. One thread may add.

    Args:
        bounds: upper bounds of the buckets, finite, strictly increasing, 1 to 32; a last
            bucket takes everything above.

    Raises:
        ValueError: if `bounds` are not as described.

    >>> losses = Histogram([0.1, 1.0])
    >>> losses.add(np.array([0.05, 0.1, 0.5, 3.0, np.nan]))
    1
    >>> losses.state_dict()
    {'bounds': [0.1, 1.0], 'counts': [2, 1, 1], 'sum': 3.65}
    """

    __slots__ = ("_edges", "bounds", "state")

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start with no values."""
        self.bounds: tuple[float, ...] = tuple(float(bound) for bound in bounds)
        rising = all(low < high for low, high in zip(self.bounds, self.bounds[1:], strict=False))
        finite = all(map(math.isfinite, self.bounds))
        if not (1 <= len(self.bounds) <= _MAX_BOUNDS and rising and finite):
            raise ValueError(
                f"bounds must be 1 to {_MAX_BOUNDS}, finite and strictly increasing, "
                f"got {self.bounds}"
            )
        self._edges = np.array([*self.bounds, math.inf])
        self.state: tuple[npt.NDArray[np.int64], float] = (
            np.zeros(len(self._edges), dtype=np.int64),
            0.0,
        )
        """Values up to each bound, cumulative, shape (bounds + 1,), int64; and their sum."""

    def add(self, values: npt.NDArray[Any]) -> int:
        """Add every finite value and return how many were left out.

        Args:
            values: shape (n,), floating point; n may be 0.

        Returns:
            How many values were NaN, infinite or beyond float32: one of them in the sum
            would spoil it for good.
        """
        if not len(values):
            return 0
        ordered = values.astype(np.float64)
        # Sorting is vectorised; looking 22 bounds up in 512 sorted values then costs half of
        # looking 512 values up in 22 bounds. NaN sort last.
        ordered.sort()
        rejected = 0
        if not (ordered[0] >= -_LARGEST and ordered[-1] <= _LARGEST):
            kept = ordered[np.abs(ordered) <= _LARGEST]
            rejected = len(ordered) - len(kept)
            ordered = kept
        # `right` counts values equal to a bound as within it: le, not lt
        upto = ordered.searchsorted(self._edges, side="right")
        counts, total = self.state
        self.state = (counts + upto, total + float(np.add.reduce(ordered)))
        return rejected

    def observe(self, value: float) -> None:
        """Add one value; leave it out unless it is finite.

        >>> seconds = Histogram([0.1, 1.0])
        >>> seconds.observe(0.2)
        >>> seconds.count
        1
        """
        if not abs(value) <= _LARGEST:
            return
        counts, total = self.state
        counts = counts.copy()
        counts[bisect_left(self.bounds, value) :] += 1
        self.state = (counts, total + value)

    def add_counts(self, counts: npt.NDArray[np.int64], total: float) -> None:
        """Add values that were counted elsewhere by the same bounds.

        Args:
            counts: values of each bucket alone, shape (bounds + 1,).
            total: their sum.

        >>> seconds = Histogram([0.1, 1.0])
        >>> seconds.add_counts(np.array([1, 0, 2]), 8.05)
        >>> seconds.count
        3
        """
        upto, before = self.state
        self.state = (upto + counts.cumsum(), before + total)

    @property
    def count(self) -> int:
        """Number of values added."""
        return int(self.state[0][-1])

    def state_dict(self) -> dict[str, Any]:
        """Describe the bounds, the counts of each bucket alone, and the sum."""
        upto, total = self.state
        return {
            "bounds": list(self.bounds),
            "counts": np.diff(upto, prepend=0).tolist(),
            "sum": total,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, or from zero where it was counted with other bounds.

        Raises:
            ValueError: if `state` does not hold a count for each bucket.
        """
        if tuple(state["bounds"]) != self.bounds:
            return
        counts = np.array(state["counts"], dtype=np.int64)
        if counts.shape != self._edges.shape or counts.min() < 0:
            raise ValueError(
                f"histogram state must hold {len(self._edges)} counts of at least 0, "
                f"got {state['counts']}"
            )
        self.state = (counts.cumsum(), float(state["sum"]))
