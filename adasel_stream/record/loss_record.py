"""The loss record: what the last passes said of each instance, in constant memory."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from adasel_stream.keys import Ids, keys_of_ids
from adasel_stream.record.engine import Stamps, Window
from adasel_stream.record.inputs import float_rows, int_ids, ticks_of, versions_of
from adasel_stream.record.kept import Kept
from adasel_stream.record.known import Known
from adasel_stream.record.pending import PendingLabels
from adasel_stream.record.settings import check_settings

__all__ = ["LossRecord"]


class LossRecord(Kept):
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
        engine: "numpy", "numba", which is several times as fast and compiles for some three
            seconds at first use, or "auto" for numba where it is installed. Both give the same
            record.
        pending: predictions that wait for their labels, for `expect` and `join`.

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
        pending: PendingLabels | None = None,
    ) -> None:
        if not callable(clock):
            raise TypeError(f"clock must return seconds when called, got {type(clock).__name__}")
        settings = check_settings(capacity, decay, max_age_s, max_version_lag, seed)
        super().__init__(settings, clock, engine, pending)

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
        restored, with a warning. While a snapshot is written it takes up to 40 bytes of memory
        for each row of it, and at all times a bit for each slot. Close the record at the end;
        otherwise that happens when the program ends in peace.

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

        >>> record = LossRecord(capacity=100)
        >>> record.update(["a", "b"], np.array([0.5, np.nan]))
        >>> len(record), record.counts["rejected"]
        (1, 1)
        """
        rows = int_ids(ids)
        values = float_rows("losses", losses, len(rows))
        versions = self._versions if version is None else versions_of(version, len(rows))
        if self._warning_due:
            self._warn_closed()
        with self.lock:
            now = self._ticks.now()
            stamps = Stamps(now, ticks_of(age_s, len(rows), now), versions)
            self._record(rows, values, stamps)

    def lookup(self, ids: Ids) -> Known:
        """Return what is known of instances; a stale loss is not.

        Looking up does not make an id younger.

        Args:
            ids: int64, shape (b,), or b strings.

        Raises:
            RecordError: if ids have a wrong type.

        >>> record = LossRecord(capacity=100)
        >>> record.lookup(np.array([1, 2])).known.tolist(), record.counts["misses"]
        ([False, False], 2)
        """
        rows = int_ids(ids)
        with self.lock:
            settings = self._settings
            window = Window(
                self._ticks.now(), settings.max_age_s, self._version, settings.max_version_lag
            )
            answer, tally = self._engine.lookup(rows, window)
            self._counts["hits"] += tally.hits
            self._counts["stale"] += tally.stale
            self._counts["stale_version"] += tally.stale_version
            self._counts["misses"] += len(rows) - tally.hits - tally.stale
        return answer

    def expect(
        self,
        ids: Ids,
        predictions: npt.NDArray[np.floating[Any]],
        *,
        version: int | npt.NDArray[np.integer[Any]] | None = None,
        age_s: float | npt.NDArray[np.floating[Any]] = 0.0,
    ) -> None:
        """Keep predictions until `join` brings their labels.

        A later prediction of an id replaces the one before, unless it is older; of several in a
        batch the last. Predictions that are not finite are rejected and counted.

        Args:
            ids: int64, shape (b,), or b strings.
            predictions: floating point, shape (b,).
            version: version of the model that gave them, as for `update`.
            age_s: how long ago it gave them, as for `update`.

        Raises:
            ValueError: if the record was constructed without `pending`.
            RecordError: if ids and predictions do not match or have a wrong type.

        >>> import numpy as np
        >>> pending = PendingLabels(100, lambda p, y: np.abs(p - y), ttl_s=60)
        >>> record = LossRecord(capacity=100, pending=pending)
        >>> record.expect(["a"], np.array([0.25]))
        >>> record.pending.counts["expected"], len(record)
        (1, 0)
        """
        pending, rows = self._pending_labels(), int_ids(ids)
        values = float_rows("predictions", predictions, len(rows))
        versions = self._versions if version is None else versions_of(version, len(rows))
        with self.lock:
            now = self._ticks.now()
            stamps = Stamps(now, ticks_of(age_s, len(rows), now), versions)
            pending.expect(keys_of_ids(rows, self.seed), values, stamps)

    def join(self, ids: Ids, labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Turn labels into losses of the predictions that waited for them, and record those.

        A loss is as old as its prediction, and of its model version. All labels of an id that
        come in one batch join its one prediction, which then no longer waits.

        Args:
            ids: int64, shape (b,), or b strings.
            labels: shape (b, ...), handed on to the loss of `pending`.

        Returns:
            Which labels found a prediction, shape (b,).

        Raises:
            ValueError: if the record was constructed without `pending`.
            RecordError: if ids and labels do not match, or the loss did not return one loss for
                each label; nothing is recorded then, and the predictions go on waiting.

        >>> import numpy as np
        >>> pending = PendingLabels(100, lambda p, y: np.abs(p - y), ttl_s=60)
        >>> record = LossRecord(capacity=100, pending=pending)
        >>> record.expect(["a"], np.array([0.25]))
        >>> record.join(["b", "a"], np.array([1, 1])).tolist()
        [False, True]
        >>> record.lookup(["a"]).losses.tolist()
        [0.75]
        """
        pending, rows = self._pending_labels(), int_ids(ids)
        with self.lock:
            keys = keys_of_ids(rows, self.seed)
            joined = pending.match(keys, labels, self._ticks.now())
            self._record(rows[joined.found], joined.losses, joined.stamps)
            pending.settle(joined)
            self._note_joined(keys[joined.found])
        return joined.found

    def _pending_labels(self) -> PendingLabels:
        if self._pending is None:
            raise ValueError(
                "this record keeps no predictions: construct it with pending=PendingLabels(...)"
            )
        return self._pending
