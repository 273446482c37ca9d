"""Rows of a record's table apart from their slots, as snapshots store and move them."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from adasel_stream.errors import RecordError

__all__ = ["VALUE", "Entries", "check_entries"]

VALUE: Final = np.dtype(
    [("ema", "f4"), ("last", "f4"), ("tick", "u4"), ("count", "u2"), ("version", "u2")]
)
"""What the table holds of a key: 16 bytes."""


class Entries(NamedTuple):
    """Rows of a table, in any order.

    Attributes:
        keys: shape (n,), uint64.
        values: shape (n,), dtype VALUE: average and last loss float32, finite; tick uint32, at
            least 1; count uint16, 65,535 standing for any larger number; model version uint16.
    """

    keys: npt.NDArray[np.uint64]
    values: npt.NDArray[Any]


def check_entries(entries: Entries, last_tick: int) -> None:
    """Refuse rows that no record could hold.

    Args:
        entries: rows from outside.
        last_tick: the record's time; no row is younger.

    Raises:
        RecordError: if a type, a shape or a value is not as `Entries` says.

    >>> check_entries(Entries(np.zeros(1, np.uint64), np.zeros(1, VALUE)), last_tick=9)
    Traceback (most recent call last):
    adasel_stream.errors.RecordError: the entries are damaged: a row has tick 0
    """
    keys, values = entries
    if keys.dtype != np.uint64 or values.dtype != VALUE or keys.shape != values.shape:
        raise RecordError(
            f"entries must be keys of uint64 and values of {VALUE}, one for each key, "
            f"got {keys.dtype} of shape {keys.shape} and {values.dtype} of shape {values.shape}"
        )
    for holds, what in (
        ((values["tick"] > 0).all(), "a row has tick 0"),
        ((values["tick"] <= last_tick).all(), "a row is younger than the record"),
        (np.isfinite(values["ema"]).all(), "an average is not finite"),
        (np.isfinite(values["last"]).all(), "a loss is not finite"),
    ):
        if not holds:
            raise RecordError(f"the entries are damaged: {what}")
