"""A record as a whole: described, restored, and kept in a folder."""

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Self

from adasel_stream.errors import RecordError
from adasel_stream.record.holding import Holding
from adasel_stream.record.pending import PendingLabels
from adasel_stream.record.settings import Settings
from adasel_stream.record.snapshots.counts import SnapshotCounts
from adasel_stream.record.state import (
    Position,
    dump_table,
    read_field,
    read_position,
    read_table,
)

if TYPE_CHECKING:  # see LossRecord.open
    from adasel_stream.record.snapshots.keeper import SnapshotKeeper

__all__ = ["Kept"]

_log: Final = logging.getLogger(__name__)


class Kept(Holding):
    """The part of `LossRecord` that outlives its process: see there."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        engine: str,
        pending: PendingLabels | None,
    ) -> None:
        super().__init__(settings, clock, engine, pending)
        self._keeper: SnapshotKeeper | None = None
        self._warning_due = False
        # of the two newest states: before the newest is on disk, the other may be needed
        self._states: deque[dict[str, tuple[int, int]]] = deque(maxlen=2)

    @property
    def kept(self) -> bool:
        """Whether the record is kept in a folder."""
        return self._keeper is not None

    @property
    def saved_cursors(self) -> dict[str, tuple[int, int]] | None:
        """How far segments are applied in what the record may have to go back to.

        Of a record that is kept, the newest snapshot on disk; of another, the older of the last
        two states that were taken or loaded and whose cursors differ, the only one if there is
        one, None if there is none.
        """
        if self._keeper is not None:
            return self._keeper.cursors
        with self.lock:
            return self._states[0] if self._states else None

    @property
    def snapshots(self) -> SnapshotCounts:
        """What became of the snapshots; all 0 if the record is not kept."""
        return SnapshotCounts() if self._keeper is None else self._keeper.counts

    def save(self, *, full: bool = False) -> None:
        """Write a snapshot now.

        Args:
            full: write a new base instead of what changed.

        Raises:
            RecordError: if it cannot be written, the one before is intact then; or if this
                process does not keep the record.
        """
        if self._keeper is None:
            raise RecordError("this record is kept in no folder: open it by LossRecord.open")
        self._keeper.save(full=full)

    def close(self, *, save: bool = True) -> None:
        """Stop keeping the record and free its folder; for any other record, do nothing.

        Args:
            save: write a last snapshot before.

        Raises:
            RecordError: if the last snapshot cannot be written; the folder is free all the same.
        """
        if self._keeper is not None:
            self._warning_due = True
            self._keeper.close(save=save)

    def __enter__(self) -> Self:
        """Return the record; leaving the block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the record."""
        self.close()

    def _warn_closed(self) -> None:
        """Say once that what is recorded from now on will be lost."""
        self._warning_due = False
        _log.warning(
            "this record is closed: what is recorded from now on stays in memory and is not saved"
        )

    def position(self) -> dict[str, Any]:
        """Describe what a record knows apart from its rows: counts, version, time and cursors.

        It is plain data, and as JSON stays what it is.

        >>> from adasel_stream.record import LossRecord
        >>> sorted(LossRecord(capacity=100).position())
        ['counts', 'cursors', 'evicted_ages', 'pending_counts', 'ticks', 'version']
        """
        with self.lock:
            return {
                "counts": dict(self._counts),
                "evicted_ages": self._table.evicted.tolist(),
                "pending_counts": {} if self._pending is None else self._pending.counts,
                "version": self.version,
                "ticks": self._ticks.state_dict(),
                "cursors": dict(self.cursors),
            }

    def load_position(self, state: dict[str, Any]) -> None:
        """Continue from what `position` described; the time since then has passed.

        Counts of pending labels are read by a record that has some from one that had some.

        Raises:
            RecordError: if the state is damaged; this record is then unchanged.

        >>> from adasel_stream.record import LossRecord
        >>> record, resumed = LossRecord(capacity=100), LossRecord(capacity=100)
        >>> resumed.load_position(record.position())
        """
        position = read_position(state, self._clock)
        with self.lock:
            counts = read_field(state, "pending_counts", dict)
            if self._pending is not None and counts:
                self._pending.load_counts(counts)
            self._take_position(position)

    def state_dict(self) -> dict[str, Any]:
        """Describe the record exactly: arrays of the slots in use, numbers and strings.

        >>> from adasel_stream.record import LossRecord
        >>> record = LossRecord(capacity=100, seed=3)
        >>> state = record.state_dict()
        >>> state["capacity"], state["seed"]
        (104, 3)
        """
        with self.lock:
            if not self._states or self._states[-1] != self.cursors:
                self._states.append(dict(self.cursors))
            return {
                "capacity": self.capacity,
                "seed": self.seed,
                **self.position(),
                "table": dump_table(self._table),
                "pending": None if self._pending is None else self._pending.state_dict(),
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the record that `state_dict` described, slot for slot.

        All settings but these stay as this record was constructed.

        Raises:
            RecordError: if the state is damaged, belongs to a record of another capacity or seed,
                or has pending labels and this record none; this record is then unchanged.

        >>> import numpy as np
        >>> from adasel_stream.record import LossRecord
        >>> record, resumed = LossRecord(capacity=100), LossRecord(capacity=100)
        >>> record.update(np.array([1]), np.array([0.25]))
        >>> resumed.load_state_dict(record.state_dict())
        >>> resumed.lookup(np.array([1])).losses.tolist()
        [0.25]
        """
        for name, mine in (("capacity", self.capacity), ("seed", self.seed)):
            if (theirs := read_field(state, name, int)) != mine:
                raise RecordError(
                    f"the state is of a record with {name} {theirs}, this one has {mine}: "
                    f"construct it with {name}={theirs}"
                )
        with self.lock:
            position = read_position(state, self._clock)
            rows = read_table(self._table, read_field(state, "table", dict), position.ticks.last)
            self._load_pending(state)
            rows.restore(self._table)
            self._take_position(position)
            self._states.clear()
            self._states.append(dict(self.cursors))
            self._late.forget()

    def _take_position(self, position: Position) -> None:
        self._counts, self._ticks, self.cursors = position.counts, position.ticks, position.cursors
        self._table.evicted[:] = position.evicted_ages
        self.version = position.version

    def _load_pending(self, state: dict[str, Any]) -> None:
        theirs = state.get("pending")
        if self._pending is None:
            if theirs is not None:
                raise RecordError(
                    "the state has predictions that wait for labels: construct this record with "
                    "pending=PendingLabels(...)"
                )
        elif theirs is None:
            self._pending.clear()
        else:
            counts = read_field(state, "pending_counts", dict)
            self._pending.load_state_dict(read_field(state, "pending", dict), counts)
