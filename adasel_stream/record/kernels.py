"""Loops over a record's table for numba to compile: slot for slot what the numpy engine does.

Memory is far away: each loop over rows is cut into blocks, and goes over a block once to ask for
the cache lines of its keys, once to search them and ask for those of its values, and once to use
them. Rows of one key, and new keys of one bucket, are linked to lists by a hash table of the
batch, which costs less than sorting.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # it ships no types
from numba.core import cgutils
from numba.extending import intrinsic

from adasel_stream.record.entries import VALUE
from adasel_stream.record.evicted import EVICTED_AGE_BOUNDS_S
from adasel_stream.record.table import WAYS

__all__ = ["Compiled", "compiled"]

# numba is typed in part only
_types: Any = numba.types
_codegen: Any = cgutils
_BLOCK: Final = 128
_NONE: Final = -1
_MAX_COUNT: Final = 2**16 - 1
# numba turns a uint64 beside a plain integer into a float
_FACTOR_1, _FACTOR_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_MIX_SHIFT, _WORD_HALF, _LAST_WAY = np.uint64(33), np.uint64(32), np.uint64(WAYS - 1)
_SHARD_BITS, _BITS_BELOW_SHARD, _WAY_BITS = np.uint64(10), np.uint64(54), np.uint64(3)
_VERSION_BITS, _VERSION_MASK = np.uint64(16), np.uint64(2**16 - 1)
_LATEST = np.uint64(2**64 - 1)
_NEW: Final = np.dtype([("key", "u8"), ("stamp", "u8"), ("mean", "f8"), ("losses", "i8")])


class Compiled(NamedTuple):
    """The compiled loops.

    Attributes:
        lookup: takes ids, salt, keys, values, the fields of `Window` and the arrays of `Known`
            to fill; returns the fields of `Tally`.
        update: takes ids, losses, the fields of `Stamps`, decay, salt, keys, values and counts
            of evicted ages; returns the fields of `Outcome` and the number of slots filled.
    """

    lookup: Callable[..., tuple[int, int, int]]
    update: Callable[..., tuple[int, int, int, int]]


@cache
def compiled() -> Compiled:
    """Compile for the types that the engine passes, once in a process.

    >>> compiled() is compiled()
    True
    """
    int64, uint64, float32 = _types.int64, _types.uint64, _types.float32
    planes = (uint64[::1], _types.Array(numba.from_dtype(VALUE), 1, "C"))
    answer = (float32[::1], _types.boolean[::1], float32[::1], float32[::1])
    lookup = _types.UniTuple(int64, 3)(_given(int64), uint64, *planes, *[int64] * 4, *answer)
    stamps = (int64, _given(_types.uint32), _given(_types.uint16))
    update = _types.UniTuple(int64, 4)(
        *(_given(int64), _given(float32), *stamps, _types.float64, uint64, *planes, int64[::1])
    )
    return Compiled(numba.njit([lookup])(_lookup), numba.njit([update])(_update))


def _given(item: Any) -> Any:
    """Return the type of a caller's array, which may be read-only."""
    return _types.Array(item, 1, "C", readonly=True)


def _prefetch_line(_typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of an element."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        line = builder.bitcast(builder.gep(data, [args[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = _codegen.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [line, word(0), word(3), word(1)])  # read, keep, data
        return context.get_dummy_value()

    return _types.void(array, _types.intp), generate


_prefetch: Any = intrinsic(_prefetch_line)


@numba.njit
def _key_of(id_: Any, salt: Any) -> Any:
    """Mix an id, as `keys_of_ids` does."""
    bits = np.uint64(id_) ^ salt
    bits = (bits ^ (bits >> _MIX_SHIFT)) * _FACTOR_1
    bits = (bits ^ (bits >> _MIX_SHIFT)) * _FACTOR_2
    return bits ^ (bits >> _MIX_SHIFT)


@numba.njit
def _bucket_of(key: Any, buckets: Any) -> Any:
    """Return a key's bucket, as `Table.buckets_of` does."""
    return np.int64((((key << _SHARD_BITS) >> _WORD_HALF) * buckets) >> _WORD_HALF)


@numba.njit
def _find(keys: Any, key: Any, bucket: Any) -> Any:
    """Return the slot of a key, or _NONE."""
    found = _NONE
    for way in range(WAYS):  # without leaving early: a branch that cannot be foreseen costs more
        slot = bucket * WAYS + way
        found = slot if keys[slot] == key else found
    return found


def _lookup(
    ids: Any, salt: Any, keys: Any, values: Any,
    now: Any, max_age_s: Any, version: Any, max_version_lag: Any,
    losses: Any, known: Any, age_s: Any, ema: Any,
) -> Any:  # fmt: skip
    """Search ids, and fill the arrays of an answer."""
    buckets = np.uint64(len(keys) // WAYS)
    batch, slots = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.int64)
    hits, stale, stale_version = 0, 0, 0
    for start in range(0, len(ids), _BLOCK):
        rows = min(_BLOCK, len(ids) - start)
        for row in range(rows):
            batch[row] = _key_of(ids[start + row], salt)
            _prefetch(keys, _bucket_of(batch[row], buckets) * WAYS)
        for row in range(rows):
            slots[row] = _find(keys, batch[row], _bucket_of(batch[row], buckets))
            _prefetch(values, max(slots[row], 0))
        for row in range(rows):
            held = slots[row] != _NONE
            value = values[max(slots[row], 0)]
            age = now - np.int64(value.tick)
            ahead = (np.int64(value.version) - version) & 0xFFFF
            young = held and age <= max_age_s
            hit = young and min(ahead, 0x10000 - ahead) <= max_version_lag
            losses[start + row] = value.last if hit else np.float32(0)
            known[start + row] = hit
            age_s[start + row] = np.float32(age) if hit else np.float32(np.inf)
            ema[start + row] = value.ema if hit else np.float32(0)
            hits += hit
            stale += held and not hit
            stale_version += young and not hit
    return hits, stale, stale_version


@numba.njit
def _link(words: Any) -> Any:
    """Link rows of equal words.

    Returns:
        The first row of each word; and for each row another row of its word, from the first row
        on through all of them, or _NONE at the end.
    """
    bits = 1
    while 1 << bits < 2 * len(words):
        bits += 1
    shift, last = np.uint64(64 - bits), (1 << bits) - 1
    cells = np.full(1 << bits, _NONE, np.int32)
    firsts, links = np.empty(len(words), np.int32), np.full(len(words), _NONE, np.int32)
    count = 0
    for row in range(len(words)):
        cell = np.int64((words[row] * _FACTOR_1) >> shift)
        while cells[cell] != _NONE and words[cells[cell]] != words[row]:
            cell = (cell + 1) & last
        first = cells[cell]
        if first == _NONE:
            cells[cell] = row
            firsts[count] = row
            count += 1
        else:
            links[row] = links[first]
            links[first] = row
    return firsts[:count], links


@numba.njit
def _stamp_at(row: Any, ticks: Any, versions: Any) -> Any:
    """Return a row's stamp: a tick above 16 bits of version."""
    tick = ticks[row if len(ticks) > 1 else 0]
    version = versions[row if len(versions) > 1 else 0]
    return np.uint64(tick) << _VERSION_BITS | np.uint64(version)


@numba.njit
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


@numba.njit
def _sum_up(first: Any, links: Any, rows: Any, losses: Any, ticks: Any, versions: Any) -> Any:
    """Return the mean loss of the rows of one key, their number and their largest stamp.

    A floating-point sum depends on its order: rows are added in the order of their bits.
    """
    count, row, stamp = 0, first, np.uint64(0)
    while row != _NONE:
        stamp = max(stamp, _stamp_at(rows[row], ticks, versions))
        count, row = count + 1, links[row]
    ordered, row = np.empty(count, np.float32), first
    for place in range(count):
        ordered[place], row = losses[rows[row]], links[row]
    _sort(ordered.view(np.uint32))
    total = 0.0
    for place in range(count):
        total += np.float64(ordered[place])
    return total / count, count, stamp


@numba.njit
def _write(values: Any, slot: Any, mean: Any, stamp: Any) -> None:
    """Stamp a slot with a loss."""
    values[slot].last = np.float32(mean)
    values[slot].tick = np.uint32(stamp >> _VERSION_BITS)
    values[slot].version = np.uint16(stamp & _VERSION_MASK)


@numba.njit
def _revise(values: Any, slot: Any, mean: Any, count: Any, stamp: Any, decay: Any) -> None:
    """Move a slot's average towards a loss, and stamp it unless it holds a younger one."""
    left = 1.0
    for _ in range(count):
        left *= decay
    values[slot].ema = np.float32(mean + left * (np.float64(values[slot].ema) - mean))
    values[slot].count = np.uint16(min(np.int64(values[slot].count) + count, _MAX_COUNT))
    if stamp >> _VERSION_BITS >= np.uint64(values[slot].tick):
        _write(values, slot, mean, stamp)


@numba.njit
def _comes_before(one: Any, other: Any) -> Any:
    """Return whether a new key is younger than another, or as young and before it by bucket."""
    if one.stamp >> _VERSION_BITS != other.stamp >> _VERSION_BITS:
        return one.stamp >> _VERSION_BITS > other.stamp >> _VERSION_BITS
    turned = one.key << _SHARD_BITS | one.key >> _BITS_BELOW_SHARD
    return turned < (other.key << _SHARD_BITS | other.key >> _BITS_BELOW_SHARD)


@numba.njit
def _newest_first(first: Any, others: Any, new: Any, order: Any) -> Any:
    """Put a bucket's new keys in order, eight of them at most; return how many there are."""
    count, member = 0, first
    while member != _NONE:
        place = min(count, WAYS)
        while place > 0 and _comes_before(new[member], new[order[place - 1]]):
            if place < WAYS:
                order[place] = order[place - 1]
            place -= 1
        if place < WAYS:
            order[place] = member
        count, member = count + 1, others[member]
    return count


@numba.njit
def _count_age(evicted: Any, age: Any) -> None:
    """Count the age of a loss that makes room, as `count_ages` does."""
    cell = 0
    for bound in EVICTED_AGE_BOUNDS_S:
        cell += age > bound
    evicted[cell] += 1
    evicted[len(evicted) - 1] += age


@numba.njit
def _revise_known(
    firsts: Any, links: Any, batch: Any, rows: Any, losses: Any, ticks: Any, versions: Any,
    decay: Any, keys: Any, values: Any, new: Any, homes: Any,
) -> Any:  # fmt: skip
    """Revise keys that the table holds; list the others with their buckets, and count them."""
    buckets = np.uint64(len(keys) // WAYS)
    slots = np.empty(_BLOCK, np.int64)
    count = 0
    for start in range(0, len(firsts), _BLOCK):
        stop = min(_BLOCK, len(firsts) - start)
        for place in range(stop):
            _prefetch(keys, _bucket_of(batch[firsts[start + place]], buckets) * WAYS)
        for place in range(stop):
            key = batch[firsts[start + place]]
            bucket = _bucket_of(key, buckets)
            slot = _find(keys, key, bucket)
            _prefetch(values, slot if slot != _NONE else bucket * WAYS)
            slots[place] = slot
        for place in range(stop):
            first = firsts[start + place]
            if links[first] == _NONE:
                mean, losses_of_key = np.float64(losses[rows[first]]), 1
                stamp = _stamp_at(rows[first], ticks, versions)
            else:
                mean, losses_of_key, stamp = _sum_up(first, links, rows, losses, ticks, versions)
            if slots[place] != _NONE:
                _revise(values, slots[place], mean, losses_of_key, stamp, decay)
            else:
                new[count].key, new[count].stamp = batch[first], stamp
                new[count].mean, new[count].losses = mean, losses_of_key
                homes[count] = _bucket_of(batch[first], buckets)
                count += 1
    return count


@numba.njit
def _insert(
    order: Any, count: Any, bucket: Any, new: Any, now: Any, keys: Any, values: Any, evicted: Any
) -> Any:
    """Let the newest of a bucket's new keys take its oldest slot, and so on.

    Returns:
        The numbers of keys placed, and of those that took the place of another.
    """
    turn = new[order[0]].key & _LAST_WAY
    taken, evictions = np.int64(0), 0
    for rank in range(count):
        row = new[order[rank]]
        oldest = _LATEST
        for way in range(WAYS):
            tick = np.uint64(values[bucket * WAYS + way].tick)
            age = tick << _WAY_BITS | (np.uint64(way) ^ turn)
            oldest = age if age < oldest and not taken >> way & 1 else oldest
        tick, chosen = oldest >> _WAY_BITS, np.int64((oldest & _LAST_WAY) ^ turn)
        if row.stamp >> _VERSION_BITS < tick:
            return rank, evictions
        if tick > np.uint64(0):
            _count_age(evicted, now - np.int64(tick))
            evictions += 1
        slot = bucket * WAYS + chosen
        keys[slot] = row.key
        values[slot].ema = np.float32(row.mean)
        values[slot].count = np.uint16(min(row.losses, _MAX_COUNT))
        _write(values, slot, row.mean, row.stamp)
        taken |= np.int64(1) << chosen
    return count, evictions


def _update(
    ids: Any, losses: Any, now: Any, ticks: Any, versions: Any, decay: Any,
    salt: Any, keys: Any, values: Any, evicted: Any,
) -> Any:  # fmt: skip
    """Record a batch: revise the keys that are there, then insert the others."""
    batch, rows = np.empty(len(ids), np.uint64), np.empty(len(ids), np.int32)
    count = 0
    for row in range(len(ids)):
        batch[count], rows[count] = _key_of(ids[row], salt), row
        if np.isfinite(losses[row]):
            count += 1
    firsts, links = _link(batch[:count])
    new, homes = np.empty(len(firsts), _NEW), np.empty(len(firsts), np.uint64)
    unknown = _revise_known(
        firsts, links, batch, rows, losses, ticks, versions, decay, keys, values, new, homes
    )
    placed, evictions = 0, 0
    if unknown:
        leaders, others = _link(homes[:unknown])
        order = np.empty(WAYS, np.int32)
        for leader in leaders:
            came = min(_newest_first(leader, others, new, order), WAYS)
            bucket = np.int64(homes[leader])
            done = _insert(order, came, bucket, new, now, keys, values, evicted)
            placed += done[0]
            evictions += done[1]
    return len(ids) - count, evictions, unknown - placed, placed - evictions
