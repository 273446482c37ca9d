"""From a candidate batch to selected rows that wait: the part of the loader that decides."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.adaselection import Policy, step
from adasel_stream.buffer import Buffer
from adasel_stream.known import KnownLosses, find_ids
from adasel_stream.late import Late
from adasel_stream.metrics import Metrics
from adasel_stream.quota import Quota
from adasel_stream.scorers import gradient_norms
from adasel_stream.types import Batch, Feedback, LossBatch, Method, Scored, Selection, State

__all__ = ["Selector"]

META = ("weights", "probabilities", "inclusions", "importances", "ids")
"""Columns that travel with selected rows, beside the user's leaves (whose paths begin with a
bracket or a dot)."""


class Selector:
    """Score candidates, choose from them, keep the chosen rows, and learn from what came of it.

    Args:
        known: where losses come from.
        methods: candidate methods by name.
        policy: the rule of selection.
        sampling_rate: share of candidates to choose, in (0, 1].
        batch_size: rows of an emitted batch, or None for those of the first candidate batch.
        ids: where a batch holds its ids, or None.
        device: where to score and emit, or None for where batches are.
        seed: seeds the draws.
        metrics: counters to add to.
    """

    def __init__(
        self,
        known: KnownLosses,
        methods: Mapping[str, Method],
        policy: Policy,
        *,
        sampling_rate: float,
        batch_size: int | None,
        ids: Any,
        device: torch.device | None,
        seed: int,
        metrics: Metrics,
    ) -> None:
        self._known = known
        self._methods = methods
        self._policy = policy
        self._quota = Quota(sampling_rate, whole_batches=policy.whole_batches)
        self._buffer = None if batch_size is None else Buffer(batch_size)
        self._find_ids = ids
        self._device = device
        self._seed = seed
        self._metrics = metrics
        self._state: State | None = None
        self._generator: torch.Generator | None = None
        self._late = Late()

    @property
    def full(self) -> bool:
        """Whether a whole batch waits."""
        return self._buffer is not None and len(self._buffer) >= self._buffer.batch_size

    def pop(self) -> tuple[trees.Leaves, trees.Leaves]:
        """Take out the oldest whole batch: its leaves, and what `learn` needs of its rows."""
        assert self._buffer is not None
        leaves = self._buffer.pop()
        assert leaves is not None, "ask `full` first"
        meta = {name: leaves.pop(name) for name in META if name in leaves}
        return leaves, meta

    def offer(self, batch: Batch) -> None:
        """Score one candidate batch, choose from it and keep what was chosen.

        Raises:
            BatchError, ScoreError, MethodError: the batch, its losses or a method's preferences
                cannot be used; nothing was chosen from it.
        """
        leaves = trees.flatten(batch)
        rows = trees.row_count(leaves)
        if rows == 0:
            return
        ids = None if self._find_ids is None else find_ids(batch, self._find_ids, rows)
        with self._metrics.phase("score"):
            if self._device is not None:
                leaves = trees.place(leaves, self._device)
                batch = trees.rebuild(batch, leaves)
            scored, fresh = self._known.of(batch, leaves, rows, ids)
        with self._metrics.phase("select"):
            self._metrics.samples_seen += rows
            scored_rows = int(fresh.sum())
            self._metrics.score_rows["forward"] += scored_rows
            self._metrics.score_rows["record"] += rows - scored_rows
            self._choose(leaves, scored, rows, ids, fresh)
            self._late.poll()

    def _choose(
        self,
        leaves: trees.Leaves,
        scored: Scored,
        rows: int,
        ids: npt.NDArray[np.int64] | None,
        fresh: npt.NDArray[np.bool_],
    ) -> None:
        losses = scored.losses
        self._start_with(losses, rows)
        assert self._state is not None
        assert self._buffer is not None
        finite = _count_finite(losses)  # known only where losses are on the host already
        k = self._quota.take(rows if finite is None else finite)
        chosen = None
        if k > 0:
            noise = None
            if self._policy.noisy:
                noise = torch.empty_like(losses).normal_(generator=self._generator)
            batch = LossBatch.of(
                losses,
                noise=noise,
                gradient_norms=gradient_norms(scored),
                all_finite=finite == rows,
            )
            self._state, chosen = step(
                self._state, batch, k, self._methods, self._policy, self._generator
            )
            self._keep(leaves, chosen, ids)
            self._metrics.samples_selected += k
        self._report(losses, chosen, ids, fresh)

    def _start_with(self, losses: Tensor, rows: int) -> None:
        if self._buffer is None:
            self._buffer = Buffer(rows)
        self._metrics.batch_size = self._buffer.batch_size
        if self._generator is None:
            self._generator = self._new_generator(losses.device)
        if self._state is None:
            self._state = State.initial(
                len(self._methods), dtype=losses.dtype, device=losses.device
            )

    def _keep(
        self, leaves: trees.Leaves, chosen: Selection, ids: npt.NDArray[np.int64] | None
    ) -> None:
        """Copy the chosen rows to the buffer, with what `mean` will need of them."""
        assert self._buffer is not None
        meta: trees.Leaves = {
            "weights": chosen.weights,
            "probabilities": chosen.probabilities,
            "inclusions": chosen.inclusions,
            "importances": chosen.importances,
        }
        if ids is not None:
            meta["ids"] = torch.from_numpy(ids).to(chosen.indices.device)[chosen.indices]
        void = None
        if chosen.valid is not None and chosen.indices.device.type != "cpu":
            void = ~chosen.valid
            meta["weights"] = torch.where(chosen.valid, chosen.weights, 0.0)
        self._buffer.push(leaves, chosen.indices, meta, void)

    def _report(
        self,
        losses: Tensor,
        chosen: Selection | None,
        ids: npt.NDArray[np.int64] | None,
        fresh: npt.NDArray[np.bool_],
    ) -> None:
        """Send the numbers to the metrics and the record, to arrive when they may."""
        metrics = self._metrics

        def arrive(seen: npt.NDArray[Any], *chosen: npt.NDArray[Any]) -> None:
            if ids is not None and fresh.any():
                self._known.observe(ids[fresh], seen[fresh])
            if chosen:
                indices, *rest = chosen
                metrics.observe_selection(seen, seen[indices], *rest)
            else:
                metrics.samples_dropped["nonfinite_loss"] += metrics.loss["seen"].add(seen)

        if chosen is None:
            self._late.send((losses,), arrive)
            return
        wanted = chosen.importances * chosen.method_weights
        agreed = (wanted / wanted.sum(1, keepdim=True)).sum(0)
        self._late.send(
            (
                losses,
                chosen.indices,
                chosen.weights,
                chosen.method_weights,
                chosen.method_losses,
                agreed,
            ),
            arrive,
        )

    def learn(self, last: trees.Leaves, losses: Tensor) -> None:
        """Hand fresh losses of an emitted batch, shape (B,), to the record and the policy."""
        if "ids" in last:
            self._late.send((last["ids"], losses), self._known.observe)  # type: ignore[arg-type]
        if self._policy.learn is None or self._state is None:
            return
        feedback = Feedback(
            losses=losses.to(self._state.log_weights.dtype),
            importances=last["importances"],  # type: ignore[arg-type]
            probabilities=last["probabilities"],  # type: ignore[arg-type]
            inclusions=last["inclusions"],  # type: ignore[arg-type]
            valid=torch.isfinite(losses) & (last["weights"] > 0),
        )
        self._state = self._policy.learn(self._state, feedback)
        self._metrics.policy_updates["applied"] += 1

    def drain(self) -> None:
        """Wait for numbers that are still on their way from the device."""
        self._late.drain()

    def state_dict(self) -> dict[str, Any]:
        """Describe rows that wait, the policy's state, randomness, counts and the record."""
        self.drain()
        state = self._state
        tensors = ("log_weights", "method_losses", "trend")
        return {
            "buffer": None if self._buffer is None else self._buffer.state_dict(),
            "policy": None
            if state is None
            else {"step": state.step} | {n: getattr(state, n).clone() for n in tensors},
            "generator": None if self._generator is None else self._generator.get_state(),
            "quota": self._quota.state_dict(),
            "known": self._known.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        if state["buffer"] is not None:
            if self._buffer is None:
                self._buffer = Buffer(state["buffer"]["batch_size"])
            self._buffer.load_state_dict(state["buffer"], self._device)
        policy = state["policy"]
        self._state = None if policy is None else _restored(policy, self._device)
        self._generator = None
        if state["generator"] is not None:
            self._generator = self._new_generator(self._device or torch.device("cpu"))
            self._generator.set_state(state["generator"])
        self._quota.load_state_dict(state["quota"])
        self._known.load_state_dict(state["known"])

    def _new_generator(self, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(self._seed)


def _count_finite(losses: Tensor) -> int | None:
    if losses.device.type != "cpu":
        return None
    finite = np.isfinite(losses.numpy())
    return losses.shape[0] if finite.all() else int(finite.sum())


def _restored(policy: dict[str, Any], device: torch.device | None) -> State:
    tensors = {name: policy[name].to(device) for name in ("log_weights", "method_losses", "trend")}
    return State(int(policy["step"]), **tensors)
