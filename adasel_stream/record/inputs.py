"""Check what callers hand to a record, and bring it into the table's types."""

from collections.abc import Sequence
from operator import index
from typing import Any, Final, SupportsIndex, TypeVar, cast

import numpy as np
import numpy.typing as npt

from adasel_stream.errors import RecordError
from adasel_stream.keys import instance_ids

__all__ = ["float_rows", "int_ids", "number", "ticks_of", "versions_of", "whole"]

_WANTED_IDS: Final = "ids must be an int64 array of shape (b,) or a list of str"
_VERSIONS: Final = 2**16
_Number = TypeVar("_Number", bound=np.generic)


def whole(name: str, value: object, low: int, high: int) -> int:
    """Return an argument that is a whole number in [low, high], and refuse any other.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is out of range.

    >>> whole("capacity", 0, 1, 8)
    Traceback (most recent call last):
    ValueError: capacity must be in [1, 8], got 0
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
    return int(value)


def number(name: str, value: object) -> float:
    """Return an argument that is a real number, and refuse any other.

    Raises:
        TypeError: if it is not a number.

    >>> number("decay", "0.9")
    Traceback (most recent call last):
    TypeError: decay must be a number, got str
    """
    if not isinstance(value, (int, float, np.floating)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def int_ids(ids: object) -> npt.NDArray[np.int64]:
    """Return ids as integers, strings by way of their `instance_ids`.

    Args:
        ids: what the caller gave.

    Returns:
        Shape (b,), int64, as compiled loops take it.

    Raises:
        RecordError: if ids have a wrong type or shape.

    >>> int_ids(["a", "b"]).dtype, int_ids(np.array([7, 8], np.int16)).tolist()
    (dtype('int64'), [7, 8])
    """
    if isinstance(ids, np.ndarray):
        if ids.dtype == np.int64 and ids.ndim == 1:
            return _in_order(ids)
        if ids.dtype.kind not in "iu" or not np.can_cast(ids.dtype, np.int64) or ids.ndim != 1:
            raise RecordError(f"{_WANTED_IDS}, got an array of {ids.dtype}, shape {ids.shape}")
        return ids.astype(np.int64)
    if isinstance(ids, (list, tuple)):
        names: Sequence[Any] = ids
        try:
            return instance_ids(names)
        except TypeError as error:
            kinds = sorted({type(item).__name__ for item in names} - {"str"})
            what = f"{type(ids).__name__} with {kinds}"
            raise RecordError(f"{_WANTED_IDS}, got a {what}") from error
    raise RecordError(f"{_WANTED_IDS}, got {type(ids).__name__}")


def float_rows(name: str, numbers: object, rows: int) -> npt.NDArray[np.float32]:
    """Return one number for each id as float32; what is beyond its range becomes infinite.

    Returns:
        Shape (rows,), float32, as compiled loops take it.

    Raises:
        RecordError: if they are not floating point, shape (rows,).

    >>> float_rows("losses", np.array([0.5, 1e300]), rows=2)
    array([0.5, inf], dtype=float32)
    """
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind != "f":
        what = numbers.dtype if isinstance(numbers, np.ndarray) else type(numbers).__name__
        raise RecordError(f"{name} must be a floating-point numpy array, got {what}")
    if numbers.shape != (rows,):
        raise RecordError(f"{name} have shape {numbers.shape}, expected ({rows},): one for each id")
    if numbers.dtype == np.float32:
        return _in_order(numbers)
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def ticks_of(age_s: object, rows: int, now: int) -> npt.NDArray[np.uint32]:
    """Turn ages into ticks.

    Args:
        age_s: seconds, one number or one for each row; less than 0, by a clock that runs ahead,
            counts as 0, and what is older than the record as its first second.
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
        return np.array([index(cast("SupportsIndex", version)) % _VERSIONS], np.uint16)
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
