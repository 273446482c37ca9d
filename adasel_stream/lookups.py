"""What is known of candidates before any of them is scored: by record, serving and late labels."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.average import RunningMean
from adasel_stream.ids import as_ids, find_ids, find_labels
from adasel_stream.record import LossRecord
from adasel_stream.rows import row_count
from adasel_stream.serving import LossFeed
from adasel_stream.staleness import Staleness
from adasel_stream.types import Batch, Ids

__all__ = ["Float32s", "Int64s", "Lookups", "lookups_for", "reference_for"]

Int64s: TypeAlias = npt.NDArray[np.int64]
Float32s: TypeAlias = npt.NDArray[np.float32]

_NO_PENDING: Final = (
    "labels= needs a record in which predictions wait for them: pass "
    "record=LossRecord(..., pending=PendingLabels(...))"
)


def lookups_for(
    record: LossRecord | None, where: Any, labels: Any, serving: Any
) -> "Lookups | None":
    """Make what looks candidates up, or None where there is no record; no folder is touched.

    Args:
        record: losses by instance id, or None.
        where: as in `Lookups`.
        labels: as in `Lookups`.
        serving: what `Lookups.follow` will be given, or None.

    Raises:
        TypeError: an argument of another type.
        ValueError: arguments that need a record, or each other.

    >>> lookups_for(None, None, None, None) is None
    True
    """
    if serving is not None and not isinstance(serving, LossFeed | str | PathLike):
        raise TypeError(
            f"serving must be a folder's path or a LossFeed, got {type(serving).__name__}"
        )
    if record is not None:
        return Lookups(record, where, labels)
    if serving is not None:
        raise ValueError("serving= needs record=, into which losses of serving processes go")
    if labels is not None:
        raise ValueError(_NO_PENDING)
    return None


def reference_for(
    reference: Callable[[Batch], Tensor] | LossRecord | None, where: Any, wanted: frozenset[str]
) -> Callable[[Batch], Tensor] | None:
    """Make what gives reference losses of a batch, or None where there are none.

    Args:
        reference: gives them, or holds them by instance id.
        where: where a batch holds its ids, as `find_ids` takes it.
        wanted: what methods look at, as `methods.needs` gives it.

    Raises:
        TypeError: reference is neither.
        ValueError: a record without ids, methods that need what is not there, or none that looks
            at what is.

    >>> known = LossRecord(capacity=10)
    >>> known.update(np.array([7]), np.array([0.5]))
    >>> reference_for(known, "id", frozenset({"reference"}))({"id": np.array([7, 8])})
    tensor([0.5000,    nan])
    """
    if reference is None:
        if "reference" in wanted:
            raise ValueError(
                "method 'reducible_loss' needs reference=: a function that gives the losses of a "
                "reference model, or a LossRecord of them"
            )
        return None
    if "reference" not in wanted:
        raise ValueError(
            "reference= is given, and none of the methods looks at it; pass methods= with "
            "'reducible_loss', or leave it out"
        )
    if callable(reference):
        return reference
    if not isinstance(reference, LossRecord):
        raise TypeError(
            "reference must be a function of a batch or a LossRecord, got "
            f"{type(reference).__name__}"
        )
    if where is None:
        raise ValueError('a LossRecord as reference= needs ids=, such as ids="__key__"')
    held = reference

    def recorded(batch: Batch) -> Tensor:
        known = held.lookup(find_ids(batch, where, row_count(trees.flatten(batch))))
        return torch.from_numpy(np.where(known.known, known.losses, np.nan).astype(np.float32))

    return recorded


class Lookups:
    """Look candidates up in a record, and tell the record what is learnt of them.

    Args:
        record: losses by instance id.
        where: where a batch holds its ids, as `find_ids` takes it.
        labels: where a batch holds its labels, for predictions that wait in the record, or None.

    Attributes:
        record: the record.
        feed: losses of serving processes, drained into the record before every look-up, or None.
        staleness: what recorded losses are worth.

    Raises:
        TypeError: record is no `LossRecord`.
        ValueError: there is no `where`, or labels for a record that keeps no predictions.

    >>> record = LossRecord(capacity=100)
    >>> record.update(np.array([7]), np.array([0.5]))
    >>> Lookups(record, "id").find(np.array([7, 8]))[:, 0].tolist()
    [0.5, nan]
    """

    def __init__(self, record: LossRecord, where: Any, labels: Any = None) -> None:
        if not isinstance(record, LossRecord):
            raise TypeError(f"record must be a LossRecord, got {type(record).__name__}")
        if where is None:
            raise ValueError(
                "record= needs ids=: the key of a batch under which it holds its instances' ids, "
                'such as ids="__key__"'
            )
        if labels is not None and record.pending is None:
            raise ValueError(_NO_PENDING)
        self.record = record
        self.feed: LossFeed | None = None
        self.staleness = Staleness()
        self._where = where
        self._labels = labels
        self._mean = RunningMean()

    def follow(self, serving: LossFeed | str | PathLike[str]) -> LossFeed | None:
        """Let losses of serving processes in; return the feed where it was made here.

        Raises:
            RecordError: another feed has the folder, or it cannot be used.
        """
        self.feed = serving if isinstance(serving, LossFeed) else LossFeed(serving)
        return None if self.feed is serving else self.feed

    def recognise(self, batch: Batch, rows: int) -> Int64s:
        """Take the ids out of a batch, and let the record hear what serving and labels say.

        Args:
            batch: the candidates, as they came: what lies on the host is read there.
            rows: b.

        Raises:
            BatchError: there are no ids or labels, or not one per row.
        """
        ids = find_ids(batch, self._where, rows)
        if self.feed is not None:
            self.feed.poll(self.record)
        if self._labels is not None:
            self.record.join(ids, find_labels(batch, self._labels, rows))
        return ids

    def find(self, ids: Int64s) -> Float32s:
        """Give the recorded loss, NaN where it is unknown, and its age in seconds, shape (b, 2)."""
        known = self.record.lookup(ids)
        return np.stack([np.where(known.known, known.losses, np.nan), known.age_s], axis=1)

    def guess(self, recorded: Float32s) -> tuple[Float32s, npt.NDArray[np.bool_]]:
        """Guess losses: recorded ones corrected for their age, the mean of those for the others.

        Args:
            recorded: what `find` gave, shape (b, 2).

        Returns:
            losses, shape (b,), and whether they were recorded, shape (b,).
        """
        known = ~np.isnan(recorded[:, 0])
        losses = np.empty(len(recorded), np.float32)
        losses[known] = self.staleness.correct(recorded[known, 0], recorded[known, 1])
        self._mean.add(losses[known])
        losses[~known] = self._mean.value
        return losses, known

    def observe(self, ids: Int64s, losses: npt.NDArray[Any]) -> None:
        """Record losses, floating point, shape (n,), of instances, shape (n,)."""
        if len(ids):
            self.record.update(ids, losses)

    def compare(self, recorded: Float32s, fresh: npt.NDArray[Any]) -> None:
        """Learn from fresh losses, shape (n,), what recorded ones, shape (n, 2), are worth."""
        self.staleness.learn(recorded[:, 0], recorded[:, 1], fresh)

    def take_in(self, ids: Ids | Tensor, losses: Tensor | npt.NDArray[Any]) -> None:
        """Check losses that were computed elsewhere, and record them.

        Args:
            ids: instance ids, n of them.
            losses: floating point, shape (n,).

        Raises:
            ValueError: not one loss per id.
            BatchError: ids that are neither whole numbers nor strings.
            RecordError: losses that are not floating point.
        """
        if isinstance(losses, Tensor):
            losses = losses.detach().float().cpu().numpy()
        keys, values = as_ids(ids), np.asarray(losses)
        if values.shape != (len(keys),):
            raise ValueError(
                f"losses must have shape ({len(keys)},), one per id, got {values.shape}"
            )
        self.observe(keys, values)

    def state_dict(self) -> dict[str, Any]:
        """Describe what is known; a record that keeps itself in a folder is left out."""
        record = self.record
        return {
            "record": None if record.kept else _with_tensors(record.state_dict()),
            "mean": self._mean.state_dict(),
            "staleness": self.staleness.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; a record that keeps itself in a folder is left as it is.

        Raises:
            RecordError: the record is of another capacity or seed.
        """
        if state["record"] is not None and not self.record.kept:
            self.record.load_state_dict(_with_arrays(state["record"]))
        self._mean.load_state_dict(state["mean"])
        self.staleness.load_state_dict(state["staleness"])


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
