"""From a candidate batch to selected rows that wait, and from their fresh losses to learning."""

from collections.abc import Mapping
from copy import copy
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.buffer import Buffer
from adasel_stream.chooser import Chooser
from adasel_stream.emitted import Emitted
from adasel_stream.known import KnownLosses, Losses
from adasel_stream.late import Late
from adasel_stream.metrics import Metrics
from adasel_stream.rows import Leaves, place, row_count
from adasel_stream.types import Batch, Feedback, Ids, Selection

__all__ = ["Selector"]

_TINY = float(np.finfo(np.float32).tiny)

SHOWN = ("method_weight_ratio", "method_loss", "selection_effective_ratio")
"""What metrics show of the last selection: after a resume it is still the last one."""


class Selector:
    """Score candidates, choose from them, keep the chosen rows, and learn from what came of it.

    Args:
        known: where losses come from.
        chooser: what chooses by them.
        batch_size: rows of an emitted batch, or None for those of the first candidate batch.
        device: where to score and emit, or None for where batches are.
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
        device: torch.device | str | None,
        metrics: Metrics,
    ) -> None:
        self._known = known
        self._chooser = chooser
        self._buffer = None if batch_size is None else Buffer(batch_size)
        self._device = None if device is None else _usable(device)
        self._metrics = metrics
        self._template: Batch = None
        self._late = Late()

    @property
    def full(self) -> bool:
        """Whether a whole batch waits."""
        return self._buffer is not None and len(self._buffer) >= self._buffer.batch_size

    @property
    def knows_structure(self) -> bool:
        """Whether batches can be built; not after a resume while their types are the user's own."""
        return self._template is not None

    def learn_structure(self, batch: Batch) -> None:
        """Remember the structure of candidate batches, none of their rows."""
        self._template = trees.emptied(*self._placed(batch, trees.flatten(batch)))

    def pop(self) -> tuple[Batch, Emitted]:
        """Take out the oldest whole batch, and what `learn` needs of its rows."""
        assert self._buffer is not None
        leaves = self._buffer.pop()
        assert leaves is not None, "ask `full` first"
        taken = {name: leaves.pop(name) for name in Emitted._fields if name in leaves}
        return trees.rebuild(self._template, leaves), Emitted(**cast("dict[str, Any]", taken))

    def offer(self, batch: Batch) -> None:
        """Score one candidate batch, choose from it and keep what was chosen.

        Raises:
            BatchError, ScoreError, MethodError: the batch, its losses or a method's preferences
                cannot be used; nothing was chosen from it.
        """
        leaves = trees.flatten(batch)
        rows = row_count(leaves)
        if rows == 0:
            return
        ids = self._known.ids_of(batch, rows)
        with self._metrics.phase("score"):
            batch, leaves = self._placed(batch, leaves)
            buffer = self._expect(batch, leaves, rows)
            known = self._known.losses_of(batch, leaves, rows, ids)
        with self._metrics.phase("select"):
            self._count(known)
            chosen = self._chooser.choose(known.scored)
            if chosen is not None:
                _keep(buffer, leaves, chosen, ids)
            self._report(known, chosen, ids)
            self._late.poll()
            self._metrics.telemetry_lag_parcels = len(self._late)

    def learn(self, last: Emitted, losses: Tensor) -> None:
        """Hand fresh losses of an emitted batch, shape (batch_size,), to record and policy."""
        losses = losses.detach().float()
        if last.ids is not None:
            self._remember(last.weights, losses, last.ids)
        if not self._chooser.learns:
            return
        device = last.weights.device
        if losses.device == device:
            self._update(last, losses)
            return

        def arrive(late: npt.NDArray[Any]) -> None:  # chosen on one device, trained on another
            self._update(last, torch.from_numpy(late).to(device, non_blocking=True))

        self._late.send((losses,), arrive)

    def observe(self, ids: Ids | Tensor, losses: Tensor | npt.NDArray[Any]) -> None:
        """Record losses that were computed elsewhere; see `SelectingLoader.observe`."""
        self._known.take_in(ids, losses)

    def drain(self) -> None:
        """Wait for numbers that are still on their way from the device."""
        self._late.drain()

    def state_dict(self) -> dict[str, Any]:
        """Describe rows that wait, the record, and what the policy carries on."""
        self.drain()
        return {
            "buffer": None if self._buffer is None else self._buffer.state_dict(),
            "structure": trees.describe(self._template) if self.full else None,
            "known": self._known.state_dict(),
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
        buffer = self._buffer
        if state["buffer"] is not None:
            buffer = Buffer(state["buffer"]["batch_size"] if buffer is None else buffer.batch_size)
            buffer.load_state_dict(state["buffer"], self._device)
        self._known.load_state_dict(state["known"])
        self._buffer = buffer
        structure = state["structure"]
        self._template = None if structure is None else trees.template_of(structure)
        for name in SHOWN:
            setattr(self._metrics, name, copy(state["shown"][name]))
        self._chooser.load_state_dict(state, self._device)

    def _placed(self, batch: Batch, leaves: Leaves) -> tuple[Batch, Leaves]:
        if self._device is None:
            return batch, leaves
        leaves = place(leaves, self._device)
        return trees.rebuild(batch, leaves), leaves

    def _expect(self, batch: Batch, leaves: Leaves, rows: int) -> Buffer:
        """Learn from the first batch how all are made, and refuse another make."""
        if self._buffer is None:
            self._buffer = Buffer(rows)
        self._metrics.batch_size = self._buffer.batch_size
        self._buffer.check(leaves)
        if self._template is None:
            self._template = trees.emptied(batch, leaves)
        return self._buffer

    def _count(self, known: Losses) -> None:
        rows, forward, recorded = len(known.fresh), int(known.fresh.sum()), len(known.ages_s)
        self._metrics.samples_seen += rows
        self._metrics.score_rows["forward"] += forward
        self._metrics.score_rows["record"] += recorded
        self._metrics.score_rows["unknown"] += rows - forward - recorded
        if recorded:
            self._metrics.observe_record_ages(known.ages_s)

    def _report(
        self, known: Losses, chosen: Selection | None, ids: npt.NDArray[np.int64] | None
    ) -> None:
        """Send the numbers to the metrics and the record, to arrive when they may."""
        metrics, losses, fresh = self._metrics, known.scored.losses, known.fresh
        told = None if known.guessed is None else ~known.guessed  # a guess is nobody's loss

        def arrive(seen: npt.NDArray[Any], *rest: npt.NDArray[Any]) -> None:
            if ids is not None and fresh.any():
                self._known.observe(ids[fresh], seen[fresh])
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

    def _remember(self, weights: Tensor, losses: Tensor, ids: Tensor) -> None:
        def arrive(late: npt.NDArray[Any], w: npt.NDArray[Any], keys: npt.NDArray[Any]) -> None:
            filled = w > 0
            self._known.observe(keys[filled], late[filled])

        self._late.send((losses, weights, ids), arrive)

    def _update(self, last: Emitted, losses: Tensor) -> None:
        valid = torch.isfinite(losses) & (last.weights > 0)
        self._chooser.learn(
            Feedback(losses, last.importances, last.probabilities, last.inclusions, valid)
        )
        self._metrics.policy_updates += 1


def _keep(
    buffer: Buffer, leaves: Leaves, chosen: Selection, ids: npt.NDArray[np.int64] | None
) -> None:
    """Copy the chosen rows to the buffer, with what `learn` will need of them."""
    device = chosen.indices.device
    if ids is not None:
        leaves = {**leaves, "ids": torch.from_numpy(ids).to(device, non_blocking=True)}
    remembered: Leaves = {
        "weights": chosen.weights,
        "probabilities": chosen.probabilities,
        "inclusions": chosen.inclusions,
        "importances": chosen.importances,
    }
    # on a CPU no more rows were asked for than may be chosen
    void = None if chosen.valid is None or device.type == "cpu" else ~chosen.valid
    buffer.push(leaves, chosen.indices, remembered, void)


def _usable(device: torch.device | str) -> torch.device:
    """Name a device, and make sure that this machine has it."""
    try:
        named = torch.device(device)
        torch.empty(0, device=named)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here; name one that torch has, such as 'cpu' or "
            "'cuda', or None to leave batches where they are"
        ) from error
    return named
