"""The set-associative table: constant memory, 24 bytes a slot, numpy only.

Eight slots to a bucket. Keys and values lie in two planes, so that the eight keys of a bucket
are one 64-byte line, and a search for an unknown key reads nothing else.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.evicted import EVICTED_CELLS

__all__ = ["WAYS", "Table", "buckets_for"]

WAYS: Final = 8
# free slots of a table of one bucket could not be marked, see Table.clear
_MIN_BUCKETS: Final = 2
_TICK_WORD: Final = 2  # of the four words of a value
_LINE_BYTES: Final = 64
_LAST_KEY: Final = np.uint64(2**64 - 1)
# times a word with byte w set to 1 and the others 0, this has w in its top byte
_WAY_OF_BYTE: Final = np.uint64(sum(way << 8 * (WAYS - 1 - way) for way in range(WAYS)))


def buckets_for(capacity: int) -> int:
    """Return how many buckets have at least `capacity` slots, and at least two.

    >>> buckets_for(1), buckets_for(100)
    (2, 13)
    """
    return max(_MIN_BUCKETS, -(-capacity // WAYS))


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
        evicted: ages of losses that made room, as `read_ages` reads them.

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
        self.evicted: npt.NDArray[np.int64] = np.zeros(EVICTED_CELLS, np.int64)
        self.clear()

    @property
    def table_bytes(self) -> int:
        """Memory of all slots in bytes: 24 a slot, whatever they hold."""
        return int(self.keys.nbytes + self.values.nbytes)

    def clear(self) -> None:
        """Free every slot.

        Writing all of the memory also makes a table too large for the machine fail here, not
        hours later.
        """
        # A free slot's key must match no search. No 64-bit mark is no one's key, but a key is
        # only searched in its own bucket: 0 in the first, all ones in the last.
        self.keys[:] = 0
        self.keys[:WAYS] = _LAST_KEY
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

    def forget(self, slots: npt.NDArray[np.int64]) -> None:
        """Free distinct slots that are in use."""
        self.keys[slots] = np.where(slots < WAYS, _LAST_KEY, np.uint64(0))
        self._values[slots] = 0
        self.size -= len(slots)

    def slots_of(self, buckets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the slots of each bucket, shape (m, 8), int64."""
        return buckets[:, None] * WAYS + np.arange(WAYS)

    def ticks_of(self, buckets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """Return the ticks of each bucket's slots, shape (m, 8), uint32, 0 where free."""
        lines = self._value_lines.take(buckets, axis=0, mode="clip").view(np.uint32)
        return lines[:, _TICK_WORD::4]

    def entries(
        self,
        start: int,
        stop: int,
        since_tick: int,
        late: npt.NDArray[np.uint8] | None = None,
    ) -> Entries:
        """Copy the rows of slots in [start, stop) whose tick is at least `since_tick` and 1.

        Args:
            start: a multiple of 8 where there is `late`.
            stop: may be beyond the end.
            since_tick: see above.
            late: slots of which rows are copied in any case, a bit each, see `LateRows`.
        """
        ticks = self.values["tick"][start:stop]
        wanted = ticks >= max(since_tick, 1)
        if late is not None:
            bits = late[start // WAYS : -(-stop // WAYS)]
            wanted |= np.unpackbits(bits, count=len(ticks), bitorder="little").view(np.bool_)
            wanted &= ticks > 0
        slots = wanted.nonzero()[0]
        slots += start
        return Entries(self.keys.take(slots), self.read(slots))

    def entries_of(self, keys: npt.NDArray[np.uint64]) -> Entries:
        """Copy the rows of those distinct keys that the table holds."""
        slots, found = self.find(keys)
        return Entries(keys[found], self.read(slots[found]))

    def write(self, slots: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
        """Overwrite the values of distinct slots that are in use."""
        self._values[slots] = values.view(np.complex128)

    def fill(self, slots: npt.NDArray[np.int64], rows: Entries, used: int) -> None:
        """Overwrite distinct slots, of which `used` are in use."""
        self.keys[slots] = rows.keys
        self.write(slots, rows.values)
        self.size += len(slots) - used

    def oldest(
        self,
        buckets: npt.NDArray[np.int64],
        rank: npt.NDArray[np.int64],
        leaders: npt.NDArray[np.uint64],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
        """Return the rank-th oldest way of each bucket, int64, and its tick; free ways come first.

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


def _allocate(length: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Take memory that begins on a cache line, in huge pages where numpy gives them."""
    size_bytes = length * dtype.itemsize
    raw = np.empty(size_bytes + _LINE_BYTES, np.uint8)
    begin = -raw.ctypes.data % _LINE_BYTES
    return raw[begin : begin + size_bytes].view(dtype)
