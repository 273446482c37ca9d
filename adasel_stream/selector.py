"""From a candidate batch to selected rows that wait, and from their fresh losses to learning."""

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.buffer import Buffer
from adasel_stream.chooser import Chooser
from adasel_stream.decoded import DecodedRows
from adasel_stream.decoding import Decoder
from adasel_stream.emitted import Emitted
from adasel_stream.guarding import Guarding
from adasel_stream.known import Judged, KnownLosses
from adasel_stream.late import Late
from adasel_stream.lookups import Int64s
from adasel_stream.metrics import Metrics
from adasel_stream.paying import Gain
from adasel_stream.proxy import ProxyWatch
from adasel_stream.repeats import Repeats
from adasel_stream.reporting import Reporting
from adasel_stream.rows import Leaves, joined_rows, place, row_count
from adasel_stream.stopping import StopIndicator
from adasel_stream.types import Batch, Bounds, Feedback, Ids, LossBatch, Selection

__all__ = ["Selector"]

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
        self._batch_size = batch_size
        self._rows = self._empty_rows(batch_size)
        self._metrics = metrics
        self._template: Batch = None
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

    @property
    def _repeats(self) -> Repeats | None:
        return None if self._guarding is None else self._guarding.repeats

    @property
    def batch_size(self) -> int | None:
        """Rows of an emitted batch, or None while nobody knows."""
        return self._batch_size if self._rows is None else self._rows.batch_size

    @property
    def full(self) -> bool:
        """Whether as many rows wait as a batch takes, and those that are decoded ahead."""
        return self._rows is not None and self._rows.full

    @property
    def knows_structure(self) -> bool:
        """Whether batches can be built; not after a resume while their types are the user's own."""
        return self._template is not None

    @property
    def stuck(self) -> bool:
        """Whether rows wait that cannot be emitted, as nobody knows the structure of batches."""
        return not self.knows_structure and (bool(self._rows) or self._known.gathering)

    @property
    def gain(self) -> Gain:
        """Gain over uniform sampling."""
        return self._chooser.gain

    def learn_structure(self, batch: Batch) -> None:
        """Remember the structure of candidate batches, none of their rows."""
        leaves = trees.flatten(batch)
        if self._decoder is None:
            batch, leaves = self._placed(batch, leaves)
        self._set_structure(trees.emptied(batch, leaves))

    def pop(self) -> tuple[Batch, Emitted] | None:
        """Take out the oldest whole batch and what `learn` needs of its rows, or None.

        Raises:
            BatchError, DecodeError: the chosen rows cannot be decoded or put together.
        """
        if not self.knows_structure:
            return None
        if isinstance(self._rows, DecodedRows):
            with self._metrics.phase("decode"):
                batch = self._rows.pop()
            self._count_decoded()
            return batch
        leaves = None if self._rows is None else self._rows.pop()
        if leaves is None:
            return None
        taken = {name: leaves.pop(name) for name in Emitted._fields if name in leaves}
        return trees.rebuild(self._template, leaves), Emitted(**cast("dict[str, Any]", taken))

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
            if self._decoder is None:  # else what was decoded is placed
                batch, leaves = self._placed(batch, leaves)
            self._expect(batch, leaves, rows)
        self._window.append((batch, leaves, ids))
        return rows, sum(getattr(leaf, "nbytes", 0) for leaf in leaves.values())

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

    def learn(self, last: Emitted, losses: Tensor) -> None:
        """Hand fresh losses of an emitted batch, shape (batch_size,), to record and policy."""
        losses = losses.detach().float()
        if last.ids is not None:
            self._remember(last, losses)
        if last.proposed is not None:
            self._reporting.compare(last, losses)
        if last.proxied is not None:
            self._watch_proxy(last, losses)
        if not self._chooser.learns:
            return
        device = last.weights.device
        if losses.device == device:
            self._update(last, losses)
            return

        def arrive(late: npt.NDArray[Any]) -> None:  # chosen on one device, trained on another
            self._update(last, torch.from_numpy(late).to(device, non_blocking=True))

        self._late.send((losses,), arrive)

    def weigh_costs(self) -> None:
        """Hold what a step took in scoring and selection against what it took in training."""
        spent = self._metrics.phase_seconds
        selecting_s, training_s = spent["score"] + spent["select"], spent["train"]
        before_s, scored = self._spent_s, self._scored
        self._spent_s, self._scored = (selecting_s, training_s), False
        if scored:  # what was not scored says nothing of what selection costs
            self._chooser.hear_costs(
                selecting_s=selecting_s - before_s[0], training_s=training_s - before_s[1]
            )

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
            "rows": None if self._rows is None else self._rows.state_dict(),
            "structure": None if self._template is None else trees.describe(self._template),
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
        rows = self._empty_rows(self._batch_size)  # what waits here is not of the state
        if state["rows"] is not None:
            if rows is None:
                rows = self._rows_of(state["rows"]["batch_size"])
            if isinstance(rows, DecodedRows):
                rows.load_state_dict(state["rows"])
            else:
                rows.load_state_dict(state["rows"], self._device)
        self._known.load_state_dict(
            state["known"], None if self._decoder is not None else self._device
        )
        self._stop.load_state_dict(state["stop"])
        if self._proxy is not None:
            self._proxy.load_state_dict(state["proxy"])
        if self._repeats is not None:
            self._repeats.load_state_dict(state["repeats"])
        self._rows, self._template = rows, None
        if state["structure"] is not None:
            self._set_structure(trees.template_of(state["structure"]))
        for name in SHOWN:
            setattr(self._metrics, name, copy(state["shown"][name]))
        self._chooser.load_state_dict(state, self._device)

    def _placed(self, batch: Batch, leaves: Leaves) -> tuple[Batch, Leaves]:
        if self._device is None:
            return batch, leaves
        leaves = place(leaves, self._device)
        return trees.rebuild(batch, leaves), leaves

    def _empty_rows(self, batch_size: int | None) -> Buffer | DecodedRows | None:
        return None if batch_size is None else self._rows_of(batch_size)

    def _rows_of(self, batch_size: int) -> Buffer | DecodedRows:
        if self._decoder is None:
            return Buffer(batch_size)
        return DecodedRows(batch_size, self._decoder)

    def _set_structure(self, template: Batch) -> None:
        self._template = template
        if isinstance(self._rows, DecodedRows):
            self._rows.begin(template)

    def _expect(self, batch: Batch, leaves: Leaves, rows: int) -> None:
        """Learn from the first batch how all are made, and refuse another make."""
        first = self._rows is None or self._template is None
        if self._rows is None:
            self._rows = self._rows_of(rows)
        self._metrics.batch_size = self._rows.batch_size
        self._rows.check(leaves)
        if first:
            self._set_structure(trees.emptied(batch, leaves))

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
            with self._metrics.phase("select"):
                self._choose(judged)
            if failure is not None:
                raise failure.error

    def _judged(self, rest: bool) -> Judged | None:
        try:
            scoring = self._chooser.wants_losses
            self._scored = self._scored or scoring
            return self._known.judge(self._template, rest=rest, scoring=scoring)
        except Exception:  # whatever a score raises: its rows are gone with it
            self._metrics.samples_dropped["score_error"] += self._known.in_hand
            self._count_decoded()
            raise

    def _choose(self, judged: Judged) -> None:
        self._reporting.count(judged)
        bounds, members = self._bounds(judged)
        chosen = self._chooser.choose(
            judged.scored, **judged.company, known=judged.known, bounds=bounds
        )
        if chosen is not None:
            self._keep(judged, chosen)
        self._reporting.report(judged, chosen, members)
        self._late.poll()
        self._metrics.telemetry_lag_parcels = len(self._late)
        self._chooser.require_finite()

    def _bounds(self, judged: Judged) -> tuple[Callable[[LossBatch], Bounds] | None, Tensor | None]:
        """Say what a choice is held to, and who belongs to which slice, shape (S, b)."""
        guarding = self._guarding
        if guarding is None:
            return None, None
        device, rows = judged.scored.losses.device, len(judged.fresh)
        batch = trees.rebuild(self._template, judged.leaves)
        members = guarding.members(batch, rows, device)
        repeated = guarding.repeated(judged.ids, device)
        return partial(guarding.bounds, members=members, repeated=repeated), members

    def _keep(self, judged: Judged, chosen: Selection) -> None:
        """Copy the chosen rows, with what `learn` will need of them."""
        device, leaves = chosen.indices.device, judged.leaves
        for name, column in (("ids", judged.ids), ("recorded", judged.recorded)):
            if column is not None:
                tensor = torch.from_numpy(column).to(device, non_blocking=True)
                leaves = {**leaves, name: tensor}
        remembered: Leaves = {
            "weights": chosen.weights,
            "probabilities": chosen.probabilities,
            "inclusions": chosen.inclusions,
            "importances": chosen.importances,
        }
        fresh = bool(judged.fresh.all())
        if self._proxy is not None:  # who was not asked has said nothing
            said = judged.scored.losses.index_select(0, chosen.indices)
            remembered["proxied"] = said if fresh else torch.full_like(said, torch.nan)
        if chosen.proposed is not None:
            # the last layer of all candidates has told already
            told = fresh and self._proxy is None and judged.scored.last_layer is not None
            unknown = torch.full_like(chosen.proposed, torch.nan)
            proposed = chosen.proposed
            if not judged.known:  # the arm is all rows, and no scores proposed anything
                proposed = torch.full_like(unknown, torch.inf)
            remembered["proposed"] = unknown if told else proposed
            heard = fresh and self._proxy is None
            remembered["heard"] = torch.full_like(unknown, heard, dtype=torch.bool)
        # on a CPU no more rows were asked for than may be chosen
        void = None if chosen.valid is None or device.type == "cpu" else ~chosen.valid
        if isinstance(self._rows, DecodedRows):
            self._rows.push(leaves, chosen.indices, remembered, void, judged.decoded)
            return
        assert self._rows is not None, "the first batch made it"
        self._rows.push(leaves, chosen.indices, remembered, void)

    def _count_decoded(self) -> None:
        if self._decoder is not None:
            self._metrics.samples_dropped["decode_error"] = self._metrics.decode_rows["failed"]

    def _remember(self, last: Emitted, losses: Tensor) -> None:
        """Record fresh losses, and compare them with what the record had held."""
        lookups = self._known.lookups
        assert lookups is not None
        assert last.ids is not None
        assert last.recorded is not None, "what has ids was looked up"

        def arrive(*late: npt.NDArray[Any]) -> None:
            weights, fresh, ids, recorded = late
            filled = weights > 0
            lookups.observe(ids[filled], fresh[filled])
            if self._repeats is not None:
                self._repeats.add(ids[filled])
            lookups.compare(recorded[filled], fresh[filled])

        self._late.send((last.weights, losses, last.ids, last.recorded), arrive)

    def _watch_proxy(self, last: Emitted, losses: Tensor) -> None:
        """Compare what the proxy had given with fresh losses."""
        proxy, metrics, proxied = self._proxy, self._metrics, last.proxied
        assert proxy is not None
        assert proxied is not None

        def arrive(*late: npt.NDArray[Any]) -> None:
            proxy.learn(*late)
            metrics.observe_proxy(proxy.correlation, alert=proxy.alert)

        self._late.send((proxied, losses, last.weights), arrive)

    def _update(self, last: Emitted, losses: Tensor) -> None:
        valid = torch.isfinite(losses) & (last.weights > 0)
        self._chooser.learn(
            Feedback(losses, last.importances, last.probabilities, last.inclusions, valid)
        )
        self._metrics.policy_updates += 1
