"""Put rows that come with ticks of their own into a table: in each bucket the newest stay."""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from adasel_stream.record.entries import Entries
from adasel_stream.record.merge import bucket_first, bucket_order, run_begins
from adasel_stream.record.table import WAYS, Table

__all__ = ["Placed", "place"]

_NO_WAY: Final = 0
# row m: the ways whose bit is set in m, lowest first; bit 7 is way 0, as np.packbits has it
_WAYS_OF_MASK: Final = np.array(
    [
        ([way for way in range(WAYS) if mask >> (WAYS - 1 - way) & 1] + [_NO_WAY] * WAYS)[:WAYS]
        for mask in range(1 << WAYS)
    ],
    np.int64,
)


class Placed(NamedTuple):
    """What became of rows: numbers of distinct keys.

    Attributes:
        kept: rows that are in the table now; one that met a newer row of its key is not.
        lost: keys, of the batch or of the table, that are in the table no more.
    """

    kept: int
    lost: int


def place(table: Table, entries: Entries) -> Placed:
    """Keep in each bucket the eight newest of the rows there and the rows that come.

    A row replaces that of its key if it is not older. What a table holds in the end does not
    depend on the order in which batches come, unless two rows have the same key and tick: then
    the later stays. Which slot of its bucket a row takes does depend on it.

    Args:
        table: where to; its lock is the caller's affair.
        entries: valid rows, left unchanged; a key may come more than once.

    >>> from adasel_stream.record.entries import VALUE
    >>> rows = Entries(np.array([5, 6], np.uint64), np.ones(2, VALUE))
    >>> table = Table(buckets=2)
    >>> place(table, rows), table.size
    (Placed(kept=2, lost=0), 2)
    """
    if len(entries.keys) == 0:
        return Placed(kept=0, lost=0)
    rows = _newest_of_each(entries)
    slots, found = table.find(rows.keys)
    held = found.nonzero()[0]
    newer = held[rows.values["tick"].take(held) >= table.read(slots.take(held))["tick"]]
    table.write(slots.take(newer), _take(rows, newer).values)
    new = (~found).nonzero()[0]
    before = table.size
    placed = _place_new(table, slots.take(new) // WAYS, _take(rows, new))
    return Placed(kept=len(newer) + placed, lost=before + len(new) - table.size)


def _take(rows: Entries, index: npt.NDArray[np.int64]) -> Entries:
    return Entries(rows.keys.take(index), rows.values.take(index))


def _newest_of_each(entries: Entries) -> Entries:
    """Return one row for each key, in bucket order; of equal ticks the row that came last."""
    order, repeats = bucket_order(entries.keys)
    rows = _take(entries, order)
    if not repeats:
        return rows
    begins = run_begins(rows.keys)
    # within a run, rows stand as they came, and a stable sort by tick leaves equal ones so
    by_tick = np.lexsort((rows.values["tick"], begins.cumsum()))
    last_of_run = by_tick[np.append(begins[1:], True)]
    return _take(rows, last_of_run)


def _place_new(table: Table, buckets: npt.NDArray[np.int64], rows: Entries) -> int:
    """Place rows whose keys the table does not hold; return how many found room."""
    rank, run, starts = _ranks(buckets)
    free = table.ticks_of(buckets.take(starts)) == 0
    lengths = np.diff(starts, append=len(buckets))
    fits = (np.count_nonzero(free, axis=1) >= lengths).take(run)
    easy, crowded = fits.nonzero()[0], (~fits).nonzero()[0]
    masks = np.packbits(free, axis=1)[:, 0]
    ways = _WAYS_OF_MASK[masks.take(run.take(easy)), rank.take(easy)]
    table.fill(buckets.take(easy) * WAYS + ways, _take(rows, easy), used=0)
    return len(easy) + _replace_oldest(table, buckets.take(crowded), _take(rows, crowded))


def _replace_oldest(table: Table, buckets: npt.NDArray[np.int64], rows: Entries) -> int:
    """Let the newest row of a bucket meet its oldest slot, the next the next oldest, and so on.

    Where ticks are equal, the key first in bucket order counts as the newer.
    """
    order = np.lexsort((bucket_first(rows.keys), ~rows.values["tick"], buckets))
    rank, run, _ = _ranks(buckets.take(order))
    inside = (rank < WAYS).nonzero()[0]
    order, rank, run = order.take(inside), rank.take(inside), run.take(inside)
    lines = table.slots_of(buckets.take(order[rank == 0]))
    keys, ticks = table.keys[lines], table.values["tick"][lines]
    oldest = np.lexsort((~bucket_first(keys), ticks), axis=1)[run, rank]
    rows, slots = _take(rows, order), lines[run, oldest]
    new, old = rows.values["tick"], ticks[run, oldest]
    first = bucket_first(rows.keys) < bucket_first(keys[run, oldest])
    wins = ((new > old) | ((new == old) & first)).nonzero()[0]
    used = int(np.count_nonzero(old.take(wins)))
    table.fill(slots.take(wins), _take(rows, wins), used)
    return len(wins)


def _ranks(
    buckets: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return each row's place in its run of equal buckets, the run's number, and runs' starts."""
    begins = run_begins(buckets)
    starts = begins.nonzero()[0]
    run = begins.cumsum() - 1
    return np.arange(len(buckets)) - starts.take(run), run, starts
