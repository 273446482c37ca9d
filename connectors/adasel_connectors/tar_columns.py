"""Turn the parts of tar samples into columns of a batch, without running anything from them.

Only four extensions are decoded unasked: `json`, `txt`, `cls` (a whole number) and `npy`.
Everything else stays bytes until the user's own decoder, or the model's code, opens it. There
is no decoder that unpickles, and none can be switched on.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_connectors.damage import DamageError
from adasel_connectors.npy import read_header

__all__ = ["Column", "Decoder", "column_for", "decode_part"]

Decoder: TypeAlias = Callable[[bytes], Any]
"""From one part's bytes to its value; whatever it raises marks the sample as unusable."""

_LARGEST_JSON_BYTES = 1 << 22  # parsed, it can take twenty times as much memory
_NUMBER = re.compile(rb"\s*-?[0-9]{1,18}\s*")


class Column(Protocol):
    """Two steps: check and decode each value, then join those of a batch."""

    decode: Decoder | None
    """Applied to each part as it is read; None keeps the bytes."""

    value: Decoder
    """Makes of one part, apart from any batch, what a row of the column would be."""

    def join(self, values: list[Any]) -> Any:
        """Make a column of b values: a tensor, a list, or an array of objects, b rows."""
        ...


def column_for(extension: str, decoders: Mapping[str, Decoder | None]) -> Column:
    """Choose how an extension becomes a column.

    Args:
        extension: lower case, without the first dot; of `left.npy` the last part counts.
        decoders: the user's own by extension; None, or `bytes`, keeps the bytes.

    >>> column_for("cls", {}).join([3, 4])
    tensor([3, 4])
    >>> column_for("cls", {"cls": None}).join([b"3", b"4"])
    [b'3', b'4']
    """
    if extension in decoders:
        decoder = decoders[extension]
        return _Plain() if decoder is None or decoder is bytes else _Decoded(decoder)
    last = extension.rpartition(".")[2]
    if last == "npy":
        return _Npy()
    known: dict[str, Decoder] = {"json": _json, "txt": bytes.decode, "cls": _number}
    return _Decoded(known[last]) if last in known else _Plain()


def decode_part(extension: str, decode: Decoder, part: bytes) -> Any:
    """Decode one part of a sample.

    Raises:
        DamageError: the decoder raised something.

    >>> decode_part("txt", bytes.decode, b"two words")
    'two words'
    """
    try:
        return decode(part)
    except DamageError:
        raise
    except Exception as error:  # a decoder of the user's may raise anything
        reason = f"its {extension} part cannot be decoded: {type(error).__name__}"
        raise DamageError("decode", reason, one_sample=True) from error


class _Plain:
    def __init__(self) -> None:
        self.decode: Decoder | None = None
        self.value: Decoder = bytes

    def join(self, values: list[bytes]) -> list[bytes]:
        return values


class _Decoded:
    def __init__(self, decode: Decoder) -> None:
        self.decode: Decoder | None = decode
        self.value: Decoder = decode

    def join(self, values: list[Any]) -> Any:
        return join_values(values)


class _Npy:
    """Arrays in NumPy's own format, stacked without a Python step for each when all are alike."""

    def __init__(self) -> None:
        self.decode: Decoder | None = self._check
        self.value: Decoder = _tensor
        self._head, self._size = b"", -1

    def _check(self, part: bytes) -> bytes:
        if len(part) != self._size or not part.startswith(self._head):
            header = read_header(part)
            self._head, self._size = part[: header.start], len(part)
        return part

    def join(self, values: list[bytes]) -> Any:
        header = read_header(values[0])
        head, size = values[0][: header.start], len(values[0])
        if not all(len(value) == size and value.startswith(head) for value in values):
            return join_values([read_header(v).arrays([v])[0] for v in values])
        return torch.from_numpy(header.arrays(values))


def join_values(values: list[Any]) -> Any:
    """Stack tensors, arrays and numbers that are alike; keep anything else as it is.

    Strings and bytes come back as a list, mixed or nested values as an object array, shape
    (b,): a list of lists would be taken for columns.

    >>> join_values([torch.zeros(3), torch.ones(3)]).shape
    torch.Size([2, 3])
    >>> join_values([{"a": 1}, {"b": 2}])
    array([{'a': 1}, {'b': 2}], dtype=object)
    """
    first = values[0]
    if not all(type(value) is type(first) for value in values):
        return _objects(values)
    if isinstance(first, str | bytes):
        return values
    if isinstance(first, bool | float):
        return torch.tensor(values, dtype=torch.bool if isinstance(first, bool) else torch.float64)
    if isinstance(first, int):
        fits = all(-(2**63) <= value < 2**63 for value in values)
        return torch.tensor(values, dtype=torch.int64) if fits else _objects(values)
    if isinstance(first, np.ndarray):
        return _stack_arrays(cast("list[npt.NDArray[Any]]", values))
    if isinstance(first, Tensor) and _alike(values):
        return torch.stack(cast("list[Tensor]", values))
    return _objects(values)


def _stack_arrays(arrays: list[npt.NDArray[Any]]) -> Any:
    if arrays[0].dtype.kind in "biuf" and _alike(arrays):
        return torch.from_numpy(np.stack(arrays))
    return _objects(arrays)


def _alike(values: Sequence[Any]) -> bool:
    return len({(value.shape, value.dtype) for value in values}) == 1


def _objects(values: Sequence[Any]) -> npt.NDArray[np.object_]:
    # filled one by one: numpy would make a matrix of values that are sequences themselves
    objects = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        objects[i] = value
    return objects


def _tensor(part: bytes) -> Tensor:
    return torch.from_numpy(read_header(part).arrays([part])[0])


def _json(part: bytes) -> Any:
    if len(part) > _LARGEST_JSON_BYTES:
        raise DamageError("too_large", "its JSON is larger than 4 MiB", one_sample=True)
    return json.loads(part)


def _number(part: bytes) -> int:
    if _NUMBER.fullmatch(part) is None:
        raise DamageError("decode", "its class is not a whole number", one_sample=True)
    return int(part)
