"""The loss record: what the last passes said of each instance, in constant memory."""

import math
import threading
import time
from collections.abc import Callable
from operator import index
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.errors import RecordError
from adasel_stream.keys import ids_of_keys
from adasel_stream.record.entries import Entries, check_entries
from adasel_stream.record.inputs import finite_rows, keys_of, number, whole
from adasel_stream.record.known import Items, Known
from adasel_stream.record.merge import merge
from adasel_stream.record.placing import place
from adasel_stream.record.state import dump_table, load_table, read_cursors, read_field
from adasel_stream.record.table import MIN_BUCKETS, WAYS, Stamp, Table
from adasel_stream.record.ticks import Ticks
from adasel_stream.types import Ids

__all__ = ["LossRecord"]

_MAX_CAPACITY: Final = 2**34
_MAX_SEED: Final = 2**64 - 1
_VERSIONS: Final = 2**16
_COUNTS: Final = ("hits", "misses", "stale", "evicted", "dropped", "rejected")


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
        seed: in [0, 2**64); it decides which ids share a bucket.
        clock: returns seconds. A step backwards counts as no time passed. Which id makes room
            follows the clock, so a run that must be repeated bit for bit with a full record
            needs one that follows the data, such as the event time or a count of steps.

    Attributes:
        lock: may be taken again by the thread that holds it.
        cursors: how far the segments of each serving writer were applied, as their sequence and
            rows; whoever applies one moves the cursor under the same `lock`.

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
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        buckets = -(-whole("capacity", capacity, 1, _MAX_CAPACITY) // WAYS)
        self._seed = whole("seed", seed, 0, _MAX_SEED)
        self._decay = number("decay", decay)
        if not 0 <= self._decay < 1:
            raise ValueError(
                f"decay must be in [0, 1), got {decay}: it is what one new loss leaves of the "
                "old average"
            )
        self._max_age_s = math.inf if max_age_s is None else number("max_age_s", max_age_s)
        if not self._max_age_s > 0:
            raise ValueError(
                f"max_age_s must be a positive number of seconds, got {max_age_s}: "
                "pass None for no limit"
            )
        if not callable(clock):
            raise TypeError(f"clock must return seconds when called, got {type(clock).__name__}")
        self._table = Table(max(MIN_BUCKETS, buckets))
        self._clock = clock
        self._ticks = Ticks(clock)
        self._counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)
        self.cursors: dict[str, tuple[int, int]] = {}
        self.lock = threading.RLock()

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
        return self._seed

    @property
    def tick(self) -> int:
        """Whole seconds of the record's time, from 1, by a new reading of the clock."""
        with self.lock:
            return self._ticks.now()

    @property
    def counts(self) -> dict[str, int]:
        """Rows counted since the beginning, by what became of them.

        `hits`, `misses` and `stale` add up to the rows looked up. `evicted` ids made room for
        others, `dropped` ids found no room because their batch brought more than eight new ones
        for a bucket, `rejected` rows had a loss that is not a finite float32.
        """
        return dict(self._counts)

    def update(self, ids: Ids, losses: npt.NDArray[np.floating[Any]], *, version: int = 0) -> None:
        """Record losses.

        Several losses of one id count as one observation of their mean with the weight of all,
        so the order of rows does not matter: n losses leave `decay**n` of the old average.
        Losses that are not finite are rejected and counted.

        Args:
            ids: int64, shape (b,), or b strings, each of which stands for its `instance_ids`.
            losses: floating point, shape (b,); beyond float32's range counts as infinite.
            version: version of the model that gave the losses; kept modulo 65,536.

        Raises:
            RecordError: if ids and losses do not match or have a wrong type.

        >>> import numpy as np
        >>> record = LossRecord(capacity=100)
        >>> record.update(["a", "b"], np.array([0.5, np.nan]))
        >>> len(record), record.counts["rejected"]
        (1, 1)
        """
        keys = keys_of(ids, self._seed)
        keys, values, rejected = finite_rows(keys, losses)
        with self.lock:
            stamp = Stamp(self._ticks.now(), index(version) % _VERSIONS)
            self._counts["rejected"] += rejected
            if len(keys) == 0:
                return
            outcome = self._table.upsert(merge(keys, values), stamp, self._decay)
            self._counts["evicted"] += outcome.evicted
            self._counts["dropped"] += outcome.dropped

    def lookup(self, ids: Ids) -> Known:
        """Return what is known of instances; a loss older than `max_age_s` is not.

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
        keys = keys_of(ids, self._seed)
        with self.lock:
            slots, found = self._table.find(keys)
            values = self._table.read(slots)
            age_s = np.uint32(self._ticks.now()) - values["tick"]
            known = found & (age_s <= self._max_age_s)
            hits, held = int(np.count_nonzero(known)), int(np.count_nonzero(found))
            self._counts["hits"] += hits
            self._counts["stale"] += held - hits
            self._counts["misses"] += len(keys) - held
        nothing = np.float32(0)
        return Known(
            losses=np.where(known, values["last"], nothing),
            known=known,
            age_s=np.where(known, age_s.astype(np.float32), np.float32(np.inf)),
            ema=np.where(known, values["ema"], nothing),
        )

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
            ids=ids_of_keys(keys, self._seed),
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
            return place(self._table, entries).kept

    def position(self) -> dict[str, Any]:
        """Describe what a record knows apart from its rows: counts, time and cursors.

        >>> sorted(LossRecord(capacity=100).position())
        ['counts', 'cursors', 'ticks']
        """
        with self.lock:
            return {
                "counts": dict(self._counts),
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
        cursors = read_cursors(state)
        ticks = Ticks(self._clock)
        ticks.load_state_dict(read_field(state, "ticks", dict))
        with self.lock:
            self._ticks, self._counts, self.cursors = ticks, counts, cursors

    def state_dict(self) -> dict[str, Any]:
        """Describe the record exactly: arrays of the slots in use, numbers and strings.

        >>> record = LossRecord(capacity=100, seed=3)
        >>> state = record.state_dict()
        >>> state["capacity"], state["seed"]
        (104, 3)
        """
        with self.lock:
            settings = {"capacity": self.capacity, "seed": self._seed}
            return settings | self.position() | {"table": dump_table(self._table)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the record that `state_dict` described, slot for slot.

        `decay`, `max_age_s` and `clock` stay as this record was constructed.

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
        for name, mine in (("capacity", self.capacity), ("seed", self._seed)):
            if (theirs := read_field(state, name, int)) != mine:
                raise RecordError(
                    f"the state is of a record with {name} {theirs}, this one has {mine}: "
                    f"construct it with {name}={theirs}"
                )
        with self.lock:
            before = self.position()
            self.load_position(state)
            try:
                load_table(self._table, read_field(state, "table", dict), self._ticks.last)
            except RecordError:
                self.load_position(before)
                raise
