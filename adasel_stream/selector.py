"""From a candidate batch to selected rows that wait, and from their fresh losses to learning."""

import logging
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.chooser import Chooser
from adasel_stream.decoding import Decoder
from adasel_stream.emitted import Emitted
from adasel_stream.guarding import Guarding
from adasel_stream.judged import Judged
from adasel_stream.known import KnownLosses
from adasel_stream.late import Late
from adasel_stream.learning import Learning, remembered
from adasel_stream.lookups import Int64s
from adasel_stream.loss_batch import Bounds, LossBatch
from adasel_stream.metrics import Metrics
from adasel_stream.outgoing import Outgoing
from adasel_stream.paying import Gain
from adasel_stream.precision import full_precision
from adasel_stream.proxy import ProxyWatch
from adasel_stream.repeats import Repeats
from adasel_stream.reporting import Reporting
from adasel_stream.rows import Leaves, bytes_of, joined_rows, row_count
from adasel_stream.selection import Selection
from adasel_stream.stopping import StopIndicator
from adasel_stream.types import Batch, Ids

__all__ = ["Selector"]

_log = logging.getLogger(__name__)

SHOWN = (
    *("method_weight_ratio", "method_loss", "selection_effective_ratio"),
    *("gain_ratio", "fallback_ratio", "stream_loss", "stop_indicator_ratio"),
)
"""What metrics show of the last selection: after a resume it is still the last one."""


class Selector:
    """Score candidates, choose from them, keep the chosen rows, and learn from what came of it.

    Args:
        known: where losses come from.
        chooser: what chooses by them.
        batch_size: rows of an emitted batch, or None for those of the first candidate batch.
        device: where to score and emit, or None for where batches are.
        decoder: decodes chosen rows, or None where candidates come decoded.
        stop: says whether there is anything left to learn.
        guarding: what a choice is held to, or None.
        proxy: watches the score where that is a proxy, or None.
        metrics: counters to add to.

    Raises:
        ValueError: batch_size is less than 1.
        TypeError: batch_size is no whole number.
    """

    def __init__(
        self,
        known: KnownLosses,
        chooser: Chooser,
        *,
        batch_size: int | None,
        device: torch.device | None,
        decoder: Decoder | None,
        stop: StopIndicator,
        guarding: Guarding | None,
        proxy: ProxyWatch | None,
        metrics: Metrics,
    ) -> None:
        self._known = known
        self._chooser = chooser
        self._device = device
        self._decoder = decoder
        self._outgoing = Outgoing(batch_size, device, decoder)
        self._metrics = metrics
        self._spent_s = (0.0, 0.0)
        self._scored = False
        self._window: list[tuple[Batch, Leaves, Int64s | None]] = []
        self._late = Late()
        self._stop = stop
        self._guarding = guarding
        self._proxy = proxy
        self._reporting = Reporting(
            *(metrics, self._late, known.lookups, chooser, stop),
            proxied=proxy is not None,
            promised=() if guarding is None else guarding.guards.promised,
        )
        self._learning = Learning(
            *(chooser, self._reporting, self._late),
            lookups=known.lookups,
            repeats=self._repeats,
            proxy=proxy,
            metrics=metrics,
        )

    @property
    def _repeats(self) -> Repeats | None:
        return None if self._guarding is None else self._guarding.repeats

    @property
    def batch_size(self) -> int | None:
        """Rows of an emitted batch, or None while nobody knows."""
        return self._outgoing.batch_size

    @property
    def full(self) -> bool:
        """Whether as many rows wait as a batch takes, and those that are decoded ahead."""
        return self._outgoing.full

    @property
    def knows_structure(self) -> bool:
        """Whether batches can be built; not after a resume while their types are the user's own."""
        return self._outgoing.knows_structure

    @property
    def waiting(self) -> int:
        """Chosen rows that wait for a full batch."""
        return len(self._outgoing)

    @property
    def gain(self) -> Gain:
        """Gain over uniform sampling."""
        return self._chooser.gain

    def learn_structure(self, batch: Batch) -> None:
        """Remember the structure of candidate batches, none of their rows."""
        self._outgoing.learn_structure(batch)

    def pop(self) -> tuple[Batch, Emitted] | None:
        """Take out the oldest whole batch and what `learn` needs of its rows, or None.

        Raises:
            BatchError, DecodeError: the chosen rows cannot be decoded or put together.
        """
        if self._decoder is None:
            batch = self._outgoing.pop()
        else:
            with self._metrics.phase("decode"):
                batch = self._outgoing.pop()
            self._count_decoded()
        if batch is not None:
            self._learning.emit()
        return batch

    def take(self, batch: Batch) -> tuple[int, int]:
        """Look up a candidate batch and let it wait for the others of its window.

        Returns:
            how many rows it has, and how many bytes its tensors and arrays take.

        Raises:
            BatchError: the batch cannot be used; it is left out.
        """
        leaves = trees.flatten(batch)
        rows = row_count(leaves)
        if rows == 0:
            return 0, 0
        with self._metrics.phase("score"):
            lookups = self._known.lookups
            ids = None if lookups is None else lookups.recognise(batch, rows)
            batch, leaves = self._outgoing.placed(batch, leaves)
            self._metrics.batch_size = self._outgoing.expect(batch, leaves, rows)
        self._window.append((batch, leaves, ids))
        return rows, sum(map(bytes_of, leaves.values()))

    def choose(self) -> None:
        """Find the losses of the window, choose from it and keep what was chosen.

        Raises:
            ScoreError, MethodError: the losses or a method's preferences cannot be used; nothing
                was chosen from the window.
            DecodeError: candidates that are to be scored cannot be decoded.
        """
        window, self._window = self._window, []
        if not window:
            return
        self._weigh_costs()
        with self._metrics.phase("score"):
            batches, leaves, names = zip(*window, strict=True)
            ids = [one for one in names if one is not None]
            known = np.concatenate(ids) if ids else None
            self._known.offer(batches, joined_rows(list(leaves)), known)
        del window, batches, leaves
        self._choose_all(rest=False)

    def finish(self) -> None:
        """Choose from rows that wait for others of their kind: no more will come."""
        if self.knows_structure:
            self._choose_all(rest=True)
        elif self.waiting or self._known.gathering:
            _log.warning(
                "this pass was over when its state was saved, and batches of a type of your own "
                "cannot be built before the next candidates show how: its last rows come at the "
                "beginning of the next pass"
            )

    def learn(self, last: Emitted, losses: Tensor) -> int:
        """Hand fresh losses of an emitted batch, shape (batch_size,), to record and policy.

        Returns:
            for how many batches its gradients will stand, which `listen` then hears; 0 for none.
        """
        return self._learning.learn(last, losses)

    def listen(self, last: Emitted, losses: Tensor, batches: int) -> None:
        """Let the policy learn from gradients once the losses are differentiated."""
        self._learning.listen(last, losses, batches)

    def observe(self, ids: Ids | Tensor, losses: Tensor | npt.NDArray[Any]) -> None:
        """Record losses that were computed elsewhere; see `SelectingLoader.observe`."""
        if self._known.lookups is None:
            raise ValueError("there is no record to observe losses; construct with record=")
        self._known.lookups.take_in(ids, losses)

    def drain(self) -> None:
        """Wait for numbers that are still on their way from the device."""
        self._late.drain()

    def state_dict(self) -> dict[str, Any]:
        """Describe rows that wait, the record, and what the policy carries on."""
        self.drain()
        return {
            **self._outgoing.state_dict(),
            "known": self._known.state_dict(),
            "stop": self._stop.state_dict(),
            "proxy": None if self._proxy is None else self._proxy.state_dict(),
            "repeats": None if self._repeats is None else self._repeats.state_dict(),
            "shown": {name: copy(getattr(self._metrics, name)) for name in SHOWN},
            **self._chooser.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            ValueError: the state is of another batch size.
            RecordError: the state is of another record.
        """
        self.drain()
        outgoing = self._outgoing.restored(state)
        self._known.load_state_dict(
            state["known"], None if self._decoder is not None else self._device
        )
        self._stop.load_state_dict(state["stop"])
        if self._proxy is not None:
            self._proxy.load_state_dict(state["proxy"])
        if self._repeats is not None:
            self._repeats.load_state_dict(state["repeats"])
        self._outgoing = outgoing
        for name in SHOWN:
            setattr(self._metrics, name, copy(state["shown"][name]))
        self._chooser.load_state_dict(state, self._device)

    def _weigh_costs(self) -> None:
        """Hold what the window before took to choose from against all training on its rows."""
        spent = self._metrics.phase_seconds
        selecting_s, training_s = spent["score"] + spent["select"], spent["train"]
        before_s, scored = self._spent_s, self._scored
        self._spent_s, self._scored = (selecting_s, training_s), False
        if scored:  # what was not scored says nothing of what selection costs
            self._chooser.hear_costs(
                selecting_s=selecting_s - before_s[0], training_s=training_s - before_s[1]
            )

    def _choose_all(self, *, rest: bool) -> None:
        """Choose from all candidates whose losses are there."""
        while True:
            with self._metrics.phase("score"):
                judged = self._judged(rest)
            self._count_decoded()
            if judged is None:
                return
            failure = self._known.failure
            if failure is not None:
                self._metrics.samples_dropped["score_error"] += failure.rows
            device = judged.scored.losses.device
            with self._metrics.phase("select"), full_precision(device):
                self._choose(judged)
            if failure is not None:
                raise failure.error

    def _judged(self, rest: bool) -> Judged | None:
        try:
            scoring = self._chooser.wants_losses
            self._scored = self._scored or scoring
            return self._known.judge(self._outgoing.template, rest=rest, scoring=scoring)
        except Exception:  # whatever a score raises: its rows are gone with it
            self._metrics.samples_dropped["score_error"] += self._known.in_hand
            self._count_decoded()
            raise

    def _choose(self, judged: Judged) -> None:
        self._reporting.count(judged)
        bounds, members = self._held_to(judged)
        chosen = self._chooser.choose(
            judged.scored, **judged.company, known=judged.known, bounds=bounds
        )
        if chosen is not None:
            if not self._outgoing.takes_whole(chosen.indices.shape[0]):
                chosen = self._chooser.dealt(chosen)
            self._keep(judged, chosen)
        self._reporting.report(judged, chosen, members)
        self._late.poll()
        self._metrics.telemetry_lag_parcels = len(self._late)
        self._chooser.require_finite()

    def _held_to(
        self, judged: Judged
    ) -> tuple[Callable[[LossBatch], Bounds] | None, Tensor | None]:
        """Say what a choice is held to, and who belongs to which slice, shape (S, b)."""
        if self._guarding is None:
            return None, None
        batch = trees.rebuild(self._outgoing.template, judged.leaves)
        rows, device = len(judged.fresh), judged.scored.losses.device
        return self._guarding.held_to(batch, judged.ids, rows, device)

    def _keep(self, judged: Judged, chosen: Selection) -> None:
        """Copy the chosen rows, with what learning will need of them."""
        device, leaves = chosen.indices.device, judged.leaves
        for name, column in (("ids", judged.ids), ("recorded", judged.recorded)):
            if column is not None:
                tensor = torch.from_numpy(column).to(device, non_blocking=True)
                leaves = {**leaves, name: tensor}
        proxied = self._proxy is not None
        kept = remembered(judged, chosen, proxied=proxied, norms=self._chooser.wants_norms)
        # on a CPU no more rows were asked for than may be chosen
        void = None if chosen.valid is None or device.type == "cpu" else ~chosen.valid
        self._outgoing.push(leaves, chosen.indices, kept, void, judged.decoded)

    def _count_decoded(self) -> None:
        if self._decoder is not None:
            self._metrics.samples_dropped["decode_error"] = self._metrics.decode_rows["failed"]
