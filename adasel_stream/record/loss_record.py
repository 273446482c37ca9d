"""The loss record: what the last passes said of each instance, in constant memory."""

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.errors import RecordError
from adasel_stream.keys import ids_of_keys
from adasel_stream.record.engine import Stamps, Window
from adasel_stream.record.engines import make_engine
from adasel_stream.record.entries import Entries, check_entries
from adasel_stream.record.evicted import EVICTED_CELLS, EvictedAges, read_ages
from adasel_stream.record.inputs import float_rows, int_ids, ticks_of, versions_of
from adasel_stream.record.known import Items, Known
from adasel_stream.record.placing import place
from adasel_stream.record.settings import check_settings
from adasel_stream.record.snapshots.counts import SnapshotCounts
from adasel_stream.record.state import (
    dump_table,
    load_table,
    read_cursors,
    read_field,
    read_numbers,
)
from adasel_stream.record.table import Table
from adasel_stream.record.ticks import Ticks
from adasel_stream.types import Ids

if TYPE_CHECKING:  # see LossRecord.open
    from adasel_stream.record.snapshots.copying import Rows
    from adasel_stream.record.snapshots.keeper import SnapshotKeeper

__all__ = ["LossRecord"]

_COUNTS: Final = (
    *("hits", "misses", "stale", "stale_version"),
    *("evicted", "dropped", "rejected"),
)
_NO_CHANGE: Final = 2**32 - 1


class LossRecord:
    """Remember the loss of each instance in memory that never grows.

    A set-associative table of 24 bytes a slot. An id belongs to one bucket of eight slots; when
    all are taken, the one not updated for longest makes room. An id that was forgotten is
    unknown, never a loss of 0. To keep nearly every id for as long as it may come back, take
    half as many slots again as there are distinct ids in that time.

    Threads may share a record: each call holds `lock` while it runs, and whoever needs several
    calls to be one holds it around them.

    Args:
        capacity: slots, in [1, 2**34]; rounded up to a multiple of 8, at least 16. All memory is
            taken here.
        decay: what one new loss leaves of the old average, in [0, 1).
        max_age_s: age in seconds above which a loss counts as unknown, positive, or None for no
            limit. Ages are whole seconds.
        max_version_lag: how far the version of a loss may be from the record's `version`, before
            or after it, without counting as unknown; in [0, 32768], or None for no limit.
        seed: in [0, 2**64); it decides which ids share a bucket.
        clock: returns seconds. A step backwards counts as no time passed. Which id makes room
            follows the clock, so a run that must be repeated bit for bit with a full record
            needs one that follows the data, such as the event time or a count of steps.
        engine: "numpy", "numba", which is several times as fast and compiles for a second or two
            at first use, or "auto" for numba where it is installed. Both give the same record.

    Attributes:
        lock: may be taken again by the thread that holds it.
        cursors: how far the segments of each serving writer were applied, as their sequence and
            rows; whoever applies one moves the cursor under the same `lock`.
        copying: whether a snapshot is being copied, during which no cursor moves; to be read
            under `lock`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of its range.

    Source: "recording a constant amount of information per instance", abstract of the paper.

    >>> import numpy as np
    >>> record = LossRecord(capacity=1000, decay=0.5)
    >>> record.update(np.array([7, 8]), np.array([2.0, 4.0]))
    >>> record.update(np.array([7]), np.array([1.0]))
    >>> losses, known, _, ema = record.lookup(np.array([8, 7, 9]))
    >>> losses.tolist(), known.tolist(), ema.tolist()
    ([4.0, 1.0, 0.0], [True, True, False], [4.0, 1.5, 0.0])
    """

    def __init__(
        self,
        capacity: int,
        *,
        decay: float = 0.9,
        max_age_s: float | None = None,
        max_version_lag: int | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
        engine: str = "auto",
    ) -> None:
        if not callable(clock):
            raise TypeError(f"clock must return seconds when called, got {type(clock).__name__}")
        self._settings = check_settings(capacity, decay, max_age_s, max_version_lag, seed)
        self._table = Table(self._settings.buckets)
        self._engine = make_engine(engine, self._table, self._settings.seed)
        self._clock = clock
        self._ticks = Ticks(clock)
        self._version = 0
        self._counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
        self.cursors: dict[str, tuple[int, int]] = {}
        self.copying = False
        self.pending: Rows | None = None
        self.lock = threading.RLock()
        self._oldest_change = _NO_CHANGE
        self._keeper: SnapshotKeeper | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        capacity: int,
        *,
        save_every_s: float = 300.0,
        rank: int = 0,
        world_size: int = 1,
        salvage: bool = False,
        **arguments: Any,
    ) -> "LossRecord":
        """Open a record that is kept in a folder: restored now, saved in the background.

        The folder has one owner; a killed one frees it at once. Snapshots are Parquet files, a
        base and what changed since, and any of them is restored at any capacity and number of
        ranks, the newest losses staying. A damaged file that holds changes ends what is
        restored, with a warning. Copying a snapshot takes 24 bytes of memory for each row of it,
        32 while it is written. Close the record, or the last seconds are only saved when the
        program ends in peace.

        Args:
            path: the record's folder, created if it is not there.
            capacity: slots, as for a new record.
            save_every_s: seconds from the end of one snapshot to the beginning of the next.
            rank: of this process, in [0, world_size); each has a folder of its own in `path`.
            world_size: number of processes that share the record, in [1, 1024].
            salvage: go on from a damaged base with what can be read of it, instead of raising.
            **arguments: of `LossRecord`.

        Raises:
            ValueError: if an argument is out of its range.
            RecordError: if the folder has another owner, its base is damaged, or a newer release
                or a record with another seed wrote it.

        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = LossRecord.open(folder, capacity=100)
        ...     record.update(np.array([7]), np.array([0.25]))
        ...     record.close()
        ...     record = LossRecord.open(folder, capacity=200)
        ...     print(record.lookup(np.array([7])).losses)
        ...     record.close()
        [0.25]
        """
        # Arrow takes longer to load than all else, and only kept records need it
        from adasel_stream.record.snapshots.keeper import SnapshotKeeper

        record = cls(capacity, **arguments)
        record._keeper = SnapshotKeeper(
            record,
            path,
            save_every_s=save_every_s,
            rank=rank,
            world_size=world_size,
            salvage=salvage,
        )
        return record

    @property
    def kept(self) -> bool:
        """Whether the record is kept in a folder."""
        return self._keeper is not None

    @property
    def saved_cursors(self) -> dict[str, tuple[int, int]] | None:
        """The cursors of the newest snapshot on disk; None if the record is not kept."""
        return None if self._keeper is None else self._keeper.cursors

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
            self._keeper.close(save=save)

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
        return int(self._table.keys.nbytes + self._table.values.nbytes)

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
        self._version = int(versions_of(version, rows=0)[0])

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

    def update(
        self,
        ids: Ids,
        losses: npt.NDArray[np.floating[Any]],
        *,
        version: int | npt.NDArray[np.integer[Any]] | None = None,
        age_s: float | npt.NDArray[np.floating[Any]] = 0.0,
    ) -> None:
        """Record losses.

        Several losses of one id count as one observation of their mean with the weight of all,
        stamped with the newest of their ages and, of equal ages, the largest of their versions.
        So the order of rows does not matter: n losses leave `decay**n` of the old average. A
        loss older than the one that is there moves the average and the count, nothing else; a
        new id finds no room if all that its bucket holds is younger. Losses that are not finite
        are rejected and counted.

        Args:
            ids: int64, shape (b,), or b strings, each of which stands for its `instance_ids`.
            losses: floating point, shape (b,); beyond float32's range counts as infinite.
            version: version of the model that gave the losses, an integer or integers of shape
                (b,), kept modulo 65,536; None for the record's `version`.
            age_s: how long ago it gave them, in seconds, a number or shape (b,); less than 0,
                by a clock that runs ahead, counts as 0.

        Raises:
            RecordError: if ids and losses do not match or have a wrong type.

        >>> import numpy as np
        >>> record = LossRecord(capacity=100)
        >>> record.update(["a", "b"], np.array([0.5, np.nan]))
        >>> len(record), record.counts["rejected"]
        (1, 1)
        """
        rows = int_ids(ids)
        values = float_rows("losses", losses, len(rows))
        versions = versions_of(self._version if version is None else version, len(rows))
        with self.lock:
            now = self._ticks.now()
            stamps = Stamps(now, ticks_of(age_s, len(rows), now), versions)
            if stamps.ticks[0] < now or len(stamps.ticks) > 1:
                self._note_change(stamps.ticks)
            outcome = self._engine.update(rows, values, stamps, self._settings.decay)
            self._counts["rejected"] += outcome.rejected
            self._counts["evicted"] += outcome.evicted
            self._counts["dropped"] += outcome.dropped

    def lookup(self, ids: Ids) -> Known:
        """Return what is known of instances; a stale loss is not.

        Looking up does not make an id younger.

        Args:
            ids: int64, shape (b,), or b strings.

        Raises:
            RecordError: if ids have a wrong type.

        >>> import numpy as np
        >>> record = LossRecord(capacity=100)
        >>> record.lookup(np.array([1, 2])).known.tolist(), record.counts["misses"]
        ([False, False], 2)
        """
        rows = int_ids(ids)
        with self.lock:
            window = Window(
                self._ticks.now(),
                self._settings.max_age_s,
                self._version,
                self._settings.max_version_lag,
            )
            answer, tally = self._engine.lookup(rows, window)
            counts = self._counts
            counts["hits"] += tally.hits
            counts["stale"] += tally.stale
            counts["stale_version"] += tally.stale_version
            counts["misses"] += len(rows) - tally.hits - tally.stale
        return answer

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the ids in the record, shape (n,), int64, exactly as they came.

        >>> import numpy as np
        >>> record = LossRecord(capacity=100)
        >>> record.update(np.array([-5]), np.array([1.0]))
        >>> record.ids().tolist()
        [-5]
        """
        return self.items().ids

    def items(self) -> Items:
        """Return all that a record of integer ids holds.

        >>> import numpy as np
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

        >>> sorted(LossRecord(capacity=100).position())
        ['counts', 'cursors', 'evicted_ages', 'ticks', 'version']
        """
        with self.lock:
            return {
                "counts": dict(self._counts),
                "evicted_ages": self._table.evicted.tolist(),
                "version": self._version,
                "ticks": self._ticks.state_dict(),
                "cursors": dict(self.cursors),
            }

    def load_position(self, state: dict[str, Any]) -> None:
        """Continue from what `position` described; the time since then has passed.

        Raises:
            RecordError: if the state is damaged; this record is then unchanged.

        >>> record, resumed = LossRecord(capacity=100), LossRecord(capacity=100)
        >>> resumed.load_position(record.position())
        """
        counts = read_field(state, "counts", dict)
        counts = {name: read_field(counts, name, int) for name in _COUNTS}
        evicted = read_numbers(state, "evicted_ages", EVICTED_CELLS)
        version = read_field(state, "version", int)
        cursors = read_cursors(state)
        ticks = Ticks(self._clock)
        ticks.load_state_dict(read_field(state, "ticks", dict))
        with self.lock:
            self._ticks, self._counts, self.cursors = ticks, counts, cursors
            self._table.evicted[:] = evicted
            self.version = version

    def state_dict(self) -> dict[str, Any]:
        """Describe the record exactly: arrays of the slots in use, numbers and strings.

        >>> record = LossRecord(capacity=100, seed=3)
        >>> state = record.state_dict()
        >>> state["capacity"], state["seed"]
        (104, 3)
        """
        with self.lock:
            settings = {"capacity": self.capacity, "seed": self._settings.seed}
            return settings | self.position() | {"table": dump_table(self._table)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the record that `state_dict` described, slot for slot.

        All settings but these stay as this record was constructed.

        Raises:
            RecordError: if the state is damaged or belongs to a record of another capacity or
                seed; this record is then unchanged.

        >>> import numpy as np
        >>> record, resumed = LossRecord(capacity=100), LossRecord(capacity=100)
        >>> record.update(np.array([1]), np.array([0.25]))
        >>> resumed.load_state_dict(record.state_dict())
        >>> resumed.lookup(np.array([1])).losses.tolist()
        [0.25]
        """
        for name, mine in (("capacity", self.capacity), ("seed", self._settings.seed)):
            if (theirs := read_field(state, name, int)) != mine:
                raise RecordError(
                    f"the state is of a record with {name} {theirs}, this one has {mine}: "
                    f"construct it with {name}={theirs}"
                )
        with self.lock:
            self._oldest_change = 0
            before = self.position()
            self.load_position(state)
            try:
                load_table(self._table, read_field(state, "table", dict), self._ticks.last)
            except RecordError:
                self.load_position(before)
                raise

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
