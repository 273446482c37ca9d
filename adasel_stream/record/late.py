"""Which rows changed with a tick from before the last copy of their table: a bit for each slot."""

import numpy as np
import numpy.typing as npt

from adasel_stream.record.table import WAYS

__all__ = ["LateRows"]

_NEVER = 0


class LateRows:
    """Remembers the slots of late losses, which a copy of what is young does not find by tick.

    It takes no memory before the first copy, and of a bit a slot only the pages that are written.

    Args:
        capacity: number of slots, a multiple of 8.

    Attributes:
        since: the tick at which the last copy began; older ones are late. 0 before the first.

    >>> late = LateRows(capacity=16)
    >>> late.take(now=7) is None, late.since
    (True, 7)
    >>> late.mark(np.array([1, 8]))
    >>> late.take(now=9).tolist()
    [2, 1]
    """

    def __init__(self, capacity: int) -> None:
        self.since = _NEVER
        self._lines = capacity // WAYS
        self._bits: npt.NDArray[np.uint8] | None = None

    def mark(self, slots: npt.NDArray[np.int64]) -> None:
        """Remember slots, which may be named twice; there must have been a copy."""
        if self._bits is not None:
            bits = np.left_shift(1, slots % WAYS).astype(np.uint8)
            np.bitwise_or.at(self._bits, slots // WAYS, bits)

    def forget(self) -> None:
        """Take the table as another one, none of whose rows was ever copied."""
        self.since, self._bits = _NEVER, None

    def take(self, now: int) -> npt.NDArray[np.uint8] | None:
        """Begin a copy, and return what was marked since the last.

        Args:
            now: the tick at which it begins.

        Returns:
            Bit `slot % 8` of row `slot // 8`, from the lowest, shape (capacity / 8,); None if
            there was no copy before.
        """
        bits = self._bits
        self.since, self._bits = now, np.zeros(self._lines, np.uint8)
        return bits
