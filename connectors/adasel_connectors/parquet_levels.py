"""Decode small numbers from Parquet's mix of runs and packed bits: levels and indices.

Source: the Parquet format, "Run Length Encoding / Bit-Packing Hybrid".
"""

import numpy as np
import numpy.typing as npt

from adasel_connectors.parquet_header import UnfamiliarError, varint

__all__ = ["hybrid"]

_WIDEST = 32


def hybrid(data: memoryview, width: int, count: int) -> npt.NDArray[np.int64]:
    """Decode `count` numbers of `width` bits each, shape (count,).

    Raises:
        UnfamiliarError: the data ends before that, or the width is above 32.

    >>> hybrid(memoryview(bytes([6, 1, 3, 0b0110])), 1, 8)  # three ones, then packed bits
    array([1, 1, 1, 0, 1, 1, 0, 0])
    """
    if not 0 <= width <= _WIDEST:
        raise UnfamiliarError("numbers are wider than 32 bits")
    numbers = np.zeros(count, np.int64)
    at = filled = 0
    while filled < count and width:
        try:
            head, at = varint(data, at)
        except IndexError as error:
            raise UnfamiliarError("levels or indices are cut") from error
        size = (head >> 1) * width if head & 1 else (width + 7) // 8
        run, at = data[at : at + size], at + size
        if len(run) < size:
            raise UnfamiliarError("levels or indices are cut")
        if head & 1:
            packed = _unpacked(run, width)[: count - filled]
            numbers[filled : filled + len(packed)] = packed
            filled += len(packed)
        else:
            numbers[filled : filled + (head >> 1)] = int.from_bytes(run, "little")
            filled += head >> 1
    return numbers


def _unpacked(run: memoryview, width: int) -> npt.NDArray[np.int64]:
    bits = np.unpackbits(np.frombuffer(run, np.uint8), bitorder="little").reshape(-1, width)
    return bits @ (1 << np.arange(width, dtype=np.int64))
