"""Copy a record while it is used, a slice at a time.

Rows are independent, so each may be copied at a moment of its own: what changes after its slice
was copied is in the next snapshot. Only cursors must not run ahead of the rows they count, nor
behind: they are copied first, and `copying` keeps losses from serving out until the last slice.
And a label takes a prediction from one table and puts a loss into the other: rows of both that
were joined meanwhile are copied once more, at one moment, after the last slice.
"""

import time
from collections.abc import Callable
from threading import RLock
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

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

    def entries_of(self, keys: npt.NDArray[np.uint64]) -> Entries:
        """Copy the rows of those distinct keys that are there."""
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
        """Whole seconds of the record's time, at least 1; see `Ticks`."""
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

    def entries(
        self,
        start: int,
        stop: int,
        *,
        since_tick: int = 1,
        late: npt.NDArray[np.uint8] | None = None,
    ) -> Entries:
        """Copy rows that changed at `since_tick` or later, and those of the slots in `late`."""
        ...

    def take_late(self) -> npt.NDArray[np.uint8] | None:
        """Return the slots that were given older ticks than that of the last call of this.

        None says that the record became another, whose rows take nothing from the old ones.
        """
        ...

    def take_joined(self) -> npt.NDArray[np.uint64]:
        """Return the distinct keys that labels were joined to while `copying`."""
        ...


class Copy(NamedTuple):
    """A record as it was while it was copied.

    Attributes:
        tick: when the copy began.
        late: slots that were copied whatever their tick, see `LateRows.take`; None if the record
            became another and all were.
        position: counts and cursors at the beginning, time at the end.
        rows: of the record.
        pending: of the table of predictions, None if the record has none.
    """

    tick: int
    late: npt.NDArray[np.uint8] | None
    position: dict[str, Any]
    rows: Entries
    pending: Entries | None


def copy_record(
    record: Recorded, since_tick: int, late: npt.NDArray[np.uint8] | None = None
) -> Copy:
    """Copy what changed since the last copy; the lock is held a millisecond at a time.

    Takes 24 bytes of memory for each row that is copied.

    Args:
        record: others may use it meanwhile.
        since_tick: rows of this tick and younger ones are copied; 0 copies all.
        late: slots of older rows that copies which came to nothing had; those that changed since
            the last copy are added.

    >>> from adasel_stream.record import LossRecord
    >>> record = LossRecord(capacity=100)
    >>> record.update(np.array([3]), np.array([0.5]))
    >>> copy = copy_record(record, since_tick=0)
    >>> copy.rows.values["last"].tolist(), copy.pending
    ([0.5], None)
    """
    with record.lock:
        record.copying = True
        record.take_joined()  # during a copy that failed
        tick, position = record.tick, record.position()
        taken = record.take_late()
    if taken is None:
        since_tick, late = 0, None
    else:
        late = taken if late is None else late | taken

    def changed(start: int, stop: int) -> Entries:
        return record.entries(start, stop, since_tick=since_tick, late=late)

    table, pending = record.pending, None
    try:
        if table is not None:
            pending = _copied(record.lock, table.capacity, table.entries)
        rows = _copied(record.lock, record.capacity, changed)
    finally:
        with record.lock:
            record.copying = False
            # rows of the last slice may be as young as this
            ticks = record.position()["ticks"]
            joined = record.take_joined()
            losses = record.entries_of(joined)
            waiting = None if table is None else table.entries_of(joined)
    if len(joined) and pending is not None and waiting is not None:
        pending.replace(joined, waiting)
        rows.replace(joined, losses)
    return Copy(
        tick,
        late,
        position | {"ticks": ticks},
        rows.entries(),
        None if pending is None else pending.entries(),
    )


class _Copied:
    """Rows that were copied, in memory for as many as there are slots.

    Args:
        capacity: number of slots.
    """

    def __init__(self, capacity: int) -> None:
        # memory that is not written is not taken, and pieces would have to be copied once more
        self._keys, self._values = np.empty(capacity, np.uint64), np.empty(capacity, VALUE)
        self._end = 0

    def add(self, rows: Entries) -> None:
        """Take rows of other keys."""
        begin, self._end = self._end, self._end + len(rows.keys)
        if self._end > len(self._keys):  # some that are there have made room for these
            more = self._end - len(self._keys)
            self._keys = np.append(self._keys, np.empty(more, np.uint64))
            self._values = np.append(self._values, np.empty(more, VALUE))
        self._keys[begin : self._end], self._values[begin : self._end] = rows

    def replace(self, keys: npt.NDArray[np.uint64], rows: Entries) -> None:
        """Put `rows` into the place of whatever rows there are of `keys`, which are sorted."""
        gone = self._places_of(keys)
        end = self._end - len(gone)
        last = np.setdiff1d(np.arange(end, self._end), gone, assume_unique=True)
        holes = gone[gone < end]
        self._keys[holes], self._values[holes] = self._keys[last], self._values[last]
        self._end = end
        self.add(rows)

    def entries(self) -> Entries:
        """Return all rows."""
        return Entries(self._keys[: self._end], self._values[: self._end])

    def _places_of(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        places = [np.empty(0, np.int64)]
        for start in range(0, self._end, _SLICE_SLOTS):
            piece = self._keys[start : min(start + _SLICE_SLOTS, self._end)]
            nearest = keys.take(np.searchsorted(keys, piece), mode="clip")
            places.append((nearest == piece).nonzero()[0] + start)
        return np.concatenate(places)


def _copied(lock: RLock, capacity: int, entries: Callable[[int, int], Entries]) -> _Copied:
    copied = _Copied(capacity)
    for start in range(0, capacity, _SLICE_SLOTS):
        with lock:
            piece = entries(start, start + _SLICE_SLOTS)
        copied.add(piece)
        time.sleep(_PAUSE_S)
    return copied
