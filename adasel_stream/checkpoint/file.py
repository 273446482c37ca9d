"""One file that holds all state of a run: atomic, checksummed, without anything that runs.

The file is::

    8 bytes   b"ADASELCK"            │
    4         format version         │ little-endian; this part has the same form
    8         header bytes           │ in every version
    8         payload bytes          │
    4         crc32 of the 28 above  │
    header    JSON: {"byteorder": ..., "tree": ...}, the tree as `encode` describes it
    payload   the arrays' bytes
    64        blake2b over everything above

The checksum finds damage; it does not prove who wrote the file. Reading therefore trusts no
length, no name and no type in it, allocates no more than the file holds, and runs nothing.
"""

import hashlib
import json
import os
import stat
import struct
import sys
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import Any, cast

from adasel_stream.atomic import replace_file
from adasel_stream.checkpoint.decode import decode
from adasel_stream.checkpoint.encode import Encoded, Tree, encode, payload_view
from adasel_stream.errors import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
)

__all__ = ["FORMAT_VERSION", "MAX_HEADER_BYTES", "load_checkpoint", "save_checkpoint"]

FORMAT_VERSION = 1
"""The newest format version that this release reads, and the one that it writes."""

MAX_HEADER_BYTES = 32 * 2**20
"""Largest JSON header that is written or read; arrays do not count, lists of numbers do."""

_MAGIC = b"ADASELCK"
_PREAMBLE = struct.Struct("<8sIQQ")
_CRC = struct.Struct("<I")
_DIGEST_BYTES = 64
_CHUNK_BYTES = 4 * 2**20  # small enough to be still in the cache when it is hashed


def save_checkpoint(
    path: str | os.PathLike[str], state: Mapping[str, Any], *, durable: bool = True
) -> None:
    """Write `state` to `path` so that a crash at any moment leaves the old or the new file.

    Memory beyond the state's own: one copy of the largest tensor that is not contiguous or not
    on the CPU. The file has mode 0600.

    Args:
        path: the file to write or replace; its folder must exist.
        state: names and values: nested dict (str or int keys), OrderedDict, list, tuple, str,
            int of any size, float, bool, None, bytes, numpy array (numbers, dates, fixed-width
            strings), numpy scalar, dense torch tensor of any device. Strides, device and
            `requires_grad` are not kept.
        durable: wait until the file has reached the disk: it outlives a power cut, not only a
            killed process.

    Raises:
        TypeError: a value of another type, named by its place, before anything is written.
        ValueError: nested too deep, or a header over `MAX_HEADER_BYTES`.
        CheckpointError: the file cannot be written; the old one is intact. Only if the flush of
            the folder failed, the new one is in place already, and may not outlive a power cut.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(f"{folder}/run.ckpt", {"step": 7, "betas": (0.9, 0.95)})
    ...     load_checkpoint(f"{folder}/run.ckpt")
    {'step': 7, 'betas': (0.9, 0.95)}
    """
    if not isinstance(state, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        raise TypeError(f"state must be a mapping of names to values, got {type(state).__name__}")
    # Before the file system is touched: what cannot be described is refused here.
    encoded = encode(state if type(state) in (dict, OrderedDict) else dict(state))
    header = _header(encoded.tree)
    try:
        replace_file(path, _frame(header, encoded), durable=durable)
    except OSError as error:
        raise CheckpointError(f"cannot write checkpoint {_name(path)}: {error.strerror}") from error


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Args:
        path: the file; it is never changed.

    Returns:
        The state, equal to the saved one bit for bit; tensors on the CPU. Arrays and tensors
        are writable and share no memory.

    Raises:
        FileNotFoundError: there is no such file. It is no `CheckpointError`, so that "start
            afresh if there is none" cannot start afresh over one that is damaged.
        CorruptCheckpointError: the file is damaged or is no checkpoint; the message says what
            did not hold.
        CheckpointVersionError: a newer release wrote it.
        CheckpointError: the file cannot be read.
    """
    try:
        # Without O_NONBLOCK a named pipe in the checkpoint's place would block for ever.
        with open(path, "rb", opener=lambda p, f: os.open(p, f | os.O_NONBLOCK)) as file:
            return _Reader(file, _name(path)).read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {_name(path)}: {error.strerror}") from error
    except MemoryError as error:
        raise CheckpointError(f"not enough memory to read checkpoint {_name(path)}") from error


def _name(path: str | os.PathLike[str]) -> str:
    return repr(os.fsdecode(path))


def _header(tree: Tree) -> bytes:
    # Strings may hold lone surrogates (file names do); JSON's own escapes would join two of them.
    text = json.dumps(
        {"byteorder": sys.byteorder, "tree": tree}, ensure_ascii=False, separators=(",", ":")
    )
    header = text.encode("utf-8", "surrogatepass")
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(
            f"state needs a header of {len(header)} bytes, expected at most {MAX_HEADER_BYTES}: "
            "hold long lists as arrays"
        )
    return header


def _frame(header: bytes, encoded: Encoded) -> Iterator[bytes | memoryview]:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    preamble = _PREAMBLE.pack(_MAGIC, FORMAT_VERSION, len(header), encoded.payload_bytes)
    for part in (preamble, _CRC.pack(zlib.crc32(preamble)), header, *encoded.payloads):
        for chunk in _chunks(payload_view(part)):
            digest.update(chunk)
            yield chunk
    yield digest.digest()


def _chunks(view: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(view), _CHUNK_BYTES):
        yield view[start : start + _CHUNK_BYTES]


class _Reader:
    def __init__(self, file: BufferedReader, name: str) -> None:
        self._file = file
        self._name = name
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def read(self) -> dict[str, Any]:
        header_bytes, payload_bytes = self._read_preamble()
        header = self._take(header_bytes)
        try:
            tree = _parse(header)
            state = decode(tree, payload_bytes, self._fill)
        except (ValueError, RecursionError) as error:
            raise self._corrupt(str(error)) from error
        expected = self._digest.digest()
        if self._take(_DIGEST_BYTES) != expected:
            raise self._corrupt("its checksum does not hold")
        if not isinstance(state, dict):
            raise self._corrupt("it holds no mapping")
        return cast("dict[str, Any]", state)

    def _read_preamble(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"checkpoint {self._name} is not a regular file")
        frame_bytes = _PREAMBLE.size + _CRC.size + _DIGEST_BYTES
        if status.st_size < frame_bytes:
            raise self._corrupt(f"it ends after {status.st_size} bytes")
        preamble = self._take(_PREAMBLE.size)
        magic, version, header_bytes, payload_bytes = _PREAMBLE.unpack(preamble)
        if magic != _MAGIC:
            raise self._corrupt("it does not start as a checkpoint does")
        if self._take(_CRC.size) != _CRC.pack(zlib.crc32(preamble)):
            raise self._corrupt("the checksum of its first 28 bytes does not hold")
        if version > FORMAT_VERSION:
            raise CheckpointVersionError(
                f"checkpoint {self._name} has format version {version}, this release reads up to "
                f"{FORMAT_VERSION}: use the release that wrote it, or a newer one"
            )
        if version < 1 or header_bytes > MAX_HEADER_BYTES:
            raise self._corrupt(f"version {version}, a header of {header_bytes} bytes")
        if frame_bytes + header_bytes + payload_bytes != status.st_size:
            raise self._corrupt(
                f"it is {status.st_size} bytes long and says "
                f"{frame_bytes + header_bytes + payload_bytes}"
            )
        return header_bytes, payload_bytes

    def _take(self, length: int) -> bytes:
        buffer = bytearray(length)
        self._fill(memoryview(buffer))
        return bytes(buffer)

    def _fill(self, buffer: memoryview) -> None:
        for chunk in _chunks(buffer):
            if self._file.readinto(chunk) != len(chunk):
                raise self._corrupt("it ended while it was read")
            self._digest.update(chunk)

    def _corrupt(self, reason: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"checkpoint {self._name} is damaged: {reason}")


def _parse(header: bytes) -> Tree:
    match json.loads(header.decode("utf-8", "surrogatepass")):
        case {"byteorder": sys.byteorder, "tree": tree, **rest} if not rest:
            return tree
        case {"byteorder": "little" | "big"}:
            raise ValueError(f"a machine wrote it whose byte order is not {sys.byteorder}")
        case _:
            raise ValueError("its header has not the form of a checkpoint's")
