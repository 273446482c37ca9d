"""Decode small numbers from Parquet's mix of runs and packed bits: levels and indices.

Source: the Parquet format, "Run Length Encoding / Bit-Packing Hybrid".
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from adasel_connectors.parquet_header import UnfamiliarError, varint

__all__ = ["are_all", "hybrid"]

_WIDEST = 32


def hybrid(data: memoryview, width: int, count: int) -> npt.NDArray[np.int64]:
    """Decode `count` numbers of `width` bits each, shape (count,).

    Raises:
        UnfamiliarError: the data ends before that, or the width is above 32.

    >>> hybrid(memoryview(bytes([6, 1, 3, 0b0110])), 1, 8)  # three ones, then packed bits
    array([1, 1, 1, 0, 1, 1, 0, 0])
    """
    numbers = np.empty(count, np.int64)
    filled = 0
    for run, length in _runs(data, width, count):
        numbers[filled : filled + length] = run if isinstance(run, int) else run[:length]
        filled += length
    return numbers


def are_all(value: int, data: memoryview, width: int, count: int) -> bool:
    """Tell whether `count` numbers all have one value, without decoding each.

    Raises:
        UnfamiliarError: the data ends before that, or the width is above 32.

    >>> are_all(1, memoryview(bytes([200, 1, 1])), 1, 100)
    True
    """
    runs = _runs(data, width, count)
    return all(
        run == value if isinstance(run, int) else bool((run[:length] == value).all())
        for run, length in runs
    )


def _runs(
    data: memoryview, width: int, count: int
) -> Iterator[tuple[int | npt.NDArray[np.int64], int]]:
    """Yield a value and how often it comes, or an array and how many of it count."""
    if not 0 <= width <= _WIDEST:
        raise UnfamiliarError("numbers are wider than 32 bits")
    if not width and count:
        yield 0, count
        return
    at = 0
    while count:
        try:
            head, at = varint(data, at)
        except IndexError as error:
            raise UnfamiliarError("levels or indices are cut") from error
        size = (head >> 1) * width if head & 1 else (width + 7) // 8
        stored, at = data[at : at + size], at + size
        if len(stored) < size:
            raise UnfamiliarError("levels or indices are cut")
        if head & 1:
            packed = _unpacked(stored, width)
            length = min(count, len(packed))
            yield packed, length
        else:
            length = min(count, head >> 1)
            yield int.from_bytes(stored, "little"), length
        count -= length


def _unpacked(stored: memoryview, width: int) -> npt.NDArray[np.int64]:
    bits = np.unpackbits(np.frombuffer(stored, np.uint8), bitorder="little").reshape(-1, width)
    numbers: npt.NDArray[np.int64] = bits @ (1 << np.arange(width, dtype=np.int64))
    return numbers
