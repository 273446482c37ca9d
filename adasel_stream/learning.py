"""What is remembered of chosen rows, and what their fresh losses teach after training on them."""

import logging
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream.backward import watch_norms
from adasel_stream.chooser import Chooser
from adasel_stream.emitted import Emitted
from adasel_stream.judged import Judged
from adasel_stream.late import Late
from adasel_stream.lookups import Lookups
from adasel_stream.metrics import Metrics
from adasel_stream.proxy import ProxyWatch
from adasel_stream.repeats import Repeats
from adasel_stream.reporting import Reporting, is_judged
from adasel_stream.rows import Leaves
from adasel_stream.selection import Feedback, Selection

__all__ = ["Learning", "remembered"]

_log = logging.getLogger(__name__)


def remembered(judged: Judged, chosen: Selection, *, proxied: bool, norms: bool) -> Leaves:
    """Give what `Learning` will need of the chosen rows, by the names of `Emitted`, k rows each.

    Args:
        judged: the candidates.
        chosen: what was chosen of them.
        proxied: whether scored losses are a proxy's and not the model's own.
        norms: whether it is learnt how large gradients are at each loss.
    """
    kept: Leaves = {
        "weights": chosen.weights,
        "probabilities": chosen.probabilities,
        "inclusions": chosen.inclusions,
        "importances": chosen.importances,
    }
    if norms:
        kept["chosen_by"] = judged.told.index_select(0, chosen.indices)
    fresh = bool(judged.fresh.all())
    if proxied:  # who was not asked has said nothing
        said = judged.scored.losses.index_select(0, chosen.indices)
        kept["proxied"] = said if fresh else torch.full_like(said, torch.nan)
    if chosen.proposed is not None:
        own = fresh and not proxied
        unknown = torch.full_like(chosen.proposed, torch.nan)
        proposed = chosen.proposed
        if own and judged.scored.last_layer is not None:
            proposed = unknown  # the last layer of all candidates has told already
        elif not judged.known:  # the arm is all rows, and no scores proposed anything
            proposed = torch.full_like(unknown, torch.inf)
        kept["proposed"] = proposed
        kept["heard"] = torch.full_like(unknown, own, dtype=torch.bool)
    return kept


class Learning:
    """Hand fresh losses of emitted batches to everyone who learns from them.

    Args:
        chooser: moves method weights by them.
        reporting: hears from the control arm whether selection pays.
        late: carries them from the device.
        lookups: records them, or None without a record.
        repeats: counts how often instances were chosen, or None.
        proxy: holds them against what a proxy had given, or None.
        metrics: counters to add to.
    """

    def __init__(
        self,
        chooser: Chooser,
        reporting: Reporting,
        late: Late,
        *,
        lookups: Lookups | None,
        repeats: Repeats | None,
        proxy: ProxyWatch | None,
        metrics: Metrics,
    ) -> None:
        self._chooser = chooser
        self._reporting = reporting
        self._late = late
        self._lookups = lookups
        self._repeats = repeats
        self._proxy = proxy
        self._metrics = metrics
        self._differentiates = False
        self._told = False

    def learn(self, last: Emitted, losses: Tensor) -> int:
        """Take in fresh losses of an emitted batch, shape (batch_size,).

        Returns:
            for how many batches its gradients will stand, which `listen` then hears; 0 for none.
        """
        has_graph, losses = losses.grad_fn is not None, losses.detach().float()
        if self._lookups is not None and last.ids is not None and last.recorded is not None:
            self._remember(self._lookups, last, last.ids, last.recorded, losses)
        if last.heard is not None:
            self._reporting.hear_losses(last, losses)
        if self._proxy is not None and last.proxied is not None:
            self._watch(self._proxy, last.proxied, last, losses)
        judged = self._is_judged(last, losses)
        if not self._chooser.wants_norms:
            self._take_in(last, losses, None, batches=1)
        elif self._chooser.learns or judged:
            batches = self._chooser.count_trained(judged=judged)
            if batches and not has_graph and not self._differentiates:
                self._see(seen=True)
                why = "loader.mean is given losses without their graph"
                self._go_by_losses(last, losses, batches, why)
            elif batches and self._chooser.unseen and self._chooser.rules is None:
                self._go_by_losses(last, losses, batches, "no gradient of trained rows can be seen")
            return batches
        return 0

    def emit(self) -> None:
        """Take in that a batch was given to the trainer."""
        before = self._chooser.watch.reason
        self._chooser.emit()
        self._show(before)

    def listen(self, last: Emitted, losses: Tensor, batches: int) -> None:
        """Learn from gradients once the losses, shape (batch_size,), are differentiated."""
        self._differentiates = True
        fresh = losses.detach().float()

        def differentiated(norms: Tensor | None) -> None:
            self._see(seen=norms is not None)
            if norms is None:
                return
            if norms.device == fresh.device or fresh.device.type != "cpu":
                there = norms.to(fresh.device, non_blocking=True)
                self._take_in(last, fresh, there, batches=batches)
            else:  # the last layer is on an accelerator, and losses are not
                self._late.send((norms,), arrive)

        def arrive(late: npt.NDArray[Any]) -> None:
            self._take_in(last, fresh, torch.from_numpy(late), batches=batches)

        if not watch_norms(losses, differentiated):
            self._see(seen=False)

    def _go_by_losses(self, last: Emitted, losses: Tensor, batches: int, why: str) -> None:
        """Let losses stand for gradients, and say once why."""
        if not self._told:
            self._told = True
            _log.warning(
                "%s: losses stand for gradients, and loader.gain may promise too much", why
            )
        self._take_in(last, losses, None, batches=batches)

    def _is_judged(self, last: Emitted, losses: Tensor) -> bool:
        return is_judged(last, losses, otherwise=self._chooser.learns)

    def _see(self, *, seen: bool) -> None:
        before = self._chooser.watch.reason
        self._chooser.see(seen=seen)
        self._show(before)

    def _show(self, before: str) -> None:
        """Let the metrics see a change of mind."""
        if self._chooser.watch.reason != before:
            self._metrics.observe_watch(before, self._chooser.watch, self._chooser.gain)

    def _take_in(
        self, last: Emitted, losses: Tensor, norms: Tensor | None, *, batches: int
    ) -> None:
        """Judge selection, and move it, by gradient norms, or by the losses where nobody asks.

        Args:
            last: the emitted batch.
            losses: fresh ones, shape (batch_size,).
            norms: of their gradients, shape (batch_size,), or None.
            batches: how many emitted batches this one stands for.
        """
        if self._is_judged(last, losses):
            self._reporting.compare(last, losses if norms is None else norms)
        if not self._chooser.learns:
            return
        device = last.weights.device
        sizes = () if norms is None else (norms,)
        if losses.device == device:
            self._update(last, batches, losses, *sizes)
            return

        def arrive(*late: npt.NDArray[Any]) -> None:  # chosen on one device, trained on another
            there = [torch.from_numpy(one).to(device, non_blocking=True) for one in late]
            self._update(last, batches, *there)

        self._late.send((losses, *sizes), arrive)

    def _remember(
        self, lookups: Lookups, last: Emitted, ids: Tensor, recorded: Tensor, losses: Tensor
    ) -> None:
        """Record fresh losses, and compare them with what the record had held."""

        def arrive(*late: npt.NDArray[Any]) -> None:
            weights, fresh, ids, recorded = late
            filled = weights > 0
            lookups.observe(ids[filled], fresh[filled])
            if self._repeats is not None:
                self._repeats.add(ids[filled])
            lookups.compare(recorded[filled], fresh[filled])

        self._late.send((last.weights, losses, ids, recorded), arrive)

    def _watch(self, proxy: ProxyWatch, proxied: Tensor, last: Emitted, losses: Tensor) -> None:
        """Compare what the proxy had given with fresh losses."""
        metrics = self._metrics

        def arrive(*late: npt.NDArray[Any]) -> None:
            proxy.learn(*late)
            metrics.observe_proxy(proxy.correlation, alert=proxy.alert)

        self._late.send((proxied, losses, last.weights), arrive)

    def _update(
        self, last: Emitted, batches: int, losses: Tensor, norms: Tensor | None = None
    ) -> None:
        valid = torch.isfinite(losses) & (last.weights > 0)
        if norms is not None:
            valid = valid & torch.isfinite(norms)
        chances = (last.importances, last.probabilities, last.inclusions)
        self._chooser.learn(Feedback(losses, *chances, valid, last.chosen_by, norms, batches))
        self._metrics.policy_updates += 1
