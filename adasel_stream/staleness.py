"""What a recorded loss is still worth: recorded losses drawn towards what fresh ones say.

A model that learns leaves its record behind: a loss of an hour ago is too high, and says less about
the loss of now than one of a minute ago. Rows that are trained on show both, the recorded loss x
and the fresh one y. For each age their regression gives the best linear guess of the fresh loss,

    E[y | x] = mean(y) + slope * (x - mean(x)),   slope in [0, 1],

so that old losses of little worth come near the average and fresh ones stand as they are. Rows are
selected by the recorded loss, never by the fresh one, so the selection leaves the regression alone.
Losses enter as asinh(loss), which tames outliers and is the loss itself where it is small.

Source: the regression estimate of a quantity from an outdated measurement, as in measurement error
models (Fuller 1987, chapter 1); the paper has no record and so no staleness.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.record.evicted import EVICTED_AGE_BOUNDS_S

__all__ = ["AGE_BOUNDS_S", "Staleness"]

Floats = npt.NDArray[np.floating[Any]]

AGE_BOUNDS_S: Final = EVICTED_AGE_BOUNDS_S
"""Ages are told apart by these bounds, from a second to a week; a bound belongs to the class that
it ends."""

_WINDOW: Final = 10_000.0
"""About how many of the last comparisons of an age count."""

_LEAST: Final = 100.0
"""Fewer comparisons say nothing yet; recorded losses then stand as they are."""

_LARGEST: Final = 70.0
"""asinh of some 1e30, beyond which losses are clipped."""


class Staleness:
    """Learn from trained rows what recorded losses are worth, and correct others by it.

    >>> staleness = Staleness()
    >>> recorded = np.linspace(0, 0.4, 200, dtype=np.float32)
    >>> staleness.learn(recorded, np.full(200, 30.0), recorded / 2)  # the model has learnt
    >>> staleness.correct(np.float32([0.2, 0.4]), np.full(2, 30.0)).round(2).tolist()
    [0.10000000149011612, 0.20000000298023224]
    """

    def __init__(self) -> None:
        """Know nothing: recorded losses stand as they are."""
        # a row for each age: weight, mean x, mean y, and central sums of xx, xy and yy
        self._moments = np.zeros((len(AGE_BOUNDS_S) + 1, 6))

    @property
    def reliability(self) -> list[float | None]:
        """Correlation of recorded with fresh losses for each age; None where too few are known."""
        weight, _, _, xx, xy, yy = self._moments.T
        spread = np.sqrt(xx * yy)
        return [
            float(xy[i] / spread[i]) if weight[i] >= _LEAST and spread[i] > 0 else None
            for i in range(len(weight))
        ]

    def learn(self, recorded: Floats, ages_s: Floats, fresh: Floats) -> None:
        """Compare recorded losses with fresh ones of the same rows.

        Args:
            recorded: recorded losses, shape (n,); NaN where there was none.
            ages_s: their ages in seconds, shape (n,).
            fresh: fresh losses, shape (n,); rows that are not finite say nothing.
        """
        usable = np.isfinite(recorded) & np.isfinite(fresh)
        x, y = _tamed(recorded[usable]), _tamed(fresh[usable])
        ages = np.searchsorted(AGE_BOUNDS_S, ages_s[usable])
        for age in np.unique(ages).tolist():
            here = ages == age
            self._moments[age] = _merged(self._moments[age], x[here], y[here])

    def correct(self, recorded: Floats, ages_s: Floats) -> npt.NDArray[np.float32]:
        """Give the best guess of the fresh losses, shape (n,), float32.

        Args:
            recorded: recorded losses, shape (n,), finite.
            ages_s: their ages in seconds, shape (n,).
        """
        weight, mean_x, mean_y, xx, xy, _ = self._moments.T
        told = (weight >= _LEAST) & (xx > 0)
        if not told.any():
            return recorded.astype(np.float32, copy=False)
        slope = np.where(told, np.clip(xy / np.where(told, xx, 1.0), 0.0, 1.0), 1.0)
        shift = np.where(told, mean_y - slope * mean_x, 0.0)
        ages = np.searchsorted(AGE_BOUNDS_S, ages_s)
        guess = shift.take(ages) + slope.take(ages) * _tamed(recorded)
        corrected = np.sinh(np.clip(guess, -_LARGEST, _LARGEST)).astype(np.float32)
        # where nothing is told a loss comes back to the last bit
        return np.where(told.take(ages), corrected, recorded).astype(np.float32, copy=False)

    def state_dict(self) -> dict[str, Any]:
        """Describe what was learnt."""
        return {"moments": self._moments.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._moments[:] = state["moments"]


def _tamed(losses: Floats) -> npt.NDArray[np.float64]:
    return np.clip(np.arcsinh(losses.astype(np.float64)), -_LARGEST, _LARGEST)


def _merged(
    moments: npt.NDArray[np.float64], x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Add n pairs to running moments, whose weight is faded so that it stays near the window.

    Source: Chan, Golub and LeVeque 1979, for moments of two parts put together.
    """
    n = float(len(x))
    before = moments * [1, 0, 0, 1, 1, 1] * np.exp(-n / _WINDOW)
    weight, mean_x, mean_y = before[0], moments[1], moments[2]
    new_x, new_y = x.mean(), y.mean()
    share = n / (weight + n)
    cross = weight * share
    dx, dy = new_x - mean_x, new_y - mean_y
    x, y = x - new_x, y - new_y
    return np.array(
        [
            weight + n,
            mean_x + share * dx,
            mean_y + share * dy,
            before[3] + x @ x + cross * dx * dx,
            before[4] + x @ y + cross * dx * dy,
            before[5] + y @ y + cross * dy * dy,
        ]
    )
