"""The set-associative table: constant memory, 24 bytes a slot, numpy only.

Eight slots to a bucket. Keys and values lie in two planes, so that the eight keys of a bucket
are one 64-byte line, and a search for an unknown key reads nothing else.
"""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.merge import Merged, run_begins

__all__ = ["MIN_BUCKETS", "WAYS", "Outcome", "Stamp", "Table"]

WAYS: Final = 8
# free slots of a table of one bucket could not be marked, see Table.clear
MIN_BUCKETS: Final = 2
_TICK_WORD: Final = 2  # of the four words of a value
_LINE_BYTES: Final = 64
_MAX_COUNT: Final = 2**16 - 1
# times a word with byte w set to 1 and the others 0, this has w in its top byte
_WAY_OF_BYTE: Final = np.uint64(sum(way << 8 * (WAYS - 1 - way) for way in range(WAYS)))


class Stamp(NamedTuple):
    """What all rows of one batch share: tick in [1, 2**32), model version in [0, 2**16)."""

    tick: int
    version: int


class Outcome(NamedTuple):
    """What became of the keys that a batch brought first: numbers of distinct keys."""

    evicted: int
    dropped: int


class Table:
    """Slots for losses, found by key; a full bucket gives up its oldest.

    A slot is free while its tick is 0. Not to be used by two threads at once.

    Args:
        buckets: number of buckets, in [2, 2**32).

    Attributes:
        keys: shape (capacity,), uint64.
        values: shape (capacity,), dtype VALUE: ema and last loss float32, tick uint32, count
            uint16 (saturating), version uint16.
        size: number of slots in use.

    >>> table = Table(buckets=2)
    >>> table.values.shape, table.size
    ((16,), 0)
    """

    def __init__(self, buckets: int) -> None:
        self._buckets = np.uint64(buckets)
        self.keys: npt.NDArray[np.uint64] = _allocate(buckets * WAYS, np.dtype(np.uint64))
        self.values: npt.NDArray[Any] = _allocate(buckets * WAYS, VALUE)
        self._key_lines = self.keys.reshape(buckets, WAYS)
        self._value_lines = self.values.view(np.uint64).reshape(buckets, 2 * WAYS)
        # numpy moves 16-byte numbers faster than structures of 16 bytes
        self._values = self.values.view(np.complex128)
        self.clear()

    def clear(self) -> None:
        """Free every slot.

        Writing all of the memory also makes a table too large for the machine fail here, not
        hours later.
        """
        # A free slot's key must match no search. No 64-bit mark is no one's key, but a key is
        # only searched in its own bucket: 0 in the first, all ones in the last.
        self.keys[:] = 0
        self.keys[:WAYS] = np.iinfo(np.uint64).max
        self._values[:] = 0
        self.size = 0

    def buckets_of(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Return the bucket of each key, shape (b,), int64."""
        bits = keys << np.uint64(10)
        bits >>= np.uint64(32)
        bits *= self._buckets
        bits >>= np.uint64(32)
        return bits.view(np.int64)

    def find(
        self, keys: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Search keys.

        Args:
            keys: shape (b,), in any order.

        Returns:
            The slot of each key, or the first slot of its bucket, shape (b,), int64; and whether
            the table holds the key, shape (b,).
        """
        slots = self.buckets_of(keys)
        lines = self._key_lines.take(slots, axis=0, mode="clip")
        matches = (lines == keys[:, None]).view(np.dtype("<u8"))[:, 0]
        slots *= WAYS
        slots += ((matches * _WAY_OF_BYTE) >> np.uint64(56)).view(np.int64)
        return slots, matches != 0

    def read(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return copies of the values in `slots`, shape (b,), dtype VALUE."""
        return self._values.take(slots, mode="clip").view(VALUE)

    def slots_of(self, buckets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the slots of each bucket, shape (m, 8), int64."""
        return buckets[:, None] * WAYS + np.arange(WAYS)

    def ticks_of(self, buckets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Return the ticks of each bucket's slots, shape (m, 8), uint32, 0 where free."""
        lines = self._value_lines.take(buckets, axis=0, mode="clip").view(np.uint32)
        return lines[:, _TICK_WORD::4]

    def entries(self, start: int, stop: int, since_tick: int) -> Entries:
        """Copy the rows of slots in [start, stop) whose tick is at least `since_tick` and 1."""
        ticks = self.values["tick"][start:stop]
        slots = (ticks >= max(since_tick, 1)).nonzero()[0]
        slots += start
        return Entries(self.keys.take(slots), self.read(slots))

    def write(self, slots: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
        """Overwrite the values of distinct slots that are in use."""
        self._values[slots] = values.view(np.complex128)

    def fill(self, slots: npt.NDArray[np.int64], rows: Entries) -> int:
        """Overwrite distinct slots, free ones or not; return how many were in use."""
        used = int(np.count_nonzero(self.read(slots)["tick"]))
        self.keys[slots] = rows.keys
        self.write(slots, rows.values)
        self.size += len(slots) - used
        return used

    def upsert(self, rows: Merged, stamp: Stamp, decay: float) -> Outcome:
        """Update the keys that the table holds, then insert the others.

        Args:
            rows: distinct keys in bucket order.
            stamp: the batch's tick and version.
            decay: what one new loss leaves of the old average, in [0, 1).
        """
        slots, found = self.find(rows.keys)
        if found.all():
            self._revise(slots, rows, stamp, decay)
            return Outcome(evicted=0, dropped=0)
        known, new = found.nonzero()[0], (~found).nonzero()[0]
        self._revise(slots.take(known), rows.take(known), stamp, decay)
        return self._insert(slots.take(new) // WAYS, rows.take(new), stamp)

    def _revise(
        self, slots: npt.NDArray[np.int64], rows: Merged, stamp: Stamp, decay: float
    ) -> None:
        """Move averages towards new losses; n losses at once leave decay**n of the old average."""
        old = self.read(slots)
        powers = decay ** np.arange(rows.counts.max(initial=0) + 1, dtype=np.float64)
        ema = rows.losses + powers.take(rows.counts) * (old["ema"] - rows.losses)
        self._write(slots, ema, rows.losses, old["count"] + rows.counts, stamp)

    def _insert(self, buckets: npt.NDArray[np.int64], rows: Merged, stamp: Stamp) -> Outcome:
        """Give each new key the oldest slot of its bucket that no new key before it took."""
        begins = run_begins(buckets)
        starts = begins.nonzero()[0].take(begins.cumsum() - 1)
        rank = np.arange(len(starts)) - starts
        leaders = rows.keys.take(starts)
        dropped = int(np.count_nonzero(rank >= WAYS))
        if dropped:
            kept = (rank < WAYS).nonzero()[0]
            rows, buckets = rows.take(kept), buckets.take(kept)
            rank, leaders = rank.take(kept), leaders.take(kept)
        ways, ticks = self._oldest(buckets, rank, leaders)
        slots = buckets * WAYS + ways
        self.keys[slots] = rows.keys
        self._write(slots, rows.losses, rows.losses, rows.counts, stamp)
        evicted = int(np.count_nonzero(ticks))
        self.size += len(slots) - evicted
        return Outcome(evicted, dropped)

    def _oldest(
        self,
        buckets: npt.NDArray[np.int64],
        rank: npt.NDArray[np.int64],
        leaders: npt.NDArray[np.uint64],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Return the rank-th oldest way of each bucket, and its tick; free ways come first.

        Equal ticks are common when batches come faster than seconds. Replacing the lowest way
        each time would leave the other seven to grow old, so the lowest bits of `leaders`, one
        key for each bucket, turn the order of equal ticks.
        """
        turn = leaders & np.uint64(WAYS - 1)
        # one long row a way: one short row a bucket would take three times as long
        ages = np.ascontiguousarray(self.ticks_of(buckets)).T.astype(np.uint64, order="C")
        ages <<= np.uint64(3)
        ages |= np.arange(WAYS, dtype=np.uint64)[:, None]
        ages ^= turn
        chosen = ages.min(axis=0)
        later = rank.nonzero()[0]
        chosen[later] = np.sort(ages.T[later], axis=1)[np.arange(len(later)), rank[later]]
        ways = (chosen & np.uint64(WAYS - 1)) ^ turn
        return ways.view(np.int64), chosen >> np.uint64(3)

    def _write(
        self,
        slots: npt.NDArray[np.int64],
        ema: npt.NDArray[np.float64],
        losses: npt.NDArray[np.float64],
        counts: npt.NDArray[np.int64],
        stamp: Stamp,
    ) -> None:
        """Overwrite the values of distinct slots."""
        values = np.empty(len(slots), VALUE)
        values["ema"], values["last"] = ema, losses
        values["tick"], values["version"] = stamp
        values["count"] = np.minimum(counts, _MAX_COUNT)
        self.write(slots, values)


def _allocate(length: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Take memory that begins on a cache line, in huge pages where numpy gives them."""
    size_bytes = length * dtype.itemsize
    raw = np.empty(size_bytes + _LINE_BYTES, np.uint8)
    begin = -raw.ctypes.data % _LINE_BYTES
    return raw[begin : begin + size_bytes].view(dtype)
