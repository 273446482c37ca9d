"""Segment files: rows that a serving process hands to the trainer, whole or not at all.

A segment is::

    8 bytes   b"ADASELSG"            │
    4         format version         │
    8         writer                 │ little-endian; this part has the same form
    8         sequence number        │ in every version
    4         rows                   │
    4         crc32 of the 32 above  │
    24 a row  id int64, value float32, unix second uint32, model version uint16, kind uint16, 4 zero
    16        blake2b over everything above

Written beside its name and renamed, so that a file of that name is complete even if its writer is
killed. It is not flushed: a power cut may damage the last ones, which the checksum notices.
Reading trusts no length and no number in it, and allocates no more than the file holds.
"""

import contextlib
import errno
import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.errors import RecordError
from adasel_stream.serving.names import segment_name, temporary_name

__all__ = [
    "FORMAT_VERSION",
    "LOSS",
    "MAX_ROWS",
    "PREDICTION",
    "ROW",
    "DamagedSegmentError",
    "NewerSegmentError",
    "Rows",
    "read_segment",
    "rows_in",
    "segment_bytes",
    "write_segment",
]

FORMAT_VERSION: Final = 1
"""The newest format version that this release reads, and the one that it writes."""

MAX_ROWS: Final = 2**20
"""Most rows in one segment: 24 MiB, so that no file makes a trainer take more memory."""

LOSS: Final = 0
"""Kind of a row whose value is a loss."""

PREDICTION: Final = 1
"""Kind of a row whose value is a prediction that waits for its label."""

ROW: Final = np.dtype(
    [
        *(("id", "<i8"), ("value", "<f4"), ("second", "<u4")),
        *(("version", "<u2"), ("kind", "<u2"), ("zero", "<u4")),
    ]
)
"""One row as it lies in a segment, 24 bytes."""

Rows = npt.NDArray[Any]
"""Rows of a segment, shape (n,), dtype ROW."""

_MAGIC: Final = b"ADASELSG"
_HEAD: Final = struct.Struct("<8sI8sQI")
_CRC: Final = struct.Struct("<I")
_DIGEST_BYTES: Final = 16
_FRAME_BYTES: Final = _HEAD.size + _CRC.size + _DIGEST_BYTES


class DamagedSegmentError(RecordError):
    """A segment's checksums, lengths or names do not hold."""


class NewerSegmentError(RecordError):
    """A newer release wrote the segment; it is left untouched."""


def segment_bytes(rows: int) -> int:
    """Return the size in bytes of a segment of so many rows.

    >>> segment_bytes(65_536)
    1572916
    """
    return _FRAME_BYTES + rows * ROW.itemsize


def rows_in(size: int) -> int:
    """Return how many rows a sound segment of so many bytes has, at least 0.

    >>> rows_in(segment_bytes(3)), rows_in(0)
    (3, 0)
    """
    return max(0, size - _FRAME_BYTES) // ROW.itemsize


def write_segment(folder: Path, writer: str, sequence: int, rows: memoryview) -> None:
    """Publish rows as one segment; a failure before the rename leaves nothing behind.

    Args:
        folder: where to; it must exist.
        writer: 16 hexadecimal digits.
        sequence: in [0, 10**12).
        rows: the bytes of 1 to MAX_ROWS rows, 24 bytes each.

    Raises:
        OSError: whatever the operating system refused.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_segment(Path(folder), "0" * 16, 3, np.zeros(2, ROW).view("u1").data)
    ...     len(read_segment(Path(folder), "0" * 16, 3)), os.listdir(folder)
    (2, ['0000000000000000.000000000003.seg'])
    """
    head = _head(writer, sequence, len(rows) // ROW.itemsize)
    digest = hashlib.blake2b(head, digest_size=_DIGEST_BYTES)
    digest.update(rows)
    temporary = folder / temporary_name(writer, sequence)
    try:
        _create(temporary, (head, rows, digest.digest()))
        os.rename(temporary, folder / segment_name(writer, sequence))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_segment(folder: Path, writer: str, sequence: int) -> Rows:
    """Read one segment and check every byte of it.

    Returns:
        Its rows, shape (n,), n in [1, MAX_ROWS].

    Raises:
        FileNotFoundError: there is none of that name.
        DamagedSegmentError: it is damaged or no segment of that name; the message says what did
            not hold.
        NewerSegmentError: a newer release wrote it.
        OSError: it cannot be read.
    """
    name = segment_name(writer, sequence)
    with open(folder / name, "rb", opener=_open) as file:
        return _read(file, name, writer, sequence)


def _open(path: str, _: int) -> int:
    # A link is no segment, and without O_NONBLOCK a named pipe would block for ever.
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _create(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        # One call for all: after each, a busy server's threads may keep this one waiting for 5 ms.
        written = os.writev(descriptor, parts)
    finally:
        os.close(descriptor)
    if written != sum(map(len, parts)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _head(writer: str, sequence: int, rows: int) -> bytes:
    head = _HEAD.pack(_MAGIC, FORMAT_VERSION, bytes.fromhex(writer), sequence, rows)
    return head + _CRC.pack(zlib.crc32(head))


def _read(file: BufferedReader, name: str, writer: str, sequence: int) -> Rows:
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise DamagedSegmentError(f"segment {name} is not a regular file")
    head = file.read(_HEAD.size + _CRC.size)
    n = _checked_rows(head, status.st_size, name)
    if head != _head(writer, sequence, n):
        raise DamagedSegmentError(f"segment {name} is damaged: it was written under another name")
    rows = np.empty(n, ROW)
    content = rows.view(np.uint8).data
    if file.readinto(content) != len(content):
        raise DamagedSegmentError(f"segment {name} is damaged: it ended while it was read")
    digest = hashlib.blake2b(head, digest_size=_DIGEST_BYTES)
    digest.update(content)
    if digest.digest() != file.read(_DIGEST_BYTES):
        raise DamagedSegmentError(f"segment {name} is damaged: its checksum does not hold")
    return rows


def _checked_rows(head: bytes, size: int, name: str) -> int:
    """Return the number of rows that the head states, if head and size agree."""
    if len(head) < _HEAD.size + _CRC.size:
        raise DamagedSegmentError(f"segment {name} is damaged: it ends after {len(head)} bytes")
    magic, version, _, _, rows = _HEAD.unpack_from(head)
    if magic != _MAGIC:
        raise DamagedSegmentError(f"segment {name} does not start as a segment does")
    if _CRC.unpack_from(head, _HEAD.size) != (zlib.crc32(head[: _HEAD.size]),):
        raise DamagedSegmentError(
            f"segment {name} is damaged: the checksum of its first {_HEAD.size} bytes does not hold"
        )
    if version > FORMAT_VERSION:
        raise NewerSegmentError(
            f"segment {name} has format version {version}, this release reads up to "
            f"{FORMAT_VERSION}: update the trainer before the serving processes"
        )
    if not 1 <= rows <= MAX_ROWS or segment_bytes(rows) != size:
        raise DamagedSegmentError(
            f"segment {name} is damaged: it is {size} bytes long and says that it has {rows} rows, "
            f"expected 1 to {MAX_ROWS} rows of {ROW.itemsize} bytes"
        )
    return int(rows)
