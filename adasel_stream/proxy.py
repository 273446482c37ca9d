"""Losses that are not the model's own: a cheap score in its place, and whether it still ranks rows.

Scoring every candidate takes a forward pass of the model. Anything that ranks rows about as the
model's losses do can take its place: a smaller network, a model of last week, a rule. Chances that
follow a poor proxy cost variance, never bias, since weights undo them; so what must be watched is
only whether the proxy is worth its name. Rows that are trained on show it: their fresh losses come
for nothing, and the chances that they were drawn with are known, which is what `spearman` needs to
tell the correlation among all candidates from that among the chosen.

Source: section 5 of the paper, which names a forward pass approximation "similar to a
teacher-student model" as future work.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from adasel_stream.arguments import number
from adasel_stream.scorers import Score
from adasel_stream.spearman import UNKNOWN, Correlation, Floats, jackknifed, rank_products
from adasel_stream.types import Batch, Scored

__all__ = ["Proxy", "ProxyWatch"]

_log = logging.getLogger(__name__)

_GROUPS: Final = 20
"""Groups of trained rows that count."""

_ROWS: Final = 103
"""Rows that make a group, so that 2,060 count; a larger batch is a group of its own."""

_LONG: Final = _GROUPS
"""Groups in a row, at whose end the correlation speaks against it, that change the alert."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A score whose losses are not those of the model that is trained.

    Args:
        score: gives something of a candidate batch that rises with the model's loss, shape (b,),
            or `Scored`.
        floor: rank correlation with the model's losses below which it is not worth its name, in
            [0, 1).

    Raises:
        TypeError: the score cannot be called.
        ValueError: a floor out of its range.

    >>> import torch
    >>> from adasel_stream import SelectingLoader
    >>> cheap = Proxy(lambda batch: batch["x"].abs())
    >>> loader = SelectingLoader([{"x": torch.arange(8.0)}] * 2, score=cheap, sampling_rate=0.5)
    >>> len(list(loader))
    1
    """

    score: Score
    floor: float = 0.3

    def __post_init__(self) -> None:
        """Refuse what cannot be a score or a floor."""
        if not callable(self.score):
            raise TypeError(f"score must be a function of a batch, got {type(self.score).__name__}")
        _check_floor(self.floor)

    def __call__(self, batch: Batch) -> Tensor | Scored:
        """Give what the score gives."""
        return self.score(batch)


class ProxyWatch:
    """Measure on trained rows how well a proxy ranks candidates, and say when it no longer does.

    What counts is how it ranks candidates that are chosen from together, so that ranks are made
    within a batch; in small batches they are coarse, and read low, by some 0.02 of 64 rows and 0.06
    of 16. The last 20 batches count, or 2,060 rows where those are more; half of them must be known
    first, and as many in a row as count must say so before the alert changes. The memory that it
    takes is constant.

    Args:
        floor: rank correlation that is the least to be worth its name, in [0, 1).

    Attributes:
        correlation: rank correlation among all candidates, as it was measured last.
        alert: whether it is below the floor.
        alerts: how often it fell below.
        ignored: rows that were left out, as the proxy or the loss was not finite.

    Raises:
        ValueError: a floor out of its range.

    >>> watch = ProxyWatch(floor=0.3)
    >>> random = np.random.default_rng(0)
    >>> for _ in range(20):
    ...     fresh = random.gamma(1.0, size=64)
    ...     watch.learn(fresh + 0.1 * random.normal(size=64), fresh, np.ones(64))
    >>> round(watch.correlation.value, 2), watch.alert
    (0.98, False)
    """

    def __init__(self, floor: float) -> None:
        """Know nothing."""
        _check_floor(floor)
        self._floor = floor
        self._groups: list[list[float]] = []
        self._rows = 0
        self._against = 0
        self.correlation = UNKNOWN
        self.alert = False
        self.alerts = self.ignored = 0

    def learn(self, proxy: Floats, fresh: Floats, weights: Floats) -> None:
        """Compare what the proxy said with fresh losses of the same rows, one batch of them.

        Args:
            proxy: what the proxy gave when the rows were chosen, shape (n,).
            fresh: losses from training on them, shape (n,).
            weights: in proportion to 1/π, such as the loader's weights, shape (n,); 0 marks a slot
                that no row fills.
        """
        filled = weights > 0
        usable = filled & np.isfinite(proxy) & np.isfinite(fresh)
        rows = int(usable.sum())
        self.ignored += int(filled.sum()) - rows
        if rows == 0:
            return
        products = rank_products(proxy[usable], fresh[usable], weights[usable])
        if self._rows:  # the last group is not whole yet
            products += self._groups.pop()
        self._groups = [*self._groups, products.tolist()][-_GROUPS:]
        self._rows += rows
        if self._rows >= _ROWS:
            self._rows = 0
            self._measure()

    def state_dict(self) -> dict[str, Any]:
        """Describe what counts, and what was made of it, in plain data."""
        return {
            "groups": [list(group) for group in self._groups],
            "rows": self._rows,
            "against": self._against,
            "correlation": list(self.correlation),
            "alert": self.alert,
            "alerts": self.alerts,
            "ignored": self.ignored,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._groups = [list(group) for group in state["groups"]]
        self._rows, self._against = int(state["rows"]), int(state["against"])
        self.correlation = Correlation(*state["correlation"])
        self.alert = bool(state["alert"])
        self.alerts, self.ignored = int(state["alerts"]), int(state["ignored"])

    def _measure(self) -> None:
        if len(self._groups) < _GROUPS // 2:
            return
        self.correlation = jackknifed(np.array(self._groups))
        low = self.correlation.value < self._floor
        self._against = self._against + 1 if low is not self.alert else 0
        if self._against < _LONG:
            return
        self._against, self.alert = 0, low
        if not low:
            _log.info("the proxy ranks rows again: %s", self._told())
            return
        self.alerts += 1
        _log.warning(
            "the proxy does not rank rows as the model's losses do: %s. Rows are drawn without "
            "bias all the same, but selection gains little; train the proxy anew or score by the "
            "model",
            self._told(),
        )

    def _told(self) -> str:
        value, low, high = self.correlation
        return (
            f"rank correlation {value:.2f}, interval {low:.2f} to {high:.2f}, floor {self._floor:g}"
        )


def _check_floor(floor: float) -> None:
    if not 0 <= number("floor", floor) < 1:
        raise ValueError(f"floor must be in [0, 1), got {floor}")
