"""Check what callers hand over, and bring it into the types that records and files have.

Wrong arguments raise `TypeError` or `ValueError`; whoever has an error of its own for them gives
that the same message.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.keys import instance_ids

__all__ = ["floats_for_ids", "int64_ids", "integer", "number", "whole"]

_WANTED_IDS: Final = "ids must be an int64 array of shape (b,) or a list of str"


def integer(name: str, value: object) -> int:
    """Return an argument that is an integer, and refuse any other.

    Raises:
        TypeError: if it is none.

    >>> integer("version", 1.5)
    Traceback (most recent call last):
    TypeError: version must be an integer, got float
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    return int(value)


def whole(name: str, value: object, low: int, high: int) -> int:
    """Return an argument that is a whole number in [low, high], and refuse any other.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is out of range.

    >>> whole("capacity", 0, 1, 8)
    Traceback (most recent call last):
    ValueError: capacity must be in [1, 8], got 0
    """
    if not low <= integer(name, value) <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
    return integer(name, value)


def number(name: str, value: object) -> float:
    """Return an argument that is a real number, and refuse any other.

    Raises:
        TypeError: if it is not a number.

    >>> number("decay", "0.9")
    Traceback (most recent call last):
    TypeError: decay must be a number, got str
    """
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def int64_ids(ids: object) -> npt.NDArray[np.int64]:
    """Return ids as integers, strings by way of their `instance_ids`.

    Args:
        ids: integers that int64 holds, shape (b,), or b strings.

    Returns:
        Shape (b,); ids that are int64 already are not copied.

    Raises:
        TypeError: if ids have a wrong type or shape.

    >>> int64_ids(["a", "b"]).dtype, int64_ids(np.array([7, 8], np.int16)).tolist()
    (dtype('int64'), [7, 8])
    """
    if isinstance(ids, np.ndarray):
        if ids.dtype == np.int64 and ids.ndim == 1:
            return ids
        if ids.dtype.kind not in "iu" or not np.can_cast(ids.dtype, np.int64) or ids.ndim != 1:
            raise TypeError(f"{_WANTED_IDS}, got an array of {ids.dtype}, shape {ids.shape}")
        return ids.astype(np.int64)
    if not isinstance(ids, (list, tuple)):
        raise TypeError(f"{_WANTED_IDS}, got {type(ids).__name__}")
    names: Sequence[Any] = ids
    try:
        return instance_ids(names)
    except TypeError as error:
        kinds = sorted({type(item).__name__ for item in names} - {"str"})
        raise TypeError(f"{_WANTED_IDS}, got a {type(ids).__name__} with {kinds}") from error


def floats_for_ids(name: str, numbers: object, rows: int) -> npt.NDArray[np.float32]:
    """Return one number for each id as float32; what is beyond its range becomes infinite.

    Returns:
        Shape (rows,); numbers that are float32 already are not copied.

    Raises:
        TypeError: if they are no floating-point array.
        ValueError: if their shape is not (rows,).

    >>> floats_for_ids("losses", np.array([0.5, 1e300]), rows=2)
    array([0.5, inf], dtype=float32)
    """
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind != "f":
        what = numbers.dtype if isinstance(numbers, np.ndarray) else type(numbers).__name__
        raise TypeError(f"{name} must be a floating-point numpy array, got {what}")
    if numbers.shape != (rows,):
        raise ValueError(f"{name} have shape {numbers.shape}, expected ({rows},): one for each id")
    if numbers.dtype == np.float32:
        return numbers
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)
