"""How many rows to choose, so that the long-run rate is exact to one sample."""

import math
from fractions import Fraction

from adasel_stream.arguments import number

__all__ = ["Quota", "half_up"]

_LARGEST_DENOMINATOR = 10**12


def half_up(rows: int, sampling_rate: float) -> int:
    """Round γb to the nearest whole number, halves up, at least 1 and at most b.

    Source: the paper's bγ, which is rarely whole.

    >>> half_up(128, 0.1), half_up(5, 0.5), half_up(3, 0.1), half_up(0, 0.3)
    (13, 3, 1, 0)
    """
    return min(rows, max(1, math.floor(sampling_rate * rows + 0.5)))


class Quota:
    """Whole numbers of rows whose sum stays within one of sampling_rate times the rows seen.

    Args:
        sampling_rate: γ, in (0, 1].
        whole_batches: round in every batch, as the paper prints, instead of carrying the rest.

    Raises:
        TypeError: sampling_rate is no number.
        ValueError: sampling_rate is outside (0, 1].

    >>> quota = Quota(0.3)
    >>> [quota.take(5) for _ in range(4)]
    [1, 2, 1, 2]
    """

    def __init__(self, sampling_rate: float, *, whole_batches: bool = False) -> None:
        sampling_rate = number("sampling_rate", sampling_rate)
        if not 0 < sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in (0, 1], got {sampling_rate}")
        self.sampling_rate = sampling_rate
        self.whole_batches = whole_batches
        self.seen = 0
        self.granted = 0
        if sampling_rate < 1 / _LARGEST_DENOMINATOR:
            raise ValueError(f"sampling_rate must be at least 1e-12, got {sampling_rate}")
        # 0.3 as 3/10: a product with the float would miss the rows that are due at some counts
        self._share = Fraction(sampling_rate).limit_denominator(_LARGEST_DENOMINATOR)

    def take(self, rows: int) -> int:
        """Grant a number of rows for `rows` more candidates, in [0, rows]."""
        self.seen += rows
        if self.whole_batches:
            grant = half_up(rows, self.sampling_rate)
        else:
            due = self.seen * self._share.numerator // self._share.denominator
            grant = min(rows, max(0, due - self.granted))
        self.granted += grant
        return grant

    def give_back(self, rows: int, granted: int) -> None:
        """Take back what the last `take` of `rows` granted: nothing was chosen from them."""
        self.seen -= rows
        self.granted -= granted

    def state_dict(self) -> dict[str, int]:
        """Describe how many rows were seen and granted."""
        return {"seen": self.seen, "granted": self.granted}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on counting from `state`."""
        self.seen, self.granted = int(state["seen"]), int(state["granted"])
