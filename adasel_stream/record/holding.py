"""What a record holds, row by row and as a whole: described, given away, taken in, restored."""

import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from adasel_stream.errors import RecordError
from adasel_stream.keys import ids_of_keys
from adasel_stream.record.engines import make_engine
from adasel_stream.record.entries import Entries, check_entries
from adasel_stream.record.evicted import EVICTED_CELLS, EvictedAges, read_ages
from adasel_stream.record.inputs import versions_of
from adasel_stream.record.known import Items
from adasel_stream.record.pending import PendingLabels
from adasel_stream.record.placing import place
from adasel_stream.record.settings import Settings
from adasel_stream.record.state import (
    dump_table,
    read_cursors,
    read_field,
    read_numbers,
    read_table,
)
from adasel_stream.record.table import Table
from adasel_stream.record.ticks import Ticks

__all__ = ["Holding"]

_COUNTS: Final = (
    *("hits", "misses", "stale", "stale_version"),
    *("evicted", "dropped", "rejected"),
)
_NO_CHANGE: Final = 2**32 - 1


class _Position(NamedTuple):
    """What a record knows apart from its rows, checked."""

    counts: dict[str, int]
    evicted_ages: list[int]
    version: int
    ticks: Ticks
    cursors: dict[str, tuple[int, int]]


class Holding:
    """The part of `LossRecord` that computes nothing: see there."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        engine: str,
        pending: PendingLabels | None,
    ) -> None:
        self.lock = threading.RLock()
        self.cursors: dict[str, tuple[int, int]] = {}
        self.copying = False
        self._settings = settings
        self._table = Table(settings.buckets)
        self._engine = make_engine(engine, self._table, settings.seed)
        self._pending = pending
        self._clock = clock
        self._ticks = Ticks(clock)
        self.version = 0
        self._counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
        self._oldest_change = _NO_CHANGE

    def __len__(self) -> int:
        """Return the number of ids in the record, stale ones included."""
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
    def seed(self) -> int:
        """What decides which ids share a bucket; keys are exchanged only under one seed."""
        return self._settings.seed

    @property
    def decay(self) -> float:
        """What one new loss leaves of the old average."""
        return self._settings.decay

    @property
    def tick(self) -> int:
        """Whole seconds of the record's time, from 1, by a new reading of the clock."""
        with self.lock:
            return self._ticks.now()

    @property
    def engine(self) -> str:
        """What computes: "numpy" or "numba"."""
        return self._engine.name

    @property
    def version(self) -> int:
        """Current model version, in [0, 65,535]; setting it takes any integer modulo 65,536."""
        return self._version

    @version.setter
    def version(self, version: int) -> None:
        self._versions = versions_of(version, rows=0)
        self._version = int(self._versions[0])

    @property
    def pending(self) -> PendingLabels | None:
        """Predictions that wait for their labels, to be used under `lock`; None without."""
        return self._pending

    @property
    def counts(self) -> dict[str, int]:
        """Rows counted since the beginning, by what became of them.

        `hits`, `misses` and `stale` add up to the rows looked up; `stale_version` are those of
        `stale` that are young enough, but of a version too far away. `evicted` ids made room for
        others, `dropped` ids found none because their batch brought more than eight new ones for
        a bucket or younger ones were there, `rejected` rows had a loss that is not a finite
        float32.
        """
        return dict(self._counts)

    @property
    def evicted_ages(self) -> EvictedAges:
        """How old the losses of `evicted` ids were, see `EVICTED_AGE_BOUNDS_S`.

        Ages below the time after which an instance comes back mean that the record is too small.
        """
        with self.lock:
            return read_ages(self._table.evicted)

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the ids in the record, shape (n,), int64, exactly as they came.

        >>> import numpy as np
        >>> from adasel_stream.record import LossRecord
        >>> record = LossRecord(capacity=100)
        >>> record.update(np.array([-5]), np.array([1.0]))
        >>> record.ids().tolist()
        [-5]
        """
        return self.items().ids

    def items(self) -> Items:
        """Return all that a record of integer ids holds.

        >>> import numpy as np
        >>> from adasel_stream.record import LossRecord
        >>> record = LossRecord(capacity=100)
        >>> record.update(np.array([3, 3]), np.array([1.0, 2.0]), version=9)
        >>> items = record.items()
        >>> items.losses.tolist(), items.counts.tolist(), items.versions.tolist()
        ([1.5], [2], [9])
        """
        keys, values = self.entries(0, self.capacity)
        return Items(
            ids=ids_of_keys(keys, self._settings.seed),
            losses=values["last"].copy(),
            ema=values["ema"].copy(),
            age_s=(np.uint32(self._ticks.last) - values["tick"]).astype(np.float32),
            counts=values["count"].copy(),
            versions=values["version"].copy(),
        )

    def entries(self, start: int, stop: int, *, since_tick: int = 1) -> Entries:
        """Copy the rows of slots in [start, stop) that changed at `since_tick` or later.

        A record that is copied slice by slice while it changes gives each slice as it was at
        that moment; a row that changes after its slice was copied then has a younger tick.

        >>> import numpy as np
        >>> from adasel_stream.record import LossRecord
        >>> record = LossRecord(capacity=100)
        >>> record.update(np.array([3]), np.array([1.5]))
        >>> record.entries(0, record.capacity).values["last"].tolist()
        [1.5]
        """
        with self.lock:
            return self._table.entries(start, stop, since_tick)

    def place(self, entries: Entries) -> int:
        """Put rows of other records in, under the same seed; in each bucket the newest stay.

        A row replaces that of its key if it is not older. The order in which batches come does
        not matter, unless two rows have the same key and tick: then the later stays. The counts
        do not change.

        Args:
            entries: rows, left unchanged; none younger than this record, see `load_position`.

        Returns:
            Number of rows that this record holds now.

        Raises:
            RecordError: if rows are damaged; the record is then unchanged.

        >>> import numpy as np
        >>> from adasel_stream.record import LossRecord
        >>> record, larger = LossRecord(capacity=100), LossRecord(capacity=200)
        >>> record.update(np.array([3]), np.array([1.5]))
        >>> larger.place(record.entries(0, record.capacity))
        1
        """
        with self.lock:
            check_entries(entries, self._ticks.last)
            self._note_change(entries.values["tick"])
            return place(self._table, entries).kept

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
        position = self._read_position(state)
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
            position = self._read_position(state)
            rows = read_table(self._table, read_field(state, "table", dict), position.ticks.last)
            self._load_pending(state)
            rows.restore(self._table)
            self._take_position(position)
            self._oldest_change = 0

    def take_oldest_change(self) -> int:
        """Return the oldest tick before its time that a row was given since the last call.

        A snapshot of what changed since the last one starts there. 2**32 - 1 says that there was
        none, 0 that the record became another, by `load_state_dict`.
        """
        with self.lock:
            oldest, self._oldest_change = self._oldest_change, _NO_CHANGE
            return oldest

    def _note_change(self, ticks: npt.NDArray[np.uint32]) -> None:
        self._oldest_change = min(self._oldest_change, int(ticks.min(initial=_NO_CHANGE)))

    def _read_position(self, state: dict[str, Any]) -> _Position:
        counts = read_field(state, "counts", dict)
        ticks = Ticks(self._clock)
        ticks.load_state_dict(read_field(state, "ticks", dict))
        return _Position(
            counts={name: read_field(counts, name, int) for name in _COUNTS},
            evicted_ages=read_numbers(state, "evicted_ages", EVICTED_CELLS),
            version=read_field(state, "version", int),
            ticks=ticks,
            cursors=read_cursors(state),
        )

    def _take_position(self, position: _Position) -> None:
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
