"""Losses of candidates: recorded where they are known, scored where they are not."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.ids import as_ids, find_ids
from adasel_stream.record import LossRecord
from adasel_stream.rows import Leaves, slots_for, take_rows
from adasel_stream.scorers import Score, as_scored, checked
from adasel_stream.types import Batch, Ids, Scored

__all__ = ["KnownLosses", "Losses"]

Int64s: TypeAlias = npt.NDArray[np.int64]
_NO_AGES = np.zeros(0, dtype=np.float32)

_LOSSES_OF_MEAN = 10_000
"""About how many of the last recorded losses the mean is of that stands in for an unknown one."""


class Losses(NamedTuple):
    """Losses of a candidate batch, and where they came from.

    Attributes:
        scored: losses, shape (b,), with last-layer quantities if every row was scored.
        fresh: rows that were scored now, shape (b,), bool.
        ages_s: ages of the recorded losses that were reused, in seconds, float32.
        guessed: rows whose loss nobody knows and the stream's mean stands for, shape (b,), bool,
            or None where there are none.
    """

    scored: Scored
    fresh: npt.NDArray[np.bool_]
    ages_s: npt.NDArray[np.float32]
    guessed: npt.NDArray[np.bool_] | None = None


class KnownLosses:
    """Score as few rows as possible.

    Args:
        score: gives losses of the rows that are not known; None where the record is all there is.
        record: losses by instance id, or None to score every row.
        where: where a batch holds its ids, as `find_ids` takes it; needed with a record.

    Raises:
        TypeError: score is no function, or record no `LossRecord`.
        ValueError: there is neither score nor record, or a record without `where`.
    """

    def __init__(self, score: Score | None, record: LossRecord | None, where: Any) -> None:
        if score is None and record is None:
            raise ValueError("losses must come from somewhere: pass score=, record=, or both")
        if score is not None and not callable(score):
            raise TypeError(f"score must be a function of a batch, got {type(score).__name__}")
        if record is not None and not isinstance(record, LossRecord):
            raise TypeError(f"record must be a LossRecord, got {type(record).__name__}")
        if record is not None and where is None:
            raise ValueError(
                "record= needs ids=: the key of a batch under which it holds its instances' ids, "
                'such as ids="__key__"'
            )
        self._score = score
        self._record = record
        self._where = where
        self._mean = 0.0
        self._recorded = 0

    def ids_of(self, batch: Batch, rows: int) -> Int64s | None:
        """Take the ids out of a batch, or give None where no record needs them.

        Raises:
            BatchError: there are none, or not one per row.
        """
        return None if self._record is None else find_ids(batch, self._where, rows)

    def losses_of(self, batch: Batch, leaves: Leaves, rows: int, ids: Int64s | None) -> Losses:
        """Give the losses of a candidate batch, scoring the rows that are not known.

        Args:
            batch: the candidates, where they are to be scored.
            leaves: the same, flattened.
            rows: b.
            ids: instance ids, b of them, or None without a record.

        Raises:
            ScoreError: the score did not give one loss per row.
        """
        if self._record is None or ids is None:
            every = np.ones(rows, dtype=np.bool_)
            return Losses(self._scored(batch, rows), every, _NO_AGES)
        known = self._record.lookup(ids)
        unknown, ages_s = ~known.known, known.age_s[known.known]
        if self._score is not None and unknown.all():
            return Losses(self._scored(batch, rows), unknown, ages_s)
        guessed = np.where(unknown, np.float32(self._mean), known.losses)
        losses = torch.from_numpy(guessed).to(_device_of(leaves), non_blocking=True)
        if self._score is None:
            guesses = unknown if unknown.any() else None
            return Losses(Scored(losses), np.zeros_like(unknown), ages_s, guesses)
        if unknown.any():
            where = torch.from_numpy(np.flatnonzero(unknown))
            fresh = self._scored(_part(batch, leaves, where), where.shape[0]).losses
            losses = losses.to(fresh.device, non_blocking=True)
            losses = losses.index_copy(0, where.to(fresh.device, non_blocking=True), fresh)
        return Losses(Scored(losses), unknown, ages_s)

    def observe(self, ids: Int64s, losses: npt.NDArray[Any]) -> None:
        """Record losses, floating point, shape (n,), of instances, shape (n,)."""
        if self._record is None or len(ids) == 0:
            return
        self._record.update(ids, losses)
        finite = losses[np.isfinite(losses)]
        if finite.size:
            self._recorded += finite.size
            # an even mean at first
            share = finite.size / min(self._recorded, max(_LOSSES_OF_MEAN, finite.size))
            self._mean += share * (float(finite.mean(dtype=np.float64)) - self._mean)

    def take_in(self, ids: Ids | Tensor, losses: Tensor | npt.NDArray[Any]) -> None:
        """Check losses that were computed elsewhere, and record them.

        Args:
            ids: instance ids, n of them.
            losses: floating point, shape (n,).

        Raises:
            ValueError: there is no record, or not one loss per id.
            BatchError: ids that are neither whole numbers nor strings.
            RecordError: losses that are not floating point.
        """
        if self._record is None:
            raise ValueError("there is no record to observe losses; construct with record=")
        if isinstance(losses, Tensor):
            losses = losses.detach().float().cpu().numpy()
        keys, values = as_ids(ids), np.asarray(losses)
        if values.shape != (len(keys),):
            raise ValueError(
                f"losses must have shape ({len(keys)},), one per id, got {values.shape}"
            )
        self.observe(keys, values)

    def state_dict(self) -> dict[str, Any]:
        """Describe the record and the running mean."""
        record = None if self._record is None else _with_tensors(self._record.state_dict())
        return {"record": record, "mean": self._mean, "recorded": self._recorded}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            RecordError: the record is of another capacity or seed.
        """
        if self._record is not None and state["record"] is not None:
            self._record.load_state_dict(_with_arrays(state["record"]))
        self._mean, self._recorded = float(state["mean"]), int(state["recorded"])

    def _scored(self, batch: Batch, rows: int) -> Scored:
        assert self._score is not None, "without score there is a record"
        return checked(as_scored(self._score(batch)), rows)


def _with_tensors(state: Any) -> Any:
    # trainers of other packages save with torch.save, whose safe loading knows no numpy
    if isinstance(state, dict):
        held: dict[str, Any] = state
        return {name: _with_tensors(value) for name, value in held.items()}
    return torch.from_numpy(state) if isinstance(state, np.ndarray) else state


def _with_arrays(state: Any) -> Any:
    if isinstance(state, dict):
        held: dict[str, Any] = state
        return {name: _with_arrays(value) for name, value in held.items()}
    return state.numpy() if isinstance(state, Tensor) else state


def _part(batch: Batch, leaves: Leaves, where: Tensor) -> Batch:
    """Build a batch of the rows that `where` names, shape (n,), int64, on the host."""
    taken: Leaves = {}
    for path, leaf in leaves.items():
        indices = where
        if isinstance(leaf, Tensor):
            indices = where.to(leaf.device, non_blocking=True)
        taken[path] = slots_for(leaf, where.shape[0])
        take_rows(leaf, indices, taken[path], 0)
    return trees.rebuild(batch, taken)


def _device_of(leaves: Leaves) -> torch.device:
    tensors = [leaf for leaf in leaves.values() if isinstance(leaf, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")
