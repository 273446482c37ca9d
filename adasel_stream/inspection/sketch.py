"""Quantiles and histograms of any number of values in 2 MiB."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["Sketch"]

# sign, exponent and nine bits of the fraction
_CELL_BITS: Final = 18
_SHIFT: Final = np.uint32(32 - _CELL_BITS)
_CELLS: Final = 1 << _CELL_BITS
# of floats by their bits the positive ascend, and the negative, which come after them, descend
_ASCENDING: Final = np.r_[_CELLS - 1 : _CELLS // 2 - 1 : -1, 0 : _CELLS // 2]
_VALUES: Final = (_ASCENDING.astype(np.uint32) << _SHIFT).view(np.float32)
# bits that are no number lie beyond the infinities
_VALUES[: _CELLS // 2][np.isnan(_VALUES[: _CELLS // 2])] = -np.inf
_VALUES[np.isnan(_VALUES)] = np.inf


class Sketch:
    """Counts values that agree in their first nine binary digits together.

    What it tells of a value is nearer to zero than the value, by less than 1 / 512 of it; the
    least and the greatest are exact.

    >>> sketch = Sketch()
    >>> sketch.add(np.array([4.0, 1.0, 2.0, 2.0], np.float32))
    >>> sketch.quantiles([0, 0.5, 1]), sketch.below([2.0, 100.0])
    ([1.0, 2.0, 4.0], [1, 4])
    """

    def __init__(self) -> None:
        self._cells: npt.NDArray[np.int64] = np.zeros(_CELLS, np.int64)
        self._least, self._greatest = np.inf, -np.inf
        self.size = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count values.

        Args:
            values: finite, of any shape; taken as float32.
        """
        if not values.size:
            return
        floats = np.ascontiguousarray(values, np.float32)
        self._least = min(self._least, float(floats.min()))
        self._greatest = max(self._greatest, float(floats.max()))
        cells = floats.view(np.uint32).ravel() >> _SHIFT
        self._cells += np.bincount(cells, minlength=_CELLS)
        self.size += values.size

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Return for each share the least value that so many are not above.

        Args:
            shares: each in [0, 1].

        Returns:
            One value for each share, none if nothing was counted.
        """
        if not self.size:
            return []
        ranks = np.maximum(np.ceil(np.array(shares) * self.size), 1)
        counted = self._cells.take(_ASCENDING).cumsum()
        found = _VALUES.take(counted.searchsorted(ranks))
        found = np.where(ranks <= 1, self._least, np.where(ranks >= self.size, np.inf, found))
        return [float(value) for value in np.clip(found, self._least, self._greatest)]

    def below(self, bounds: Sequence[float]) -> list[int]:
        """Return how many values are less than each bound, which ascend."""
        counted = np.concatenate(([0], self._cells.take(_ASCENDING).cumsum()))
        return [int(count) for count in counted.take(_VALUES.searchsorted(bounds))]
