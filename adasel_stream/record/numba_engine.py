"""The record's arithmetic compiled by numba: the same slots, several times as fast."""

import numpy as np
import numpy.typing as npt

from adasel_stream.keys import ids_of_keys
from adasel_stream.record.engine import Outcome, Stamps, Tally, Window
from adasel_stream.record.kernels import compiled
from adasel_stream.record.known import Known
from adasel_stream.record.table import Table

__all__ = ["NumbaEngine"]


class NumbaEngine:
    """Computes on one table with compiled loops.

    Importing this module imports numba. The first call of a process compiles, for some three
    seconds; nothing is cached on disk, where processes that start together, as ranks do, can meet
    half of what another wrote (https://github.com/numba/numba/issues/10128).

    Args:
        table: the table; its lock is the caller's affair.
        seed: in [0, 2**64), decides which ids share a bucket.

    >>> NumbaEngine(Table(buckets=2), seed=0).name
    'numba'
    """

    name = "numba"

    def __init__(self, table: Table, seed: int) -> None:
        self._table = table
        # the id whose key is 0 is what all ids are mixed with
        self._salt = ids_of_keys(np.zeros(1, np.uint64), seed).view(np.uint64)[0]

    def lookup(self, ids: npt.NDArray[np.int64], window: Window) -> tuple[Known, Tally]:
        """Return what the table holds of ids."""
        rows = len(ids)
        answer = Known(
            np.empty(rows, np.float32),
            np.empty(rows, np.bool_),
            np.empty(rows, np.float32),
            np.empty(rows, np.float32),
        )
        table = self._table
        tally = compiled().lookup(ids, self._salt, table.keys, table.values, *window, *answer)
        return answer, Tally(*tally)

    def update(
        self,
        ids: npt.NDArray[np.int64],
        losses: npt.NDArray[np.float32],
        stamps: Stamps,
        decay: float,
    ) -> Outcome:
        """Record losses; first move the averages of known keys, then insert the others."""
        table = self._table
        rejected, evicted, dropped, added = compiled().update(
            ids, losses, *stamps, decay, self._salt, table.keys, table.values, table.evicted
        )
        table.size += added
        return Outcome(rejected, evicted, dropped)
