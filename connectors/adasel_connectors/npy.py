"""Read arrays in NumPy's format from shards that nobody vouches for.

`numpy.load` allocates what the header claims, and evaluates the header as a Python literal. Here
the header must have the one form that NumPy writes, and the payload exactly the size that the
header claims. Arrays of objects are refused; they are pickles.

Source: the format's description in `numpy.lib.format`.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adasel_connectors.damage import DamageError

__all__ = ["Header", "read_header"]

_MAGIC = b"\x93NUMPY"
_LARGEST_HEADER_BYTES = 4096
_HEADER = re.compile(
    r"\{'descr': '([<>|=](?:b1|i[1248]|u[124]|f[248]))', 'fortran_order': (True|False), "
    r"'shape': \(((?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\), ?\} *\n"
)
_WIDER: dict[str, np.dtype[Any]] = {
    "u2": np.dtype(np.int32),
    "u4": np.dtype(np.int64),
}  # torch computes little on these


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of one array says; it has been checked against the array's size.

    Attributes:
        dtype: as stored.
        shape: of one array.
        columns_first: stored in Fortran order.
        start: bytes before the payload.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    columns_first: bool
    start: int

    def arrays(self, parts: list[bytes]) -> npt.NDArray[Any]:
        """Stack b arrays that all have this very header, shape (b, *shape); a fresh copy.

        Byte order becomes the machine's; uint16 and uint32 become int32 and int64.
        """
        rows = np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(len(parts), -1)
        payload = np.ascontiguousarray(rows[:, self.start :])
        values = np.frombuffer(payload, dtype=self.dtype) if payload.size else payload
        if self.columns_first:
            values = values.reshape(len(parts), *self.shape[::-1])
            values = values.transpose(0, *range(len(self.shape), 0, -1))
        values = values.reshape(len(parts), *self.shape)
        name = f"{self.dtype.kind}{self.dtype.itemsize}"
        wanted = _WIDER.get(name, self.dtype.newbyteorder("="))
        return np.require(values.astype(wanted, copy=False), requirements=["C", "W"])


def read_header(part: bytes) -> Header:
    """Read and check the header of one array.

    Raises:
        DamageError: it is not a plain array of numbers, or its size is not what it claims.

    >>> import io
    >>> file = io.BytesIO()
    >>> np.save(file, np.zeros((2, 3), np.float32))
    >>> read_header(file.getvalue()).shape
    (2, 3)
    """
    width = 2 if part[6:7] == b"\x01" else 4
    start = 8 + width + int.from_bytes(part[8 : 8 + width], "little")
    if part[:6] != _MAGIC or part[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise _refused("it does not begin like an npy file")
    if start > min(len(part), _LARGEST_HEADER_BYTES):
        raise _refused("its header is cut or too long")
    match = _HEADER.fullmatch(part[8 + width : start].decode("latin-1"))
    if match is None:
        raise _refused("its header is not that of an array of bool, int, uint8-32 or float")
    described, columns_first, shape = match.groups()
    dtype = np.dtype(described)
    sizes = tuple(int(length) for length in shape.replace(" ", "").split(",") if length)
    if len(part) - start != math.prod(sizes) * dtype.itemsize:
        raise _refused("its payload is not as long as its header claims")
    return Header(dtype, sizes, columns_first == "True", start)


def _refused(reason: str) -> DamageError:
    return DamageError("decode", f"an array cannot be read: {reason}", one_sample=True)
