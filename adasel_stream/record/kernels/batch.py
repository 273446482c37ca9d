"""Find the rows of a batch that belong together, without sorting it."""

from typing import Any, Final

import numpy as np

from adasel_stream.record.kernels.search import FACTOR, NONE, inlined

__all__ = ["VERSION_BITS", "link_equal", "stamp_at", "sum_up"]

VERSION_BITS: Final = np.uint64(16)
"""Bits of a stamp below its tick."""


@inlined
def link_equal(words: Any) -> Any:
    """Link rows of equal words.

    Returns:
        The first row of each word; and for each row another row of its word, from the first row
        on through all of them, or NONE at the end.
    """
    bits = 1
    while 1 << bits < 2 * len(words):
        bits += 1
    shift, last = np.uint64(64 - bits), (1 << bits) - 1
    cells = np.full(1 << bits, NONE, np.int32)
    firsts, links = np.empty(len(words), np.int32), np.full(len(words), NONE, np.int32)
    count = 0
    for row in range(len(words)):
        cell = np.int64((words[row] * FACTOR) >> shift)
        while cells[cell] != NONE and words[cells[cell]] != words[row]:
            cell = (cell + 1) & last
        first = cells[cell]
        if first == NONE:
            cells[cell] = row
            firsts[count] = row
            count += 1
        else:
            links[row] = links[first]
            links[first] = row
    return firsts[:count], links


@inlined
def stamp_at(row: Any, ticks: Any, versions: Any) -> Any:
    """Return a row's stamp: a tick above 16 bits of version."""
    tick = ticks[row if len(ticks) > 1 else 0]
    version = versions[row if len(versions) > 1 else 0]
    return np.uint64(tick) << VERSION_BITS | np.uint64(version)


@inlined
def _sort(bits: Any) -> None:
    """Sort words in place by Shell's method, which compiles in a tenth of numpy's sort's time."""
    gap = len(bits) // 2
    while gap > 0:
        for begin in range(gap, len(bits)):
            word, place = bits[begin], begin
            while place >= gap and bits[place - gap] > word:
                bits[place] = bits[place - gap]
                place -= gap
            bits[place] = word
        gap = 1 if gap == 2 else gap * 5 // 11


@inlined
def sum_up(first: Any, links: Any, rows: Any, losses: Any, ticks: Any, versions: Any) -> Any:
    """Return the mean loss of the rows of one key, their number and their largest stamp.

    A floating-point sum depends on its order: rows are added in the order of their bits.
    """
    count, row, stamp = 0, first, np.uint64(0)
    while row != NONE:
        stamp = max(stamp, stamp_at(rows[row], ticks, versions))
        count, row = count + 1, links[row]
    ordered, row = np.empty(count, np.float32), first
    for place in range(count):
        ordered[place], row = losses[rows[row]], links[row]
    _sort(ordered.view(np.uint32))
    total = 0.0
    for place in range(count):
        total += np.float64(ordered[place])
    return total / count, count, stamp
