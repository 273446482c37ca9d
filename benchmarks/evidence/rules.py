"""Rules of others, as their sources state them, without this package's loader.

A rule sees candidates batch by batch and gives rows to train on with their weights.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["RULES", "Rule"]

Rule: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From ids (b,) and losses (b,) of candidates to chosen rows (n,) and their weights (n,)."""


class InfoBatch:
    """Leave out half of the rows with a loss below the mean, and weigh the others of them double.

    The losses are those recorded when a row was last trained on, and all rows are kept in the last
    eighth of training. How many rows are kept cannot be set.

    Source: InfoBatch, Qin et al. 2024, Eq. (3) and section 3.3, with r = 0.5 and δ = 0.875.
    """

    records = True

    def __init__(self, rate: float, candidates: int, seed: int) -> None:
        del rate
        self._last = int(0.875 * candidates)
        self._seen = 0
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, ids: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Keep rows; `losses` are recorded ones, NaN where there is none yet."""
        self._seen += len(ids)
        known = ~losses.isnan()
        below = known & (losses < losses[known].mean()) if known.any() else known
        if self._seen > self._last:
            below = torch.zeros_like(below)
        out = below & (torch.rand(len(ids), generator=self._random) < 0.5)
        weights = torch.where(below, 2.0, 1.0)
        kept = (~out).nonzero()[:, 0]
        return kept, weights[kept]


class SelectiveBackprop:
    """Keep a row with the chance CDF(loss) to the power of β, over the last 1,024 losses.

    β is such that the rate is kept on average: 1/(1 + β). Rows are not weighed.

    Source: Jiang et al. 2019, section 3.1.
    """

    records = False

    def __init__(self, rate: float, candidates: int, seed: int) -> None:
        del candidates
        self._power = 1 / rate - 1
        self._window = np.zeros(0, dtype=np.float32)
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, ids: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Keep rows; `losses` are fresh."""
        values = losses.numpy()
        self._window = np.concatenate([self._window, values])[-1024:]
        places = np.sort(self._window).searchsorted(values, side="right")
        chances = torch.from_numpy((places / len(self._window)) ** self._power)
        kept = (torch.rand(len(ids), generator=self._random) < chances).nonzero()[:, 0]
        return kept, torch.ones(len(kept))


RULES: dict[str, type[InfoBatch] | type[SelectiveBackprop]] = {
    "infobatch rule": InfoBatch,
    "selective-backprop rule": SelectiveBackprop,
}
