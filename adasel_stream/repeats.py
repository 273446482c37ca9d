"""How often an instance was chosen lately, in constant memory."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Repeats"]

_PLACES: Final = 1 << 16
_FACTORS: Final = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], dtype=np.uint64)
"""Odd numbers whose products scatter the high bits: 2^64 over the golden ratio, and a prime."""


class Repeats:
    """Count how often instances were among about the last 100,000 that were chosen.

    Rarely too many: of two tables of counters the lesser one counts. All are halved after every
    65,536 instances, so that what is long ago is forgotten: an instance counts as often as it was
    among the last 65,536, and half as often for each 65,536 before.

    Source: count-min sketch, Cormode and Muthukrishnan 2005, with conservative ageing.

    >>> repeats = Repeats()
    >>> repeats.add(np.array([7, 7, 8]))
    >>> repeats.count(np.array([7, 8, 9])).tolist()
    [2, 1, 0]
    """

    def __init__(self) -> None:
        """Begin with nothing chosen."""
        self._counters = np.zeros((2, _PLACES), dtype=np.uint32)
        self._since = 0

    def add(self, ids: npt.NDArray[np.int64]) -> None:
        """Count instances that were chosen, shape (n,)."""
        for table, places in zip(self._counters, _places(ids), strict=True):
            np.add.at(table, places, np.uint32(1))
        self._since += len(ids)
        while self._since >= _PLACES:
            self._counters //= 2
            self._since -= _PLACES

    def count(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Say how often each instance was chosen lately, shape (n,)."""
        first, second = _places(ids)
        least: npt.NDArray[np.uint32] = np.minimum(
            self._counters[0, first], self._counters[1, second]
        )
        return least

    def state_dict(self) -> dict[str, Any]:
        """Describe the counts."""
        rows, places = self._counters.nonzero()
        counts = self._counters[rows, places]
        at = np.stack([rows, places, counts.astype(np.int64)])
        return {"since": self._since, "at": torch.from_numpy(at)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        rows, places, counts = state["at"].numpy()
        self._counters[:] = 0
        self._counters[rows, places] = counts
        self._since = int(state["since"])


def _places(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Give the place of each instance in either table, shape (2, n)."""
    places: npt.NDArray[np.uint64] = (ids.view(np.uint64)[None] * _FACTORS[:, None]) >> np.uint64(
        48
    )
    return places
