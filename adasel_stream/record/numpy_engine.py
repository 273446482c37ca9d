"""The record's arithmetic in numpy: always there, a batch at a time."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.keys import keys_of_ids
from adasel_stream.record.engine import Outcome, Stamps, Tally, Window
from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.evicted import count_ages
from adasel_stream.record.known import Known
from adasel_stream.record.merge import Merged, merge, run_begins
from adasel_stream.record.settings import NO_AGE_LIMIT_S, NO_LAG_LIMIT
from adasel_stream.record.table import WAYS, Table

__all__ = ["NumpyEngine"]

_MAX_COUNT: Final = 2**16 - 1
_VERSION_BITS: Final = np.uint64(16)
_VERSION_MASK: Final = np.uint64(2**16 - 1)


class NumpyEngine:
    """Computes on one table with numpy.

    Args:
        table: the table; its lock is the caller's affair.
        seed: in [0, 2**64), decides which ids share a bucket.

    >>> NumpyEngine(Table(buckets=2), seed=0).name
    'numpy'
    """

    name = "numpy"

    def __init__(self, table: Table, seed: int) -> None:
        self._table = table
        self._seed = seed

    def lookup(self, ids: npt.NDArray[np.int64], window: Window) -> tuple[Known, Tally]:
        """Return what the table holds of ids."""
        slots, found = self._table.find(keys_of_ids(ids, self._seed))
        values = self._table.read(slots)
        ages_s = np.uint32(window.now) - values["tick"]
        fresh = known = found
        if window.max_age_s < NO_AGE_LIMIT_S:
            fresh = known = found & (ages_s <= np.uint32(window.max_age_s))
        if window.max_version_lag < NO_LAG_LIMIT:
            ahead = values["version"] - np.uint16(window.version)
            known = fresh & (np.minimum(ahead, -ahead) <= window.max_version_lag)
        held, young, hits = (int(np.count_nonzero(rows)) for rows in (found, fresh, known))
        nothing = np.float32(0)
        everything = hits == len(ids)
        answer = Known(
            losses=values["last"].copy()
            if everything
            else np.where(known, values["last"], nothing),
            known=known,
            age_s=np.where(known, ages_s.astype(np.float32), np.float32(np.inf)),
            ema=values["ema"].copy() if everything else np.where(known, values["ema"], nothing),
        )
        return answer, Tally(hits, stale=held - hits, stale_version=young - hits)

    def update(
        self,
        ids: npt.NDArray[np.int64],
        losses: npt.NDArray[np.float32],
        stamps: Stamps,
        decay: float,
    ) -> Outcome:
        """Record losses; first move the averages of known keys, then insert the others."""
        words = stamps.ticks.astype(np.uint64) << _VERSION_BITS | stamps.versions
        finite = np.isfinite(losses)
        rejected = len(ids) - int(np.count_nonzero(finite))
        if rejected:
            ids, losses = ids[finite], losses[finite]
            words = words if len(words) == 1 else words[finite]
        if len(ids) == 0:
            return Outcome(rejected, evicted=0, dropped=0)
        rows = merge(keys_of_ids(ids, self._seed), losses, words)
        slots, found = self._table.find(rows.keys)
        if found.all():
            self._revise(slots, rows, decay)
            return Outcome(rejected, evicted=0, dropped=0)
        known, new = found.nonzero()[0], (~found).nonzero()[0]
        self._revise(slots.take(known), rows.take(known), decay)
        evicted, dropped = self._insert(slots.take(new) // WAYS, rows.take(new), stamps.now)
        return Outcome(rejected, evicted, dropped)

    def _revise(self, slots: npt.NDArray[np.int64], rows: Merged, decay: float) -> None:
        """Move averages towards new losses; n losses at once leave decay**n of the old average.

        A loss older than the one that is there changes nothing else but the count.
        """
        old = self._table.read(slots)
        ema = rows.losses + _powers(decay, rows.counts) * (old["ema"] - rows.losses)
        values = _values(rows, ema, old["count"] + rows.counts)
        older = values["tick"] < old["tick"]
        if older.any():
            for name in ("last", "tick", "version"):
                values[name][older] = old[name][older]
        self._table.write(slots, values)

    def _insert(self, buckets: npt.NDArray[np.int64], rows: Merged, now: int) -> tuple[int, int]:
        """Let the newest of a bucket's new keys take its oldest slot, and so on.

        Returns:
            The numbers of keys that made room, and of new ones that found none: more than eight
            came for a bucket, or all that it holds is younger.
        """
        if len(rows.stamps) > 1:
            order = np.lexsort((~(rows.stamps >> _VERSION_BITS), buckets))
            buckets, rows = buckets.take(order), rows.take(order)
        begins = run_begins(buckets)
        starts = begins.nonzero()[0].take(begins.cumsum() - 1)
        rank = np.arange(len(starts)) - starts
        came, leaders = len(rank), rows.keys.take(starts)
        if rank.max() >= WAYS:
            kept = (rank < WAYS).nonzero()[0]
            rows, buckets = rows.take(kept), buckets.take(kept)
            rank, leaders = rank.take(kept), leaders.take(kept)
        ways, ticks = self._table.oldest(buckets, rank, leaders)
        slots = buckets * WAYS + ways
        values = _values(rows, rows.losses, rows.counts)
        wins = values["tick"] >= ticks
        if not wins.all():
            slots, ticks, rows, values = (
                slots[wins],
                ticks[wins],
                rows.take(wins.nonzero()[0]),
                values[wins],
            )
        evicted = ticks[ticks > 0]
        count_ages(self._table.evicted, now - evicted.view(np.int64))
        self._table.fill(slots, Entries(rows.keys, values), used=len(evicted))
        return len(evicted), came - len(slots)


def _powers(decay: float, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return decay**n for each count, multiplied out as the other engine does."""
    powers = np.full(counts.max(initial=0) + 1, decay)
    powers[0] = 1
    return np.multiply.accumulate(powers).take(counts)


def _values(
    rows: Merged, ema: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    values = np.empty(len(rows.keys), VALUE)
    values["ema"], values["last"] = ema, rows.losses
    values["tick"], values["version"] = rows.stamps >> _VERSION_BITS, rows.stamps & _VERSION_MASK
    values["count"] = np.minimum(counts, _MAX_COUNT)
    return values
