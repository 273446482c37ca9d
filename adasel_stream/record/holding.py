"""What a record holds, row by row: counted, given away and taken in."""

import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from adasel_stream.keys import ids_of_keys, keys_of_ids
from adasel_stream.record.engine import Stamps
from adasel_stream.record.engines import make_engine
from adasel_stream.record.entries import Entries, check_entries
from adasel_stream.record.evicted import EvictedAges, read_ages
from adasel_stream.record.inputs import versions_of
from adasel_stream.record.known import Items
from adasel_stream.record.late import LateRows
from adasel_stream.record.pending import PendingLabels
from adasel_stream.record.placing import place
from adasel_stream.record.settings import Settings
from adasel_stream.record.state import (
    COUNTS,
)
from adasel_stream.record.table import Table
from adasel_stream.record.ticks import Ticks

__all__ = ["Holding"]


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
        self._pending = _labels_or_none(pending)
        self._clock = clock
        self._ticks = Ticks(clock)
        self.version = 0
        self._counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        self._late = LateRows(self.capacity)
        self._joined: list[npt.NDArray[np.uint64]] = []

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
        """Whole seconds of the record's time, by a new reading of the clock; see `Ticks`."""
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
        with self.lock:
            rows = self._table.entries(0, self.capacity, since_tick=1)
            return Items(
                ids=ids_of_keys(rows.keys, self.seed),
                losses=rows.values["last"].copy(),
                ema=rows.values["ema"].copy(),
                age_s=(np.uint32(self._ticks.last) - rows.values["tick"]).astype(np.float32),
                counts=rows.values["count"].copy(),
                versions=rows.values["version"].copy(),
            )

    def entries(
        self,
        start: int,
        stop: int,
        *,
        since_tick: int = 1,
        late: npt.NDArray[np.uint8] | None = None,
    ) -> Entries:
        """Copy the rows of slots in [start, stop) that changed at `since_tick` or later.

        With `late`, as `take_late` gave it, rows of those slots as well. A record that is copied
        slice by slice while it changes gives each slice as it was at that moment; a row that
        changes after its slice was copied then has a younger tick, or is late again.

        >>> import numpy as np
        >>> from adasel_stream.record import LossRecord
        >>> record = LossRecord(capacity=100)
        >>> record.update(np.array([3]), np.array([1.5]))
        >>> record.entries(0, record.capacity).values["last"].tolist()
        [1.5]
        """
        with self.lock:
            return self._table.entries(start, stop, since_tick, late)

    def entries_of(self, keys: npt.NDArray[np.uint64]) -> Entries:
        """Copy the rows of those distinct keys that the record holds, shape (b,).

        >>> import numpy as np
        >>> from adasel_stream.record import LossRecord
        >>> len(LossRecord(capacity=100).entries_of(np.array([5], np.uint64)).keys)
        0
        """
        with self.lock:
            return self._table.entries_of(keys)

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
            kept = place(self._table, entries).kept
            self._note_late(entries.keys[entries.values["tick"] < self._late.since])
            return kept

    def take_late(self) -> npt.NDArray[np.uint8] | None:
        """Return the slots that were given ticks from before the last call, see `LateRows.take`.

        None says that all rows are to be copied: it is the first call, or the record became
        another, by `load_state_dict`.
        """
        with self.lock:
            return self._late.take(self._ticks.now())

    def take_joined(self) -> npt.NDArray[np.uint64]:
        """Return the distinct keys that labels were joined to while `copying`, since the last call.

        A snapshot that copied the prediction of one before, and its loss after, would count the
        label twice; the other way round, not at all.
        """
        with self.lock:
            joined, self._joined = self._joined, []
            return np.unique(np.concatenate([np.empty(0, np.uint64), *joined]))

    def _note_joined(self, keys: npt.NDArray[np.uint64]) -> None:
        if self.copying:
            self._joined.append(keys)

    def _note_late(self, keys: npt.NDArray[np.uint64]) -> None:
        if len(keys):
            slots, found = self._table.find(keys)
            self._late.mark(slots[found])

    def _record(
        self, ids: npt.NDArray[np.int64], losses: npt.NDArray[np.float32], stamps: Stamps
    ) -> None:
        outcome = self._engine.update(ids, losses, stamps, self._settings.decay)
        # most often one young tick for all, on the path of every step
        if len(stamps.ticks) != 1:
            ids = ids[stamps.ticks < self._late.since]
        if len(stamps.ticks) != 1 or stamps.ticks[0] < self._late.since:
            self._note_late(keys_of_ids(ids, self.seed))
        self._counts["rejected"] += outcome.rejected
        self._counts["evicted"] += outcome.evicted
        self._counts["dropped"] += outcome.dropped


def _labels_or_none(pending: object) -> PendingLabels | None:
    if pending is None or isinstance(pending, PendingLabels):
        return pending
    raise TypeError(f"pending must be PendingLabels(...) or None, got {type(pending).__name__}")
