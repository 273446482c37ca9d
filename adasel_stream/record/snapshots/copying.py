"""Copy a record while it is used, a slice at a time.

Rows are independent, so each may be copied at a moment of its own: what changes after its slice
was copied is in the next snapshot. Only cursors must not run ahead of the rows they count, nor
behind: they are copied first, and `copying` keeps losses from serving out until the last slice.
"""

import time
from threading import RLock
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from adasel_stream.record.entries import VALUE, Entries

__all__ = ["Copy", "Recorded", "Rows", "copy_record"]

_SLICE_SLOTS: Final = 65_536
# long enough for a thread that waits for the lock to wake up and take it: locks are not fair
_PAUSE_S: Final = 2e-4


class Rows(Protocol):
    """A table of rows: the record's own, or that of pending predictions."""

    @property
    def capacity(self) -> int:
        """Number of slots."""
        ...

    def entries(self, start: int, stop: int, *, since_tick: int = 1) -> Entries:
        """Copy rows of slots in [start, stop) that changed at `since_tick` or later."""
        ...

    def place(self, entries: Entries) -> int:
        """Put rows in; in each bucket the newest stay."""
        ...


class Recorded(Rows, Protocol):
    """What snapshots need of a record.

    Attributes:
        lock: held around every use of the table.
        copying: whether a copy is under way, during which no cursor moves; read under `lock`.
    """

    lock: RLock
    copying: bool

    @property
    def seed(self) -> int:
        """What decides which ids share a bucket."""
        ...

    @property
    def decay(self) -> float:
        """What one new loss leaves of the old average."""
        ...

    @property
    def tick(self) -> int:
        """Whole seconds of the record's time, from 1."""
        ...

    @property
    def pending(self) -> Rows | None:
        """Predictions that wait for their labels, if the record keeps any."""
        ...

    def position(self) -> dict[str, Any]:
        """Describe counts, time and cursors."""
        ...

    def load_position(self, state: dict[str, Any]) -> None:
        """Continue from what `position` described."""
        ...

    def take_oldest_change(self) -> int:
        """Return the oldest tick that a row was given since the last call of this.

        0 says that the record became another, whose rows take nothing from the old ones.
        """
        ...


class Copy(NamedTuple):
    """A record as it was while it was copied.

    Attributes:
        tick: when the copy began.
        since_tick: no older row was copied; 0 if the record became another.
        position: counts and cursors at the beginning, time at the end.
        rows: of the record.
        pending: of the table of predictions, None if the record has none.
    """

    tick: int
    since_tick: int
    position: dict[str, Any]
    rows: Entries
    pending: Entries | None


def copy_record(record: Recorded, since_tick: int) -> Copy:
    """Copy what changed at `since_tick` or later; the lock is held a millisecond at a time.

    Takes 24 bytes of memory for each row that is copied.

    Args:
        record: others may use it meanwhile.
        since_tick: at least 1.
    """
    with record.lock:
        record.copying = True
        tick, position = record.tick, record.position()
        since_tick = min(since_tick, record.take_oldest_change())
    try:
        pending = None if record.pending is None else _copied(record, record.pending, 1)
        rows = _copied(record, record, since_tick)
    finally:
        with record.lock:
            record.copying = False
            # rows of the last slice may be as young as this
            ticks = record.position()["ticks"]
    return Copy(tick, since_tick, position | {"ticks": ticks}, rows, pending)


def _copied(record: Recorded, table: Rows, since_tick: int) -> Entries:
    # memory that is not written is not taken, and pieces would have to be copied once more
    keys, values = np.empty(table.capacity, np.uint64), np.empty(table.capacity, VALUE)
    end = 0
    for start in range(0, table.capacity, _SLICE_SLOTS):
        with record.lock:
            piece = table.entries(start, start + _SLICE_SLOTS, since_tick=since_tick)
        begin, end = end, end + len(piece.keys)
        keys[begin:end], values[begin:end] = piece
        time.sleep(_PAUSE_S)
    return Entries(keys[:end], values[:end])
