"""Loops over a record's table for numba to compile: slot for slot what the numpy engine does.

Memory is far away: each loop over rows is cut into blocks, and goes over a block once to ask for
the cache lines of its keys, once to search them and ask for those of its values, and once to use
them. Rows of one key, and new keys of one bucket, are linked to lists by a hash table of the
batch, which costs less than sorting.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numba

from adasel_stream.record.entries import VALUE
from adasel_stream.record.kernels.search import lookup
from adasel_stream.record.kernels.update import update

__all__ = ["Compiled", "compiled"]

_types: Any = numba.types  # typed in part only


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
    of_lookup = _types.UniTuple(int64, 3)(_given(int64), uint64, *planes, *[int64] * 4, *answer)
    stamps = (int64, _given(_types.uint32), _given(_types.uint16))
    of_update = _types.UniTuple(int64, 4)(
        *(_given(int64), _given(float32), *stamps, _types.float64, uint64, *planes, int64[::1])
    )
    return Compiled(numba.njit([of_lookup])(lookup), numba.njit([of_update])(update))


def _given(item: Any) -> Any:
    """Return the type of a caller's array, which may be read-only."""
    return _types.Array(item, 1, "C", readonly=True)
