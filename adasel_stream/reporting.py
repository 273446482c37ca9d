"""What selection tells the metrics and the record, without waiting for the device."""

import logging
import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream.chooser import Chooser
from adasel_stream.emitted import Emitted
from adasel_stream.judged import Judged
from adasel_stream.late import Late
from adasel_stream.lookups import Lookups
from adasel_stream.metrics import Metrics
from adasel_stream.selection import Selection
from adasel_stream.stopping import StopIndicator

__all__ = ["Reporting", "is_judged"]

_log = logging.getLogger(__name__)

_ENOUGH: Final = 1000
_SHORT: Final = 0.8
"""A slice is short once so many rows were seen and less than this share of its rate chosen."""

_TINY: Final = float(np.finfo(np.float32).tiny)


def is_judged(rows: Emitted, losses: Tensor, *, otherwise: bool) -> bool:
    """Say whether rows of the control arm are to show whether selection pays.

    Not where the last layer of all candidates has told it, nor where there were no scores.

    Args:
        rows: of an emitted batch.
        losses: fresh ones, shape (batch_size,).
        otherwise: what to say on an accelerator, where looking would mean to wait.
    """
    proposed = rows.proposed
    if proposed is None:
        return False
    return bool(np.isfinite(proposed.numpy()).any()) if _on_host(proposed, losses) else otherwise


class Reporting:
    """Send the numbers of each selection on their way.

    Args:
        metrics: counters to add to.
        late: carries numbers from the device.
        lookups: told of fresh losses, or None without a record.
        chooser: told whether selection pays.
        stop: told whether there is anything left to learn.
        proxied: whether scored losses are a proxy's and not the model's own: what they say of the
            model is then left to the control arm.
        promised: names of slices and the rates that they are to be chosen at.
    """

    def __init__(
        self,
        metrics: Metrics,
        late: Late,
        lookups: Lookups | None,
        chooser: Chooser,
        stop: StopIndicator,
        *,
        proxied: bool,
        promised: Sequence[tuple[str, float]] = (),
    ) -> None:
        self._metrics = metrics
        self._late = late
        self._lookups = lookups
        self._chooser = chooser
        self._stop = stop
        self._proxied = proxied
        self._promised = promised
        self._short: set[str] = set()

    def count(self, judged: Judged) -> None:
        """Count candidates by where their losses come from."""
        rows, forward, ages_s = len(judged.fresh), int(judged.fresh.sum()), judged.ages_s
        self._metrics.samples_seen += rows
        self._metrics.score_rows["proxy" if self._proxied else "forward"] += forward
        self._metrics.score_rows["record"] += len(ages_s)
        self._metrics.score_rows["unknown"] += rows - forward - len(ages_s)
        if len(ages_s):
            self._metrics.observe_record_ages(ages_s)

    def report(
        self, judged: Judged, chosen: Selection | None, members: Tensor | None = None
    ) -> None:
        """Send the numbers to the metrics and the record, to arrive when they may.

        Args:
            judged: the candidates.
            chosen: what was chosen of them, or None.
            members: who belongs to which slice, shape (S, b), bool, or None without guards.
        """
        if members is not None:
            self._count_guarded(members, chosen)
        metrics, lookups, losses = self._metrics, self._lookups, judged.scored.losses
        fresh, ids = judged.fresh, judged.ids
        told = None if judged.guessed is None else ~judged.guessed  # a guess is nobody's loss

        def arrive(seen: npt.NDArray[Any], *rest: npt.NDArray[Any]) -> None:
            if lookups is not None and ids is not None and fresh.any() and not self._proxied:
                lookups.observe(ids[fresh], seen[fresh])
            every = seen if told is None else seen[told]
            own = fresh.all() and not self._proxied
            if not rest:
                metrics.samples_dropped["nonfinite_loss"] += metrics.loss["seen"].add(every)
                self._hear(None, seen if own else None)
                return
            rows, weights, importances, method_weights, method_losses, *variances = rest
            known_rows = rows if told is None else rows[told[rows]]
            wanted = importances * method_weights
            agreed = (wanted / np.maximum(wanted.sum(1, keepdims=True), _TINY)).sum(0)
            metrics.observe_selection(
                every, seen[known_rows], weights, method_weights, method_losses, agreed
            )
            self._hear(variances[0] if variances and own else None, seen if own else None)

        if chosen is None:
            self._late.send((losses,), arrive)
            return
        metrics.samples_selected += chosen.indices.shape[0]
        methods = (chosen.importances, chosen.method_weights, chosen.method_losses)
        variances = () if chosen.variances is None else (chosen.variances,)
        self._late.send((losses, chosen.indices, chosen.weights, *methods, *variances), arrive)

    def _count_guarded(self, members: Tensor, chosen: Selection | None) -> None:
        """Count candidates and chosen rows of each slice, and chosen rows that look suspicious."""
        seen = members.sum(1)
        selected, suspicious = torch.zeros_like(seen), seen.new_zeros(())
        if chosen is not None and chosen.suspicious is not None:
            selected = members.index_select(1, chosen.indices).sum(1)
            suspicious = chosen.suspicious
        metrics = self._metrics

        def arrive(seen: npt.NDArray[Any], own: npt.NDArray[Any], held: npt.NDArray[Any]) -> None:
            metrics.slice_seen = _added(metrics.slice_seen, seen)
            metrics.slice_selected = _added(metrics.slice_selected, own)
            metrics.suspicious_selected += int(held)
            self._look_at_slices()

        self._late.send((seen, selected, suspicious), arrive)

    def _look_at_slices(self) -> None:
        """Tell once of each slice that gets much less than it was promised."""
        seen, selected = self._metrics.slice_seen, self._metrics.slice_selected
        for number, (name, rate) in enumerate(self._promised):
            if name not in self._short and seen[number] >= _ENOUGH:
                share = selected[number] / seen[number]
                if share < _SHORT * rate:
                    self._short.add(name)
                    _log.warning(
                        "guards: slice %r is to be chosen at %g, and %.2g of its %d rows were: all "
                        "slices together ask for more than is chosen; lower their rates, or raise "
                        "sampling_rate",
                        *(name, rate, share, seen[number]),
                    )

    def hear_losses(self, last: Emitted, losses: Tensor) -> None:
        """Hear from fresh losses of the control arm, shape (batch_size,), how the stream fares.

        Of windows that were scored by the model as a whole `report` has heard it already.
        """
        assert last.heard is not None
        if _on_host(last.heard, losses) and last.heard.numpy().all():
            return
        control, weights, filled = _arm(last, losses)
        news = filled & ~last.heard.to(losses.device, non_blocking=True)
        sums = [
            (news * weights * torch.where(control, losses, 0.0)).sum(),
            (news * weights).sum(),
            (news & ~torch.isfinite(losses)).sum(),
            news.sum(),
        ]

        def arrive(numbers: npt.NDArray[Any]) -> None:
            total, rows, broken, slots = numbers.tolist()
            mean = total / rows if rows else math.nan
            self._told(None, mean, broken / slots if slots else None, trained=True)

        self._late.send((torch.stack([number.float() for number in sums]),), arrive)

    def compare(self, last: Emitted, sizes: Tensor) -> None:
        """Hear from rows of the control arm whether selection pays.

        Where the last layer of all candidates told it, `report` has heard it already.

        Args:
            last: the emitted batch.
            sizes: norms of its rows' gradients or what stands for them, shape (batch_size,).
        """
        assert last.proposed is not None
        control, weights, _ = _arm(last, sizes)
        proposed = last.proposed.to(sizes.device, non_blocking=True)
        even = weights * last.inclusions.to(sizes.device, non_blocking=True)
        judged = control & torch.isfinite(proposed)
        g = torch.where(judged, weights * sizes.square(), 0.0)
        sums = [
            (g * (1 / torch.where(judged, proposed, 1.0) - 1)).sum(),
            (g * (1 / torch.where(judged, even, 1.0) - 1)).sum(),
            judged.sum(),
        ]

        def arrive(numbers: npt.NDArray[Any]) -> None:
            ours, uniform, arm = numbers.tolist()
            if arm:
                self._told((ours, uniform), math.nan, None, trained=True)

        self._late.send((torch.stack([number.float() for number in sums]),), arrive)

    def _hear(self, variances: npt.NDArray[Any] | None, seen: npt.NDArray[Any] | None) -> None:
        """Hear from candidates that were all scored, shape (b,), or were not: None."""
        if seen is None:
            self._told(None, math.nan, None)
            return
        finite = seen[np.isfinite(seen)]
        mean = float(finite.mean()) if finite.size else math.nan
        both = None if variances is None else (float(variances[0]), float(variances[1]))
        self._told(both, mean, 1 - finite.size / seen.size)

    def _told(
        self,
        variances: tuple[float, float] | None,
        mean: float,
        nonfinite: float | None,
        *,
        trained: bool = False,
    ) -> None:
        chooser, metrics = self._chooser, self._metrics
        if chooser.rules is not None:
            before = chooser.watch.reason
            chooser.hear(variances, mean, nonfinite, trained=trained)
            metrics.observe_watch(before, chooser.watch, chooser.gain)
        if not math.isnan(mean):
            self._stop.observe(mean, None if chooser.rules is None else chooser.gain)
            metrics.stop_indicator_ratio = self._stop.value


def _on_host(one: Tensor, other: Tensor) -> bool:
    return one.device.type == other.device.type == "cpu"


def _arm(last: Emitted, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Say which rows are of the control arm and finite, what they weigh, which slots are filled.

    Guards may have moved rows of the arm; their weights undo it. All have shape (batch_size,).
    """
    assert last.proposed is not None
    weights = last.weights.to(values.device, non_blocking=True)
    filled = weights > 0
    proposed = last.proposed.to(values.device, non_blocking=True)
    control = ~torch.isnan(proposed) & torch.isfinite(values) & filled
    return control, torch.where(control, weights, 0.0), filled


def _added(before: list[int], more: npt.NDArray[Any]) -> list[int]:
    return [one + int(other) for one, other in zip(before, more, strict=True)]
