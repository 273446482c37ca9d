"""Losses of every sample from before it was trained on, kept in a constant amount of memory.

Because the model has not seen a sample when it is scored, the mean of these losses over the
stream is an honest measure of the model as it learns: progressive validation.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["BLOCKS", "Difference", "Progressive", "paired_difference", "running_difference"]

BLOCKS = 52
"""Blocks of equal length that the stream is cut into; about a week each."""

_BINS = 1000


class Progressive:
    """Sums of losses, predictions and outcomes by block of the stream.

    Args:
        rows: samples of the stream, at least 1.

    >>> import torch
    >>> kept = Progressive(104)
    >>> kept.add(torch.tensor([0.5, 1.5]), torch.zeros(2), torch.tensor([0.0, 1.0]))
    >>> kept.seen, kept.loss, kept.calibration, kept.counts[:2]
    (2, 1.0, 1.0, array([2., 0.]))
    """

    def __init__(self, rows: int) -> None:
        """Start with nothing seen."""
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        self.rows = rows
        self.seen = 0
        self._sums = np.zeros((4, BLOCKS))
        self._predictions = np.zeros((2, _BINS))

    def add(self, losses: Tensor, logits: Tensor, outcomes: Tensor) -> None:
        """Count the next b samples of the stream.

        Args:
            losses: shape (b,).
            logits: predicted before training, shape (b,).
            outcomes: what happened, 0 or 1, shape (b,).
        """
        late = outcomes.numpy()
        chances = logits.sigmoid().numpy()
        places = np.arange(self.seen, self.seen + len(late)) * BLOCKS // self.rows
        places = places.clip(max=BLOCKS - 1)
        columns = (None, losses.numpy(), chances, late)
        for sums, column in zip(self._sums, columns, strict=True):
            sums += np.bincount(places, column, minlength=BLOCKS)
        bins = (chances * _BINS).astype(np.int64).clip(max=_BINS - 1)
        for outcome, counts in enumerate(self._predictions):
            counts += np.bincount(bins[late == outcome], minlength=_BINS)
        self.seen += len(late)

    @property
    def counts(self) -> npt.NDArray[np.float64]:
        """Samples of each block so far, shape (`BLOCKS`,)."""
        counts: npt.NDArray[np.float64] = self._sums[0]
        return counts

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """Mean loss of each block, shape (`BLOCKS`,); NaN where nothing was seen yet."""
        return _ratio(self._sums[1], self._sums[0])

    def calibrations(self, over: int) -> npt.NDArray[np.float64]:
        """Give the predicted by actual rate of the last blocks up to each.

        Args:
            over: how many blocks, in 1 to `BLOCKS`; fewer are there at the beginning.

        Returns:
            Shape (`BLOCKS`,); NaN where none was late.
        """
        sums = self._sums[2:].cumsum(axis=1)
        sums[:, over:] -= sums[:, :-over].copy()
        return _ratio(*sums)

    @property
    def loss(self) -> float:
        """Mean loss so far; NaN before the first sample."""
        return float(_ratio(self._sums[1].sum(), self._sums[0].sum()))

    @property
    def calibration(self) -> float:
        """Predicted by actual rate so far: 1 is right, above 1 predicts too many."""
        return float(_ratio(self._sums[2].sum(), self._sums[3].sum()))

    @property
    def auc(self) -> float:
        """How often a late flight was given the higher chance than one in time, ties half.

        Chances are told apart to a thousandth. NaN while only one outcome was seen.
        """
        on_time, late = self._predictions
        below = on_time.cumsum() - on_time / 2
        return float(_ratio((late * below).sum(), late.sum() * on_time.sum()))

    def state_dict(self) -> dict[str, Any]:
        """Describe everything counted so far."""
        return {
            "rows": self.rows,
            "seen": self.seen,
            "sums": self._sums.copy(),
            "predictions": self._predictions.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting from `state`.

        Raises:
            ValueError: the state is of a stream of another length.
        """
        if state["rows"] != self.rows:
            raise ValueError(f"the state is of {state['rows']} samples, here are {self.rows}")
        self.seen = int(state["seen"])
        self._sums[:] = state["sums"]
        self._predictions[:] = state["predictions"]


class Difference(NamedTuple):
    """How much lower or higher one arm's loss is than another's on the same samples.

    Attributes:
        mean: loss of the first minus loss of the second; negative when the first is better.
        error: standard error of `mean` over the blocks of the stream.
        blocks: difference of each block, shape (`BLOCKS`,).
    """

    mean: float
    error: float
    blocks: npt.NDArray[np.float64]

    @property
    def verdict(self) -> str:
        """Say "better", "worse" or "not distinguishable": beyond two standard errors or not.

        >>> Difference(-0.3, 0.1, np.zeros(BLOCKS)).verdict
        'better'
        """
        if not abs(self.mean) > 2 * self.error:
            return "not distinguishable"
        return "better" if self.mean < 0 else "worse"

    def __str__(self) -> str:
        """Write mean and two standard errors.

        >>> str(Difference(-0.3, 0.1, np.zeros(BLOCKS)))
        '-0.3000 ± 0.2000'
        """
        return f"{self.mean:+.4f} ± {2 * self.error:.4f}"


def paired_difference(first: Progressive, second: Progressive) -> Difference:
    """Compare two arms block by block.

    Both saw the same samples in the same order, so what makes a block hard for both drops out.
    The error is that of a mean over blocks, weighted by their samples; it is NaN with fewer than
    two blocks.

    >>> import torch
    >>> arms = [Progressive(104), Progressive(104)]
    >>> for arm, loss in zip(arms, (1.0, 1.5)):
    ...     arm.add(torch.full((104,), loss), torch.zeros(104), torch.ones(104))
    >>> str(paired_difference(*arms))
    '-0.5000 ± 0.0000'
    """
    blocks, weights = _blocks(first, second)
    mean, error = _mean_and_error(blocks, weights)
    return Difference(mean, error, blocks)


def running_difference(
    first: Progressive, second: Progressive
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compare two arms up to the end of each block: means and errors, shape (`BLOCKS`,) each."""
    blocks, weights = _blocks(first, second)
    ends = range(1, BLOCKS + 1)
    both = np.array([_mean_and_error(blocks[:end], weights[:end]) for end in ends])
    return both[:, 0], both[:, 1]


def _blocks(
    first: Progressive, second: Progressive
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Give the difference of each block and its weight, 0 for a block that nobody saw."""
    blocks = first.losses - second.losses
    seen = np.isfinite(blocks)
    return np.where(seen, blocks, 0.0), first.counts * seen


def _mean_and_error(
    blocks: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]
) -> tuple[float, float]:
    n = int((weights > 0).sum())
    share = _ratio(weights, np.full_like(weights, weights.sum()))
    mean = float(share @ blocks)
    squares = float(np.square(share) @ np.square(blocks - mean))
    return mean, math.nan if n < 2 else math.sqrt(squares * n / (n - 1))


def _ratio(above: Any, below: Any) -> npt.NDArray[np.float64]:
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    ratio: npt.NDArray[np.float64] = np.full_like(above, np.nan)
    np.divide(above, below, out=ratio, where=below != 0)
    return ratio
