"""What selection tells the metrics and the record, without waiting for the device."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.known import Judged
from adasel_stream.late import Late
from adasel_stream.lookups import Lookups
from adasel_stream.metrics import Metrics
from adasel_stream.types import Selection

__all__ = ["Reporting"]

_TINY: Final = float(np.finfo(np.float32).tiny)


class Reporting:
    """Send the numbers of each selection on their way.

    Args:
        metrics: counters to add to.
        late: carries numbers from the device.
        lookups: told of fresh losses, or None without a record.
    """

    def __init__(self, metrics: Metrics, late: Late, lookups: Lookups | None) -> None:
        self._metrics = metrics
        self._late = late
        self._lookups = lookups

    def count(self, judged: Judged) -> None:
        """Count candidates by where their losses come from."""
        rows, forward, ages_s = len(judged.fresh), int(judged.fresh.sum()), judged.ages_s
        self._metrics.samples_seen += rows
        self._metrics.score_rows["forward"] += forward
        self._metrics.score_rows["record"] += len(ages_s)
        self._metrics.score_rows["unknown"] += rows - forward - len(ages_s)
        if len(ages_s):
            self._metrics.observe_record_ages(ages_s)

    def report(self, judged: Judged, chosen: Selection | None) -> None:
        """Send the numbers to the metrics and the record, to arrive when they may."""
        metrics, lookups, losses = self._metrics, self._lookups, judged.scored.losses
        fresh, ids = judged.fresh, judged.ids
        told = None if judged.guessed is None else ~judged.guessed  # a guess is nobody's loss

        def arrive(seen: npt.NDArray[Any], *rest: npt.NDArray[Any]) -> None:
            if lookups is not None and ids is not None and fresh.any():
                lookups.observe(ids[fresh], seen[fresh])
            every = seen if told is None else seen[told]
            if not rest:
                metrics.samples_dropped["nonfinite_loss"] += metrics.loss["seen"].add(every)
                return
            rows, weights, importances, method_weights, method_losses = rest
            known_rows = rows if told is None else rows[told[rows]]
            wanted = importances * method_weights
            agreed = (wanted / np.maximum(wanted.sum(1, keepdims=True), _TINY)).sum(0)
            metrics.observe_selection(
                every, seen[known_rows], weights, method_weights, method_losses, agreed
            )

        if chosen is None:
            self._late.send((losses,), arrive)
            return
        metrics.samples_selected += chosen.indices.shape[0]
        methods = (chosen.importances, chosen.method_weights, chosen.method_losses)
        self._late.send((losses, chosen.indices, chosen.weights, *methods), arrive)
