"""Write rows of numbers as a tar shard: one `.npy` member a row, in whole blocks at once.

A header differs from the next one in its name and its checksum only, so all of a shard's are
computed as one array of bytes; a member at a time would take a hundred times as long.
"""

import io
import os
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["write_rows"]

_BLOCK_BYTES = 512
_DIGITS = 8
_CHECKSUM = slice(148, 156)


def write_rows(path: str | os.PathLike[str], rows: npt.NDArray[np.float32]) -> None:
    """Write a tar file with members `00000000.npy`, `00000001.npy`, ...

    Args:
        path: file to write; it must not exist.
        rows: shape (n, c), float32, at most 10⁸ rows; each becomes an array of shape (c,).

    >>> import tarfile, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_rows(f"{folder}/a.tar", np.arange(6, dtype=np.float32).reshape(2, 3))
    ...     with tarfile.open(f"{folder}/a.tar") as tar:
    ...         tar.getnames(), np.load(io.BytesIO(tar.extractfile("00000001.npy").read()))
    (['00000000.npy', '00000001.npy'], array([3., 4., 5.], dtype=float32))
    """
    start = _npy_start(rows.shape[1])
    size = len(start) + 4 * rows.shape[1]
    padded = -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
    members = np.zeros((len(rows), _BLOCK_BYTES + padded), np.uint8)
    members[:, :_BLOCK_BYTES] = _headers(len(rows), size)
    content = members[:, _BLOCK_BYTES : _BLOCK_BYTES + size]
    content[:, : len(start)] = np.frombuffer(start, np.uint8)
    content[:, len(start) :] = np.ascontiguousarray(rows, "<f4").view(np.uint8)
    with open(path, "xb") as file:
        file.write(members.data)
        file.write(bytes(2 * _BLOCK_BYTES))  # two empty blocks end an archive


def _npy_start(columns: int) -> bytes:
    """Give the bytes that come before the numbers of one row."""
    file = io.BytesIO()
    np.save(file, np.zeros(columns, "<f4"))
    return file.getvalue()[: -4 * columns]


def _headers(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Give the members' headers, shape (count, 512)."""
    header = bytearray(_BLOCK_BYTES)
    header[_DIGITS : _DIGITS + 4] = b".npy"
    header[100:108] = b"0000644\0"
    header[108:124] = b"0000000\0" * 2  # nobody's file
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"%011o\0" % 0  # the same bytes whenever it is written
    header[_CHECKSUM] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\00000"
    headers = np.tile(np.frombuffer(bytes(header), np.uint8), (count, 1))
    headers[:, :_DIGITS] = _digits(np.arange(count), 10, _DIGITS)
    sums = headers.sum(axis=1, dtype=np.int64)
    headers[:, 148:154] = _digits(sums, 8, 6)
    headers[:, 154:156] = (0, ord(" "))
    return headers


def _digits(numbers: npt.NDArray[Any], base: int, width: int) -> npt.NDArray[np.uint8]:
    """Write numbers with leading zeros, one row each, as ASCII.

    >>> _digits(np.array([7, 42]), 10, 3).tobytes()
    b'007042'
    """
    powers = base ** np.arange(width - 1, -1, -1)
    return (numbers[:, None] // powers % base + ord("0")).astype(np.uint8)
