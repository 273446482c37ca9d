"""Check what callers hand to a record, and bring it into the table's types."""

from operator import index
from typing import Final, SupportsIndex, TypeVar, cast

import numpy as np
import numpy.typing as npt

from adasel_stream.arguments import floats_for_ids, int64_ids
from adasel_stream.errors import RecordError

__all__ = ["float_rows", "int_ids", "ticks_of", "versions_of"]

_VERSIONS: Final = 2**16
_Number = TypeVar("_Number", bound=np.generic)


def int_ids(ids: object) -> npt.NDArray[np.int64]:
    """Return ids as `int64_ids` does, as compiled loops take them.

    Raises:
        RecordError: if ids have a wrong type or shape.

    >>> int_ids(np.array([7, 8, 9])[::2]).flags.contiguous
    True
    """
    try:
        return _in_order(int64_ids(ids))
    except TypeError as error:
        raise RecordError(str(error)) from error


def float_rows(name: str, numbers: object, rows: int) -> npt.NDArray[np.float32]:
    """Return one number for each id as `floats_for_ids` does, as compiled loops take them.

    Raises:
        RecordError: if they are not floating point, shape (rows,).

    >>> float_rows("losses", np.array([0.5, 1e300]), rows=2)
    array([0.5, inf], dtype=float32)
    """
    try:
        return _in_order(floats_for_ids(name, numbers, rows))
    except (TypeError, ValueError) as error:
        raise RecordError(str(error)) from error


def ticks_of(age_s: object, rows: int, now: int) -> npt.NDArray[np.uint32]:
    """Turn ages into ticks.

    Args:
        age_s: seconds, one number or one for each row; less than 0, by a clock that runs ahead,
            counts as 0, and what has no tick, a month before the record began, as tick 1.
        rows: number of rows.
        now: the record's time.

    Returns:
        Ticks in [1, now], shape (rows,), or (1,) for one age.

    Raises:
        RecordError: if ages are no numbers, NaN, or not shape (rows,).

    >>> ticks_of(np.array([0.0, 1.5, -3.0, np.inf]), rows=4, now=9).tolist()
    [9, 8, 9, 1]
    """
    if type(age_s) is float and age_s == 0:
        ticks = np.empty(1, np.uint32)  # half the time of np.array, on the path of every step
        ticks[0] = now
        return ticks
    ages = np.asarray(age_s)
    if ages.dtype.kind not in "iuf" or ages.shape not in ((), (rows,)) or np.isnan(ages).any():
        raise RecordError(
            f"age_s must be seconds, one number or shape ({rows},), without NaN, "
            f"got {ages.dtype} of shape {ages.shape}"
        )
    whole_s = np.floor(ages.astype(np.float64)).clip(0, now - 1)
    return np.uint32(now) - whole_s.astype(np.uint32).reshape(-1)


def versions_of(version: object, rows: int) -> npt.NDArray[np.uint16]:
    """Return model versions modulo 65,536.

    Args:
        version: an integer, or an array with one for each row.
        rows: number of rows.

    Returns:
        Shape (rows,), or (1,) for one version; uint16.

    Raises:
        TypeError: if it is no integer.
        RecordError: if an array is of another type or not shape (rows,).

    >>> versions_of(65_536 + 3, rows=2).tolist()
    [3]
    """
    if not isinstance(version, np.ndarray) or version.ndim == 0:
        try:
            return np.array([index(cast("SupportsIndex", version)) % _VERSIONS], np.uint16)
        except TypeError:
            raise TypeError(
                f"version must be an integer, or one for each row, got {type(version).__name__}"
            ) from None
    if version.dtype.kind not in "iu" or version.shape != (rows,):
        raise RecordError(
            f"version must be an integer or integers of shape ({rows},), "
            f"got {version.dtype} of shape {version.shape}"
        )
    return _in_order(version.astype(np.uint16, copy=False))


def _in_order(numbers: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """Return an array whose numbers follow one another, each where a processor wants it."""
    ordered = np.ascontiguousarray(numbers)
    return ordered if ordered.flags.aligned else ordered.copy()
