"""The state that `encode` described, rebuilt from its tree and its payloads' bytes."""

import math
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream.checkpoint.encode import (
    ARRAY_KINDS,
    MAX_DEPTH,
    TENSOR_DTYPES,
    Tree,
    array_view,
)

__all__ = ["decode"]

_MAX_DIMENSIONS = 64
# The spelling that `encode` writes; numpy itself would also look names up and parse fields.
_ARRAY_DTYPE = re.compile(rf"[<>|][{ARRAY_KINDS}][1-9][0-9]{{0,9}}(\[[0-9]*[A-Za-zμ]+\])?")


def decode(tree: Tree, payload_bytes: int, fill: Callable[[memoryview], None]) -> Any:
    """Rebuild the state that `encode` described.

    Args:
        tree: what `encode` returned, after a round through JSON.
        payload_bytes: bytes of all payloads, >= 0; no more than this is ever allocated.
        fill: writes the payloads' next bytes into the buffer that it is given.

    Returns:
        The state; tensors on the CPU, arrays and tensors writable, each of its own memory.

    Raises:
        ValueError: the tree is not one that `encode` makes, or needs other payloads.

    >>> decode(["tuple", 1, ["bytes", 0, 2]], 2, lambda buffer: buffer.__setitem__(slice(2), b"ab"))
    (1, b'ab')
    """
    decoder = _Decoder(payload_bytes, fill)
    state = decoder.decode(tree, 0)
    if decoder.offset != payload_bytes:
        raise ValueError(f"the header describes {decoder.offset} payload bytes of {payload_bytes}")
    return state


class _Decoder:
    """Trusts nothing: whoever can write a file can also write its checksum."""

    def __init__(self, payload_bytes: int, fill: Callable[[memoryview], None]) -> None:
        self.offset = 0
        self._payload_bytes = payload_bytes
        self._fill = fill

    def decode(self, tree: Tree, depth: int) -> Any:
        if tree is None or isinstance(tree, bool | int | float | str):
            return tree
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
        match tree:
            case ["dict", *items]:
                return self._decode_items({}, items, depth)
            case ["ordered", metadata, *items]:
                ordered: OrderedDict[str | int, Any] = OrderedDict()
                if metadata is not None:
                    ordered.__dict__["_metadata"] = self.decode(metadata, depth + 1)
                return self._decode_items(ordered, items, depth)
            case ["list", *items]:
                return [self.decode(item, depth + 1) for item in items]
            case ["tuple", *items]:
                return tuple(self.decode(item, depth + 1) for item in items)
            case ["int", str(digits)]:
                return int(digits, 16)
            case ["float", str(digits)]:
                return _unpack_float(digits)
            case ["bytes", int(offset), int(length)]:
                return self._decode_bytes(offset, length)
            case ["tensor", int(offset), str(dtype), [*shape]]:
                return self._decode_tensor(offset, dtype, shape)
            case ["array", int(offset), str(dtype), [*shape]]:
                return self._decode_array(offset, dtype, shape)
            case ["scalar", int(offset), str(dtype), []]:
                return self._decode_array(offset, dtype, [])[()]
            case _:
                raise ValueError("the header has an entry of unknown form")

    def _decode_items(
        self, into: dict[str | int, Any], items: list[Tree], depth: int
    ) -> dict[str | int, Any]:
        if len(items) % 2:
            raise ValueError("a dict has a key without a value")
        for tree, item in zip(items[::2], items[1::2], strict=True):
            key = self.decode(tree, depth + 1)
            if type(key) not in (str, int) or key in into:
                raise ValueError("a dict has a key twice, or one that is neither str nor int")
            into[key] = self.decode(item, depth + 1)
        return into

    def _decode_bytes(self, offset: int, length: int) -> bytes:
        self._claim(offset, length)
        buffer = bytearray(length)
        self._fill(memoryview(buffer))
        return bytes(buffer)

    def _decode_tensor(self, offset: int, name: str, shape: list[Tree]) -> Tensor:
        if name not in TENSOR_DTYPES:
            raise ValueError("a tensor has an unknown dtype")
        dtype = TENSOR_DTYPES[name]
        self._claim(offset, _rows(shape) * dtype.itemsize)
        try:
            tensor = torch.empty(shape, dtype=dtype, device="cpu")
        except (RuntimeError, TypeError, OverflowError) as error:
            raise ValueError("a tensor has a shape that torch cannot hold") from error
        self._fill(array_view(tensor.reshape(-1).view(torch.uint8).numpy()))
        return tensor

    def _decode_array(self, offset: int, name: str, shape: list[Tree]) -> npt.NDArray[Any]:
        if not _ARRAY_DTYPE.fullmatch(name):
            raise ValueError("an array has a dtype that no checkpoint holds")
        try:
            dtype = np.dtype(name)
            self._claim(offset, _rows(shape) * dtype.itemsize)
            array: npt.NDArray[Any] = np.empty(shape, dtype)
        except (TypeError, OverflowError) as error:
            raise ValueError("an array has a dtype or shape that numpy cannot hold") from error
        self._fill(array_view(array))
        return array

    def _claim(self, offset: int, nbytes: int) -> None:
        if offset != self.offset or not 0 <= nbytes <= self._payload_bytes - offset:
            raise ValueError(
                f"a payload of {nbytes} bytes at {offset} does not follow the last one, which ends "
                f"at {self.offset}, or does not fit into {self._payload_bytes}"
            )
        self.offset += nbytes


def _rows(shape: list[Tree]) -> int:
    if len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("a shape is not a list of sizes")
    return math.prod(shape)


def _unpack_float(digits: str) -> float:
    if len(digits) != 16:
        raise ValueError("a float is not given by eight bytes")
    return float(struct.unpack("<d", bytes.fromhex(digits))[0])
