"""Search ids in a table, memory asked for before it is needed."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # it ships no types
from numba.extending import intrinsic

from adasel_stream.record.table import WAYS

__all__ = [
    "BLOCK",
    "FACTOR",
    "NONE",
    "SHARD_BITS",
    "bucket_of",
    "find",
    "inlined",
    "key_of",
    "lookup",
    "prefetch",
]

BLOCK: Final = 128
"""Rows whose cache lines are asked for at a time."""

NONE: Final = -1
"""No row, or no slot."""

# numba turns a uint64 beside a plain integer into a float
FACTOR: Final = np.uint64(0xFF51AFD7ED558CCD)
"""The first factor of MurmurHash3's finaliser."""

SHARD_BITS: Final = np.uint64(10)
"""Bits of a key above those of its bucket."""

_FACTOR_2: Final = np.uint64(0xC4CEB9FE1A85EC53)
_MIX_SHIFT, _WORD_HALF = np.uint64(33), np.uint64(32)
# numba is typed in part only
_types: Any = numba.types

_njit: Any = numba.njit
_F = TypeVar("_F", bound=Callable[..., Any])


def inlined(function: _F) -> _F:
    """Let numba compile what only its own loops call, without what Python would call."""
    compiled: _F = _njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return compiled


def _prefetch_line(_typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of an element."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        line = builder.bitcast(builder.gep(data, [args[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [line, word(0), word(3), word(1)])  # read, keep, data
        return context.get_dummy_value()

    return _types.void(array, _types.intp), generate


prefetch: Any = intrinsic(_prefetch_line)


@inlined
def key_of(id_: Any, salt: Any) -> Any:
    """Mix an id, as `keys_of_ids` does."""
    bits = np.uint64(id_) ^ salt
    bits = (bits ^ (bits >> _MIX_SHIFT)) * FACTOR
    bits = (bits ^ (bits >> _MIX_SHIFT)) * _FACTOR_2
    return bits ^ (bits >> _MIX_SHIFT)


@inlined
def bucket_of(key: Any, buckets: Any) -> Any:
    """Return a key's bucket, as `Table.buckets_of` does."""
    return np.int64((((key << SHARD_BITS) >> _WORD_HALF) * buckets) >> _WORD_HALF)


@inlined
def find(keys: Any, key: Any, bucket: Any) -> Any:
    """Return the slot of a key, or NONE."""
    found = NONE
    for way in range(WAYS):  # without leaving early: a branch that cannot be foreseen costs more
        slot = bucket * WAYS + way
        found = slot if keys[slot] == key else found
    return found


def lookup(
    ids: Any, salt: Any, keys: Any, values: Any,
    now: Any, max_age_s: Any, version: Any, max_version_lag: Any,
    losses: Any, known: Any, age_s: Any, ema: Any,
) -> Any:  # fmt: skip
    """Search ids, and fill the arrays of an answer."""
    buckets = np.uint64(len(keys) // WAYS)
    batch, slots = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.int64)
    hits, stale, stale_version = 0, 0, 0
    for start in range(0, len(ids), BLOCK):
        rows = min(BLOCK, len(ids) - start)
        for row in range(rows):
            batch[row] = key_of(ids[start + row], salt)
            prefetch(keys, bucket_of(batch[row], buckets) * WAYS)
        for row in range(rows):
            slots[row] = find(keys, batch[row], bucket_of(batch[row], buckets))
            prefetch(values, max(slots[row], 0))
        for row in range(rows):
            held = slots[row] != NONE
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
