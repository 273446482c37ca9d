"""Losses of candidates: recorded where they are known, scored where they are not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.errors import BatchError
from adasel_stream.record import LossRecord, instance_ids
from adasel_stream.scorers import Score, as_scored, checked
from adasel_stream.types import Batch, Ids, Scored

__all__ = ["KnownLosses", "as_ids", "find_ids"]

Int64s = npt.NDArray[np.int64]


class KnownLosses:
    """Score as few rows as possible.

    Args:
        score: gives losses of the rows that are not known; None where the record is all there is.
        record: losses by instance id, or None to score every row.
    """

    def __init__(self, score: Score | None, record: LossRecord | None) -> None:
        self._score = score
        self._record = record
        self._mean = 0.0  # of the losses recorded so far; stands in for an unknown one
        self._recorded = 0

    def of(
        self, batch: Batch, leaves: trees.Leaves, rows: int, ids: Int64s | None
    ) -> tuple[Scored, npt.NDArray[np.bool_]]:
        """Give the losses of a candidate batch, and which of its rows were scored now.

        Args:
            batch: the candidates, where they are to be scored.
            leaves: the same, flattened.
            rows: b.
            ids: instance ids, shape (b,), or None without a record.

        Returns:
            losses (b,), and a mask of the freshly scored rows, shape (b,).
        """
        if self._record is None or ids is None:
            return self._forward(batch, rows), np.ones(rows, dtype=np.bool_)
        known = self._record.lookup(ids)
        unknown = ~known.known
        if self._score is None:
            losses = np.where(known.known, known.losses, np.float32(self._mean))
            return Scored(torch.from_numpy(losses).to(_device_of(leaves))), np.zeros_like(unknown)
        if unknown.all():
            return self._forward(batch, rows), unknown
        losses = torch.from_numpy(known.losses).to(_device_of(leaves), non_blocking=True)
        if unknown.any():
            where = torch.from_numpy(np.flatnonzero(unknown))
            fresh = self._forward(_rows(batch, leaves, where), where.shape[0]).losses
            losses = losses.to(fresh.device, fresh.dtype)
            losses = losses.index_copy(0, where.to(fresh.device, non_blocking=True), fresh)
        return Scored(losses), unknown

    def observe(self, ids: Int64s, losses: npt.NDArray[Any]) -> None:
        """Record fresh losses, shape (n,), of instances, shape (n,)."""
        if self._record is None or len(ids) == 0:
            return
        self._record.update(ids, losses)
        finite = losses[np.isfinite(losses)]
        if finite.size:
            self._recorded += finite.size
            # an even mean at first, then one over about the last 10,000 losses
            share = min(1.0, max(finite.size / self._recorded, finite.size / 10_000))
            self._mean += share * (float(finite.mean(dtype=np.float64)) - self._mean)

    def state_dict(self) -> dict[str, Any]:
        """Describe the record and the running mean."""
        record = None if self._record is None else self._record.state_dict()
        return {"record": record, "mean": self._mean, "recorded": self._recorded}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._mean, self._recorded = float(state["mean"]), int(state["recorded"])
        if self._record is not None and state["record"] is not None:
            self._record.load_state_dict(state["record"])

    def _forward(self, batch: Batch, rows: int) -> Scored:
        assert self._score is not None, "without score there is a record"
        return checked(as_scored(self._score(batch)), rows)


def find_ids(batch: Batch, where: Any, rows: int) -> Int64s:
    """Take the instance ids out of a batch.

    Args:
        batch: the candidates.
        where: a key or an attribute, a tuple of them, or a function of the batch.
        rows: b.

    Raises:
        BatchError: there is nothing there, or not one id per row.

    >>> find_ids({"meta": {"id": [7, 8]}}, ("meta", "id"), 2)
    array([7, 8])
    """
    try:
        found = where(batch) if callable(where) else _follow(batch, where)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise BatchError(
            f"ids={where!r} is not in the batch, whose leaves are "
            f"{', '.join(trees.flatten(batch)) or 'none'}; name a key, a path of keys or a function"
        ) from error
    ids = as_ids(found)
    if ids.shape != (rows,):
        raise BatchError(f"ids={where!r} gives shape {ids.shape}, expected ({rows},): one per row")
    return ids


def as_ids(ids: Ids | Tensor) -> Int64s:
    """Convert ids to int64, strings by their hash.

    Raises:
        BatchError: ids that are neither whole numbers nor strings.

    >>> as_ids(torch.tensor([3, 4]))
    array([3, 4])
    """
    if isinstance(ids, Tensor):
        ids = ids.detach().cpu().numpy()
    if isinstance(ids, list | tuple) and all(isinstance(i, str) for i in ids):
        return instance_ids(ids)
    array = np.asarray(ids)
    if array.dtype.kind in "UO" and all(isinstance(i, str) for i in array.ravel().tolist()):
        return instance_ids(array.tolist())
    if array.dtype.kind not in "iu":
        raise BatchError(
            f"ids have dtype {array.dtype}, expected whole numbers or strings; ids that travel as "
            "floats lose their last digits"
        )
    if array.dtype == np.uint64:
        return array.view(np.int64)
    return array.astype(np.int64, copy=False)


def _follow(batch: Batch, where: Any) -> Any:
    node = batch
    for key in where if isinstance(where, tuple) else (where,):
        try:
            node = node[key]
        except (TypeError, KeyError, IndexError):
            if not isinstance(key, str) or not hasattr(node, key):
                raise
            node = getattr(node, key)  # dataclasses and named tuples
    return node


def _rows(batch: Batch, leaves: trees.Leaves, where: Tensor) -> Batch:
    taken: trees.Leaves = {}
    for path, leaf in leaves.items():
        slots = trees.slots_for(leaf, where.shape[0])
        on_device = isinstance(leaf, Tensor) and leaf.device.type != "cpu"
        indices = where.to(leaf.device, non_blocking=True) if on_device else where  # type: ignore[union-attr]
        trees.take_rows(leaf, indices, slots, 0)
        taken[path] = slots
    return trees.rebuild(batch, taken)


def _device_of(leaves: trees.Leaves) -> torch.device:
    tensors = [leaf for leaf in leaves.values() if isinstance(leaf, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")
