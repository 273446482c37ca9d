"""Record a batch: revise the keys that a table holds, then insert the others."""

from typing import Any, Final

import numpy as np

from adasel_stream.record.evicted import EVICTED_AGE_BOUNDS_S
from adasel_stream.record.kernels.batch import VERSION_BITS, link_equal, stamp_at, sum_up
from adasel_stream.record.kernels.search import (
    BLOCK,
    NONE,
    SHARD_BITS,
    bucket_of,
    find,
    inlined,
    key_of,
    prefetch,
)
from adasel_stream.record.table import WAYS

__all__ = ["update"]

_MAX_COUNT: Final = 2**16 - 1
_BITS_BELOW_SHARD, _WAY_BITS, _LAST_WAY = np.uint64(54), np.uint64(3), np.uint64(WAYS - 1)
_VERSION_MASK, _LATEST = np.uint64(2**16 - 1), np.uint64(2**64 - 1)
# a key that the table does not hold
_NEW: Final = np.dtype([("key", "u8"), ("stamp", "u8"), ("mean", "f8"), ("losses", "i8")])


@inlined
def _write(values: Any, slot: Any, mean: Any, stamp: Any) -> None:
    """Stamp a slot with a loss."""
    values[slot].last = np.float32(mean)
    values[slot].tick = np.uint32(stamp >> VERSION_BITS)
    values[slot].version = np.uint16(stamp & _VERSION_MASK)


@inlined
def _revise(values: Any, slot: Any, mean: Any, count: Any, stamp: Any, decay: Any) -> None:
    """Move a slot's average towards a loss, and stamp it unless it holds a younger one."""
    left = 1.0
    for _ in range(count):
        left *= decay
    values[slot].ema = np.float32(mean + left * (np.float64(values[slot].ema) - mean))
    values[slot].count = np.uint16(min(np.int64(values[slot].count) + count, _MAX_COUNT))
    if stamp >> VERSION_BITS >= np.uint64(values[slot].tick):
        _write(values, slot, mean, stamp)


@inlined
def _comes_before(one: Any, other: Any) -> Any:
    """Return whether a new key is younger than another, or as young and before it by bucket."""
    if one.stamp >> VERSION_BITS != other.stamp >> VERSION_BITS:
        return one.stamp >> VERSION_BITS > other.stamp >> VERSION_BITS
    turned = one.key << SHARD_BITS | one.key >> _BITS_BELOW_SHARD
    return turned < (other.key << SHARD_BITS | other.key >> _BITS_BELOW_SHARD)


@inlined
def _newest_first(first: Any, others: Any, new: Any, order: Any) -> Any:
    """Put a bucket's new keys in order, eight of them at most; return how many there are."""
    count, member = 0, first
    while member != NONE:
        place = min(count, WAYS)
        while place > 0 and _comes_before(new[member], new[order[place - 1]]):
            if place < WAYS:
                order[place] = order[place - 1]
            place -= 1
        if place < WAYS:
            order[place] = member
        count, member = count + 1, others[member]
    return count


@inlined
def _count_age(evicted: Any, age: Any) -> None:
    """Count the age of a loss that makes room, as `count_ages` does."""
    cell = 0
    for bound in EVICTED_AGE_BOUNDS_S:
        cell += age > bound
    evicted[cell] += 1
    evicted[len(evicted) - 1] += age


@inlined
def _revise_known(
    firsts: Any, links: Any, batch: Any, rows: Any, losses: Any, ticks: Any, versions: Any,
    decay: Any, keys: Any, values: Any, new: Any, homes: Any,
) -> Any:  # fmt: skip
    """Revise keys that the table holds; list the others with their buckets, and count them."""
    buckets = np.uint64(len(keys) // WAYS)
    slots = np.empty(BLOCK, np.int64)
    count = 0
    for start in range(0, len(firsts), BLOCK):
        stop = min(BLOCK, len(firsts) - start)
        for place in range(stop):
            prefetch(keys, bucket_of(batch[firsts[start + place]], buckets) * WAYS)
        for place in range(stop):
            key = batch[firsts[start + place]]
            bucket = bucket_of(key, buckets)
            slot = find(keys, key, bucket)
            prefetch(values, max(slot, 0))
            slots[place] = slot
        for place in range(stop):
            first = firsts[start + place]
            if links[first] == NONE:
                mean, losses_of_key = np.float64(losses[rows[first]]), 1
                stamp = stamp_at(rows[first], ticks, versions)
            else:
                mean, losses_of_key, stamp = sum_up(first, links, rows, losses, ticks, versions)
            if slots[place] != NONE:
                _revise(values, slots[place], mean, losses_of_key, stamp, decay)
            else:
                new[count].key, new[count].stamp = batch[first], stamp
                new[count].mean, new[count].losses = mean, losses_of_key
                homes[count] = bucket_of(batch[first], buckets)
                count += 1
    return count


@inlined
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
        if row.stamp >> VERSION_BITS < tick:
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


@inlined
def _insert_new(new: Any, homes: Any, now: Any, keys: Any, values: Any, evicted: Any) -> Any:
    """Insert keys that the table does not hold, one bucket after the other.

    Returns:
        The numbers of keys placed, and of those that took the place of another.
    """
    leaders, others = link_equal(homes)
    order = np.empty(WAYS, np.int32)
    placed, evictions = 0, 0
    for start in range(0, len(leaders), BLOCK):
        block = leaders[start : start + BLOCK]
        for leader in block:
            slot = np.int64(homes[leader]) * WAYS
            prefetch(keys, slot)
            prefetch(values, slot)
            prefetch(values, slot + WAYS // 2)
        for leader in block:
            came = min(_newest_first(leader, others, new, order), WAYS)
            bucket = np.int64(homes[leader])
            done = _insert(order, came, bucket, new, now, keys, values, evicted)
            placed += done[0]
            evictions += done[1]
    return placed, evictions


def update(
    ids: Any, losses: Any, now: Any, ticks: Any, versions: Any, decay: Any,
    salt: Any, keys: Any, values: Any, evicted: Any,
) -> Any:  # fmt: skip
    """Record a batch: revise the keys that are there, then insert the others."""
    batch, rows = np.empty(len(ids), np.uint64), np.empty(len(ids), np.int32)
    count = 0
    for row in range(len(ids)):
        batch[count], rows[count] = key_of(ids[row], salt), row
        if np.isfinite(losses[row]):
            count += 1
    firsts, links = link_equal(batch[:count])
    new, homes = np.empty(len(firsts), _NEW), np.empty(len(firsts), np.uint64)
    unknown = _revise_known(
        firsts, links, batch, rows, losses, ticks, versions, decay, keys, values, new, homes
    )
    placed, evictions = _insert_new(new, homes[:unknown], now, keys, values, evicted)
    return len(ids) - count, evictions, unknown - placed, placed - evictions
