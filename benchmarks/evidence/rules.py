"""Rules of others, as their sources state them, without this package's loader.

A rule sees candidates batch by batch and gives rows to train on with their weights.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.evidence.problem import generator

__all__ = ["RULES", "InfoBatch", "Rule", "SelectiveBackprop"]


class Rule(Protocol):
    """A way to choose rows."""

    keeps_losses: bool
    """Whether the losses of rows that were trained on are all that it needs."""

    def choose(self, ids: Tensor, losses: Tensor | None, progress: float) -> tuple[Tensor, Tensor]:
        """Choose among candidates.

        Args:
            ids: shape (b,), int64, below the number of rows.
            losses: fresh ones, shape (b,), or None where the rule keeps losses.
            progress: share of the updates that is made, in [0, 1).

        Returns:
            places of the chosen rows among the candidates, shape (n,), and weights, shape (n,).
        """
        ...

    def learn(self, ids: Tensor, losses: Tensor) -> None:
        """Hear the losses of rows as they were trained on, shape (n,) each."""
        ...


class InfoBatch:
    """Leave out half of the rows with a loss below the mean, and weigh the others of them double.

    The losses are those of a row's last training, the mean is that of all rows that have one, and
    rows without one are kept; so are all rows in the last eighth of training. How many rows are
    kept cannot be set. Departs from its source in that the mean moves with every batch and not
    with every epoch, since few epochs are trained here.

    Source: InfoBatch, Qin et al. 2024, Eq. (3) and section 3.3, with r = 0.5 and δ = 0.875.
    """

    keeps_losses = True

    def __init__(self, rate: float, rows: int, seed: int) -> None:
        """Start without losses; the rate cannot be set."""
        del rate
        self._losses = torch.full((rows,), torch.nan)
        self._random = generator(seed + 4)

    def choose(self, ids: Tensor, losses: Tensor | None, progress: float) -> tuple[Tensor, Tensor]:
        """Keep rows, by recorded losses."""
        del losses
        below = self._losses[ids] < self._losses.nanmean()  # False where there is none
        if progress >= 0.875:
            below = torch.zeros_like(below)
        out = below & (torch.rand(len(ids), generator=self._random) < 0.5)
        kept = (~out).nonzero()[:, 0]
        return kept, torch.where(below, 2.0, 1.0)[kept]

    def learn(self, ids: Tensor, losses: Tensor) -> None:
        """Record losses."""
        self._losses[ids] = losses


class SelectiveBackprop:
    """Keep a row with the chance CDF(loss) to the power of β, over the last 1,024 losses.

    β is such that the rate is kept on average: 1/rate - 1. Rows are not weighed.

    Source: Jiang et al. 2019, section 3.1.
    """

    keeps_losses = False

    def __init__(self, rate: float, rows: int, seed: int) -> None:
        """Start without a history; the number of rows does not matter."""
        del rows
        self._power = 1 / rate - 1
        self._window = np.zeros(0, dtype=np.float32)
        self._random = generator(seed + 4)

    def choose(self, ids: Tensor, losses: Tensor | None, progress: float) -> tuple[Tensor, Tensor]:
        """Keep rows, by fresh losses."""
        del progress
        assert losses is not None, "it keeps none of its own"
        values = losses.numpy()
        self._window = np.concatenate([self._window, values])[-1024:]
        places = np.sort(self._window).searchsorted(values, side="right")
        chances = torch.from_numpy((places / len(self._window)) ** self._power)
        kept = (torch.rand(len(ids), generator=self._random) < chances).nonzero()[:, 0]
        return kept, torch.ones(len(kept))

    def learn(self, ids: Tensor, losses: Tensor) -> None:
        """Need nothing more than what `choose` saw."""


RULES: dict[str, type[InfoBatch] | type[SelectiveBackprop]] = {
    "infobatch rule": InfoBatch,
    "selective-backprop rule": SelectiveBackprop,
}
"""Rules by the names of their contestants; each is made of a rate, a number of rows and a seed."""
