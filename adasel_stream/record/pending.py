"""Predictions that wait for their labels: what serving said, until it is known how wrong it was."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from adasel_stream.arguments import whole
from adasel_stream.errors import RecordError
from adasel_stream.record.engine import Stamps
from adasel_stream.record.entries import VALUE, Entries, check_entries
from adasel_stream.record.inputs import float_rows
from adasel_stream.record.placing import place
from adasel_stream.record.settings import MAX_CAPACITY, age_limit_s
from adasel_stream.record.state import dump_table, read_field, read_table
from adasel_stream.record.table import Table, buckets_for

__all__ = ["Joined", "PendingLabels"]

_COUNTS: Final = ("expected", "joined", "unmatched", "expired", "evicted", "rejected")
_MAX_TICK: Final = 2**32 - 1


class Joined(NamedTuple):
    """Labels that met their predictions.

    Attributes:
        found: which labels did, shape (b,), bool.
        losses: of those, shape (n,), float32.
        stamps: of their predictions, shape (n,).
        slots: of their predictions, shape (n,), int64.
    """

    found: npt.NDArray[np.bool_]
    losses: npt.NDArray[np.float32]
    stamps: Stamps
    slots: npt.NDArray[np.int64]


class PendingLabels:
    """Keep scalar predictions until their labels come, in memory that never grows.

    A table like the record's, 24 bytes a slot: of the predictions that share a bucket the oldest
    makes room. It belongs to one `LossRecord`, whose `expect` and `join` use it under its lock.

    Args:
        capacity: slots, in [1, 2**34]; rounded up to a multiple of 8, at least 16. Take half as
            many again as there are predictions in `ttl_s`.
        loss: takes n predictions, float32, and their labels, shape (n, ...), as `join` was given
            them; returns n losses, floating point. It must not use the record.
        ttl_s: seconds after which a prediction is given up, positive, or None for no limit.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of its range.

    >>> from adasel_stream.record import LossRecord
    >>> pending = PendingLabels(1000, lambda p, y: (p - y) ** 2, ttl_s=3600)
    >>> record = LossRecord(capacity=1000, pending=pending)
    >>> record.expect(np.array([7, 8]), np.array([0.5, 2.0]))
    >>> record.join(np.array([7, 9]), np.array([1.0, 1.0])).tolist()
    [True, False]
    >>> record.lookup(np.array([7])).losses.tolist(), len(pending)
    ([0.25], 1)
    """

    def __init__(
        self,
        capacity: int,
        loss: Callable[[npt.NDArray[np.float32], Any], npt.NDArray[np.floating[Any]]],
        *,
        ttl_s: float | None,
    ) -> None:
        if not callable(loss):
            raise TypeError(f"loss must be a function, got {type(loss).__name__}")
        buckets = buckets_for(whole("capacity", capacity, 1, MAX_CAPACITY))
        self._loss = loss
        self._ttl_s = age_limit_s("ttl_s", ttl_s)
        self._table = Table(buckets)
        self._counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)

    def __len__(self) -> int:
        """Return the number of predictions that wait, some of which may have expired."""
        return self._table.size

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return len(self._table.keys)

    @property
    def record_bytes(self) -> int:
        """Memory of all slots in bytes: 24 a slot, whatever they hold."""
        return self._table.table_bytes

    @property
    def counts(self) -> dict[str, int]:
        """Rows counted since the beginning, by what became of them.

        `expected` predictions came, `rejected` ones were not finite, `expired` and `evicted`
        ones were given up, too old or without room. `joined` and `unmatched` add up to the
        labels that came; duplicates of an id each join the one prediction.
        """
        return dict(self._counts)

    def expect(
        self, keys: npt.NDArray[np.uint64], predictions: npt.NDArray[np.float32], stamps: Stamps
    ) -> None:
        """Keep predictions; one that is not older replaces that of its key.

        Args:
            keys: shape (b,).
            predictions: shape (b,); those that are not finite are rejected and counted.
            stamps: of the predictions.

        >>> pending = PendingLabels(16, np.subtract, ttl_s=None)
        >>> stamps = Stamps(1, np.ones(1, np.uint32), np.zeros(1, np.uint16))
        >>> pending.expect(np.array([5], np.uint64), np.array([0.5], np.float32), stamps)
        >>> len(pending)
        1
        """
        values = np.empty(len(keys), VALUE)
        values["ema"] = values["last"] = predictions
        values["tick"], values["version"], values["count"] = stamps.ticks, stamps.versions, 1
        finite = np.isfinite(predictions).nonzero()[0]
        rows = Entries(keys.take(finite), values.take(finite))
        self._counts["rejected"] += len(keys) - len(finite)
        self._counts["expected"] += len(finite)
        lines = self._table.slots_of(self._table.buckets_of(rows.keys))
        self._expire(lines.reshape(-1), stamps.now)
        self._counts["evicted"] += place(self._table, rows).lost

    def match(self, keys: npt.NDArray[np.uint64], labels: Any, now: int) -> Joined:
        """Search the predictions of labels and compute losses; `settle` them afterwards.

        Args:
            keys: shape (b,).
            labels: an array of shape (b, ...).
            now: the record's time.

        Raises:
            RecordError: if there is not one label for each key, or the loss did not return one
                loss for each; predictions then go on waiting.

        >>> PendingLabels(16, np.subtract, ttl_s=None).match(
        ...     np.array([5], np.uint64), np.array([1.0]), now=1).found.tolist()
        [False]
        """
        if not isinstance(labels, np.ndarray) or labels.shape[:1] != keys.shape:
            what = labels.shape if isinstance(labels, np.ndarray) else type(labels).__name__
            raise RecordError(
                f"labels must be an array of shape ({len(keys)}, ...), one for each id, got {what}"
            )
        slots, found = self._table.find(keys)
        self._expire(slots[found], now)
        found &= self._table.read(slots)["tick"] > 0
        slots = slots[found]
        values = self._table.read(slots)
        losses: object = np.empty(0, np.float32)
        if len(slots):
            losses = self._loss(values["last"].copy(), labels[found])
            if isinstance(losses, (int, float)) or getattr(losses, "shape", None) == ():
                raise RecordError(
                    f"what the pending labels' loss returned is one number for {len(slots)} "
                    "labels, expected one loss for each label: do not average"
                )
        return Joined(
            found,
            float_rows("what the pending labels' loss returned", losses, len(slots)),
            Stamps(now, values["tick"].copy(), values["version"].copy()),
            slots,
        )

    def settle(self, joined: Joined) -> None:
        """Forget predictions whose losses were recorded."""
        self._table.forget(np.unique(joined.slots))
        self._counts["joined"] += len(joined.slots)
        self._counts["unmatched"] += len(joined.found) - len(joined.slots)

    def entries(self, start: int, stop: int, *, since_tick: int = 1) -> Entries:
        """Copy the rows of slots in [start, stop), as `LossRecord.entries` does.

        A prediction is both the average and the last loss of its row.

        >>> len(PendingLabels(16, np.subtract, ttl_s=None).entries(0, 16).keys)
        0
        """
        return self._table.entries(start, stop, since_tick)

    def entries_of(self, keys: npt.NDArray[np.uint64]) -> Entries:
        """Copy the rows of those distinct keys whose predictions wait, shape (b,).

        >>> pending = PendingLabels(16, np.subtract, ttl_s=None)
        >>> len(pending.entries_of(np.array([5], np.uint64)).keys)
        0
        """
        return self._table.entries_of(keys)

    def place(self, entries: Entries) -> int:
        """Put rows in, as `LossRecord.place` does, and return how many are held now.

        Raises:
            RecordError: if rows are damaged; nothing is then changed.

        >>> pending = PendingLabels(16, np.subtract, ttl_s=None)
        >>> pending.place(pending.entries(0, 16))
        0
        """
        check_entries(entries, _MAX_TICK)
        return place(self._table, entries).kept

    def clear(self) -> None:
        """Forget all predictions and start counting anew."""
        self._table.clear()
        self._counts = dict.fromkeys(_COUNTS, 0)

    def state_dict(self) -> dict[str, Any]:
        """Describe the predictions exactly, slot for slot.

        >>> PendingLabels(20, np.subtract, ttl_s=None).state_dict()["capacity"]
        24
        """
        return {"capacity": self.capacity, "table": dump_table(self._table)}

    def load_state_dict(self, state: dict[str, Any], counts: dict[str, Any]) -> None:
        """Hold the predictions that `state_dict` described, and go on counting from `counts`.

        Raises:
            RecordError: if the state is damaged or of another capacity; nothing is then changed.

        >>> pending = PendingLabels(20, np.subtract, ttl_s=None)
        >>> pending.load_state_dict(pending.state_dict(), pending.counts)
        """
        if (theirs := read_field(state, "capacity", int)) != self.capacity:
            raise RecordError(
                f"the state has pending labels of capacity {theirs}, these have {self.capacity}: "
                f"construct them with capacity={theirs}"
            )
        rows = read_table(self._table, read_field(state, "table", dict), _MAX_TICK)
        self.load_counts(counts)
        rows.restore(self._table)

    def load_counts(self, counts: dict[str, Any]) -> None:
        """Go on counting from `counts`.

        Raises:
            RecordError: if one is missing or no whole number; nothing is then changed.

        >>> pending = PendingLabels(20, np.subtract, ttl_s=None)
        >>> pending.load_counts(pending.counts)
        """
        self._counts = {name: read_field(counts, name, int) for name in _COUNTS}

    def _expire(self, slots: npt.NDArray[np.int64], now: int) -> None:
        """Forget predictions in `slots`, which may be named twice, that are too old."""
        ticks = self._table.read(slots)["tick"].astype(np.int64)
        old = np.unique(slots[(ticks > 0) & (now - ticks > self._ttl_s)])
        self._table.forget(old)
        self._counts["expired"] += len(old)
