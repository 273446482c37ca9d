"""Giving rows of segments to a loss record: each kind to its method, with versions and ages."""

import math
from collections.abc import Callable

import numpy as np

from adasel_stream.serving.segment import LOSS, PREDICTION, Rows
from adasel_stream.serving.served import Accepting, ServedRecord

__all__ = ["Handover"]


class Handover:
    """Hands rows over and remembers how many, and how new the newest was.

    Args:
        wall_clock: returns the unix time in seconds, from which ages of rows are counted.

    Attributes:
        rows_applied: rows that the record took.
        rows_ignored: predictions for a record without `pending`, and rows of unknown kinds.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self.rows_applied = 0
        self.rows_ignored = 0
        self._wall_clock = wall_clock
        self._newest_s = -math.inf

    @property
    def newest_age_s(self) -> float:
        """Age in seconds of the newest row that was handed over, infinite before the first."""
        return max(0.0, self._wall_clock() - self._newest_s)

    def give(self, rows: Rows, record: ServedRecord) -> None:
        """Give rows to the record, whose lock is held.

        If this fails they may be given again: predictions go first, and of equal ones that come
        twice one stays, while losses that were recorded are recorded.

        Args:
            rows: shape (n,), dtype ROW.
            record: the record.
        """
        kinds = rows["kind"]
        now_s = self._wall_clock()
        if (kinds == LOSS).all():  # as nearly always: the rows need not be copied once more
            given = _give(record.update, rows, now_s)
        else:
            given = 0
            if record.pending is not None:
                given = _give(record.expect, rows[kinds == PREDICTION], now_s)
            given += _give(record.update, rows[kinds == LOSS], now_s)
        self.rows_applied += given
        self.rows_ignored += len(rows) - given
        if given:
            self._newest_s = max(self._newest_s, min(float(rows["second"].max()), now_s))


def _give(accept: Accepting, rows: Rows, now_s: float) -> int:
    """Give rows of one kind to a method of the record, and return how many they are."""
    if len(rows):
        accept(
            rows["id"].astype(np.int64),
            rows["value"].astype(np.float32),
            version=rows["version"].astype(np.uint16),
            # the clock of another machine may be ahead
            age_s=np.maximum(now_s - rows["second"].astype(np.float64), 0.0),
        )
    return len(rows)
