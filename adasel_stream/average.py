"""The average of a stream's losses, which stands in for a loss that nobody knows."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["RunningMean"]

_WINDOW: Final = 10_000


class RunningMean:
    """Mean of about the last 10,000 losses, of all of them while there are fewer.

    >>> mean = RunningMean()
    >>> mean.add(np.float32([1.0, 2.0]))
    >>> mean.add(np.float32([6.0]))
    >>> mean.value
    3.0
    """

    def __init__(self) -> None:
        """Begin at 0."""
        self.value = 0.0
        self._count = 0

    def add(self, losses: npt.NDArray[np.floating[Any]]) -> None:
        """Move towards some losses, shape (n,), finite."""
        if losses.size:
            self._count += losses.size
            share = losses.size / min(self._count, max(_WINDOW, losses.size))
            self.value += share * (float(losses.mean(dtype=np.float64)) - self.value)

    def state_dict(self) -> dict[str, Any]:
        """Describe the mean and how many losses it has seen."""
        return {"value": self.value, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.value, self._count = float(state["value"]), int(state["count"])
