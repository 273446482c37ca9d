"""Plain state as a JSON tree and raw payloads: data only, nothing that runs.

In the tree `null`, booleans, strings, integers of up to 64 bits and finite floats stand for
themselves; everything else is a JSON array that starts with its kind::

    ["dict", key, value, ...]         ["ordered", metadata, key, value, ...]
    ["list", value, ...]              ["tuple", value, ...]
    ["int", "0x..."]                  ["float", its eight bytes in hexadecimal]
    ["bytes", offset, length]         ["scalar", offset, dtype, []]
    ["array", offset, dtype, shape]   ["tensor", offset, dtype, shape]

Payloads follow one another in the order of the tree without gaps, C-contiguous, arrays in the
byte order of their dtype, tensors in the machine's. `offset` counts from the first payload byte.
"""

import math
import struct
from collections import OrderedDict
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = [
    "ARRAY_KINDS",
    "MAX_DEPTH",
    "TENSOR_DTYPES",
    "Encoded",
    "Payload",
    "Tree",
    "array_view",
    "encode",
    "payload_view",
]

Tree: TypeAlias = Any
"""What `json` writes and reads."""

Payload: TypeAlias = bytes | npt.NDArray[Any] | Tensor
"""A leaf whose bytes lie outside the tree."""

MAX_DEPTH = 64
"""Deepest nesting that is written or read; a state that contains itself is deeper."""

ARRAY_KINDS = "biufcmMSU"
"""Kinds of numpy dtypes that are written or read: no objects, no fields."""

TENSOR_DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.complex64, torch.complex128, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    )
}
"""Dtypes of tensors that are written or read, by the name that is written."""

_EXPECTED = (
    "expected dict with str or int keys, list, tuple, str, int, float, bool, None, bytes, "
    "numpy array of numbers, dates or fixed-width strings, or dense torch tensor"
)


class Encoded(NamedTuple):
    """A state taken apart.

    Attributes:
        tree: what JSON can hold, with the places of the payloads.
        payloads: the rest, in order; the caller's own arrays and tensors, not copied.
        payload_bytes: bytes of all payloads.
    """

    tree: Tree
    payloads: list[Payload]
    payload_bytes: int


def encode(state: Any) -> Encoded:
    """Describe `state` as a JSON tree and the payloads that it refers to.

    Args:
        state: nested dict (str or int keys), OrderedDict, list, tuple, str, int, float, bool,
            None, bytes, numpy array or scalar, torch tensor of any device.

    Raises:
        TypeError: another type, named by its place in `state`.
        ValueError: nested deeper than `MAX_DEPTH`.

    >>> encode({"step": 3, "weights": (np.float32([0.5, 0.5]), float("inf"))}).tree
    ['dict', 'step', 3, 'weights', ['tuple', ['array', 0, '<f4', [2]], ['float', '000000000000f07f']]]
    """  # noqa: E501 - the tree is shown as it is
    encoder = _Encoder()
    tree = encoder.encode(state, "state", 0)
    return Encoded(tree, encoder.payloads, encoder.offset)


def payload_view(payload: Payload) -> memoryview:
    r"""View a payload's bytes; copies only what is not contiguous or not on the CPU.

    >>> bytes(payload_view(np.array([1, 256], dtype="<u2")))
    b'\x01\x00\x00\x01'
    """
    if isinstance(payload, bytes):
        return memoryview(payload)
    if isinstance(payload, Tensor):
        payload = payload.detach().cpu().resolve_conj().resolve_neg().contiguous()
        # A tensor of one element is contiguous whatever its stride says, a view of bytes is not.
        flat = payload.as_strided((payload.numel(),), (1,))
        return array_view(flat.view(torch.uint8).numpy())
    return array_view(np.ascontiguousarray(payload))


def array_view(array: npt.NDArray[Any]) -> memoryview:
    """View the bytes of a C-contiguous array, writable if the array is.

    >>> len(array_view(np.zeros(3, "<M8[s]")))
    24
    """
    # Dates and strings have no buffer of their own kind; an empty array has no last axis to view.
    return array.reshape(-1).view(np.uint8).data if array.nbytes else memoryview(bytearray())


class _Encoder:
    def __init__(self) -> None:
        self.payloads: list[Payload] = []
        self.offset = 0

    def encode(self, value: Any, place: str, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise ValueError(
                f"{place[:80]}... is nested deeper than {MAX_DEPTH} levels, "
                "does the state contain itself?"
            )
        # Exact types: a subclass would come back as something else, in silence.
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if value.bit_length() <= 64 else ["int", hex(value)]
        if kind is float:
            return value if math.isfinite(value) else ["float", struct.pack("<d", value).hex()]
        if kind is bytes:
            return ["bytes", self._place(value, len(value)), len(value)]
        if kind in (dict, OrderedDict, list, tuple):
            return self._encode_container(value, place, depth)
        if isinstance(value, Tensor):
            return self._encode_tensor(value, place)
        if isinstance(value, np.ndarray | np.generic):
            return self._encode_array(value, place)
        raise TypeError(f"{place} is of type {kind.__name__}; {_EXPECTED}")

    def _encode_container(self, value: Any, place: str, depth: int) -> Tree:
        kind = type(value)
        if kind in (list, tuple):
            items = (self.encode(v, f"{place}[{i}]", depth + 1) for i, v in enumerate(value))
            return [kind.__name__, *items]
        tree: list[Tree] = ["dict"]
        if kind is OrderedDict:
            # Module.state_dict() hangs its modules' format versions here; without them
            # load_state_dict() would take the state for one of the oldest version.
            metadata = getattr(value, "_metadata", None)
            tree = ["ordered", self.encode(metadata, f"{place}._metadata", depth + 1)]
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{place} has a key of type {type(key).__name__}; {_EXPECTED}")
            there = f"{place}[{key!r}]"
            tree += [self.encode(key, there, depth + 1), self.encode(item, there, depth + 1)]
        return tree

    def _encode_tensor(self, tensor: Tensor, place: str) -> Tree:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (
            type(tensor) not in (Tensor, torch.nn.Parameter)
            or tensor.layout is not torch.strided
            or tensor.is_meta
            or dtype not in TENSOR_DTYPES
        ):
            raise TypeError(
                f"{place} is of type {type(tensor).__name__}, layout {tensor.layout} and dtype "
                f"{dtype}, on {tensor.device}; {_EXPECTED}"
            )
        offset = self._place(tensor, tensor.numel() * tensor.element_size())
        return ["tensor", offset, dtype, list(tensor.shape)]

    def _encode_array(self, value: npt.NDArray[Any] | np.generic, place: str) -> Tree:
        array = np.asarray(value)
        plain = type(value) in (np.ndarray, np.memmap) or isinstance(value, np.generic)
        if not plain or array.dtype.kind not in ARRAY_KINDS or array.dtype.itemsize == 0:
            raise TypeError(
                f"{place} is of type {type(value).__name__} and dtype {array.dtype}; {_EXPECTED}"
            )
        kind = "scalar" if isinstance(value, np.generic) else "array"
        return [kind, self._place(array, array.nbytes), array.dtype.str, list(array.shape)]

    def _place(self, payload: Payload, nbytes: int) -> int:
        self.payloads.append(payload)
        self.offset += nbytes
        return self.offset - nbytes
