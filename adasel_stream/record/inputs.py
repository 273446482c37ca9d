"""Check what callers hand to a record, and bring it into the table's types."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.errors import RecordError
from adasel_stream.keys import instance_ids, keys_of_ids

__all__ = ["finite_rows", "keys_of", "number", "whole"]

_WANTED_IDS: Final = "ids must be an int64 array of shape (b,) or a list of str"


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


def keys_of(ids: object, seed: int) -> npt.NDArray[np.uint64]:
    """Turn ids into keys, strings by way of their integer ids.

    Args:
        ids: what the caller gave.
        seed: the record's seed.

    Returns:
        A key for each id, shape (b,).

    Raises:
        RecordError: if ids have a wrong type or shape.

    >>> keys_of(["a", "b"], seed=0).dtype
    dtype('uint64')
    """
    if isinstance(ids, np.ndarray):
        return _int_keys(ids, seed)
    if isinstance(ids, (list, tuple)):
        return _string_keys(ids, seed)
    raise RecordError(f"{_WANTED_IDS}, got {type(ids).__name__}")


def finite_rows(
    keys: npt.NDArray[np.uint64], losses: object
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32], int]:
    """Return the rows whose loss is a finite float32, and the number of others.

    Raises:
        RecordError: if losses are not floating point, shape (b,).

    >>> finite_rows(np.array([1, 2], np.uint64), np.array([np.inf, 0.5]))[1:]
    (array([0.5], dtype=float32), 1)
    """
    if not isinstance(losses, np.ndarray) or losses.dtype.kind != "f":
        what = losses.dtype if isinstance(losses, np.ndarray) else type(losses).__name__
        raise RecordError(f"losses must be a floating-point numpy array, got {what}")
    if losses.shape != keys.shape:
        raise RecordError(
            f"losses have shape {losses.shape}, expected {keys.shape}: one loss per id"
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, and is rejected
        values = losses.astype(np.float32, copy=False)
    finite = np.isfinite(values)
    if finite.all():
        return keys, values, 0
    kept = finite.nonzero()[0]
    return keys.take(kept), values.take(kept), len(keys) - len(kept)


def _int_keys(ids: npt.NDArray[Any], seed: int) -> npt.NDArray[np.uint64]:
    """Turn an array of integers into keys."""
    if ids.dtype.kind not in "iu" or not np.can_cast(ids.dtype, np.int64) or ids.ndim != 1:
        raise RecordError(f"{_WANTED_IDS}, got an array of {ids.dtype}, shape {ids.shape}")
    return keys_of_ids(ids.astype(np.int64, copy=False), seed)


def _string_keys(ids: Sequence[Any], seed: int) -> npt.NDArray[np.uint64]:
    """Turn a sequence of strings into keys."""
    try:
        return keys_of_ids(instance_ids(ids), seed)
    except TypeError as error:
        kinds = sorted({type(item).__name__ for item in ids} - {"str"})
        raise RecordError(f"{_WANTED_IDS}, got a {type(ids).__name__} with {kinds}") from error
