"""Turn Arrow arrays into columns of a batch: tensors that share their memory where they can.

Each Arrow type has one kind of column, written as a short text such as `int64`, `float32[3]` or
`text`, so that the shards of a data set can be compared:

- integers stay what they are, but uint16 becomes int32, uint32 and uint64 int64;
- dates, times and timestamps become integers in their own unit, decimals have no column;
- floats keep their width, nulls among them become NaN;
- lists of numbers become rows of a matrix and must all have the same length;
- text becomes a list of str, binary a list of bytes, dictionaries what their values are;
- extension types are refused: reading them runs code that somebody registered.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.compute as pc  # type: ignore[import-untyped]
import torch
import torch.utils.dlpack
from torch import Tensor

from adasel_connectors.damage import DamageError, shown

__all__ = ["filled", "first_null", "kind_of", "null_damage", "to_column", "value_reader"]

_types = pa.types
_INTEGERS = {
    pa.int8(): pa.int8(),
    pa.int16(): pa.int16(),
    pa.int32(): pa.int32(),
    pa.int64(): pa.int64(),
    pa.uint8(): pa.uint8(),
    pa.uint16(): pa.int32(),  # torch computes little on wider unsigned integers
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.int64(),
    pa.date32(): pa.int32(),
    pa.date64(): pa.int64(),
}


def kind_of(field: Any) -> str:
    """Name the kind of column that a field becomes.

    Args:
        field: an Arrow field.

    Raises:
        TypeError: there is none for its type.

    >>> kind_of(pa.field("x", pa.list_(pa.float32(), 3)))
    'float32[3]'
    """
    # An extension type that is not registered here shows only in the field's metadata.
    named = b"ARROW:extension:name" in (field.metadata or {})
    if named or isinstance(field.type, pa.BaseExtensionType):
        raise TypeError("an extension type")
    return _kind(field.type)


def first_null(array: Any) -> int:
    """Find the first row that is null or has a null in it; floats have none.

    Returns:
        Its index, or the number of rows.

    >>> first_null(pa.array([3, None])), first_null(pa.array([0.5, None]))
    (1, 2)
    """
    stop = len(array)
    if _types.is_floating(array.type):
        return stop
    if array.null_count:
        stop = int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
    if _is_list(array.type) and stop:
        head = array.slice(0, stop)
        values = head.flatten()
        if first_null(values) < len(values):
            stop = min(stop, first_null(values) // _width(head))
    return stop


def filled(array: Any, name: str, fill_nulls: Mapping[str, Any]) -> Any:
    """Put a column's value in the place of its nulls, where it has one.

    >>> filled(pa.array([3, None]), "x", {"x": 0}).to_pylist()
    [3, 0]
    """
    if name not in fill_nulls or not array.null_count:
        return array
    if _types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return pc.fill_null(array, pa.scalar(fill_nulls[name], array.type))


def null_damage(name: str) -> DamageError:
    """Say that a row has a null where it must not."""
    reason = f"column {shown(name)} is null; give fill_nulls a value for it"
    return DamageError("null", reason, one_sample=True)


def to_column(array: Any) -> Tensor | list[Any]:
    """Convert an array without null rows to a tensor, shape (n, ...), or a list of n values.

    Raises:
        DamageError: lists differ in length.

    >>> to_column(pa.array([[1, 2], [3, 4]]))
    tensor([[1, 2],
            [3, 4]])
    """
    kind = array.type
    if _types.is_dictionary(kind):
        return _from_dictionary(array)
    if _is_text(kind) or _is_bytes(kind):
        texts: list[Any] = array.to_numpy(zero_copy_only=False).tolist()
        return texts
    if _is_list(kind):
        rows = cast("Tensor", to_column(array.flatten()))
        return rows.view(len(array), _width(array), *rows.shape[1:])
    if _types.is_boolean(kind):
        return _shared(array.cast(pa.uint8())).view(torch.bool)
    if not _types.is_floating(kind):
        return _shared(array.cast(_integer(kind)))
    return _shared(pc.fill_null(array, np.nan) if array.null_count else array)


def value_reader(type_: Any) -> Callable[[bytes], Any]:
    """Choose what turns the stored bytes of one value into a row of its column.

    Args:
        type_: of the column: text, bytes, or lists of one length of floats or whole numbers
            that are stored in their own width.

    >>> value_reader(pa.string())(b"word"), value_reader(pa.list_(pa.int32(), 1))(bytes(4))
    ('word', tensor([0], dtype=torch.int32))
    """
    if _types.is_dictionary(type_):
        return value_reader(type_.value_type)
    if _is_list(type_):
        stored = np.dtype(type_.value_type.to_pandas_dtype()).newbyteorder("<")
        return partial(_to_vector, stored)
    return bytes.decode if _is_text(type_) else bytes


def _to_vector(stored: np.dtype[Any], value: bytes) -> Tensor:
    numbers = np.frombuffer(value, stored)
    return torch.from_numpy(numbers.astype(stored.newbyteorder("=")))  # a copy, to be written to


def _kind(type_: Any) -> str:
    if _types.is_dictionary(type_):
        return _kind(type_.value_type)
    if _is_text(type_):
        return "text"
    if _is_bytes(type_):
        return "bytes"
    if _types.is_boolean(type_):
        return "bool"
    if _types.is_floating(type_):
        return f"float{type_.bit_width}"
    if _is_list(type_):
        inner = kind_of(type_.value_field)
        if not inner.startswith(("int", "uint", "float", "bool")):
            raise TypeError(f"a list of {inner}")
        length = type_.list_size if _types.is_fixed_size_list(type_) else ""
        return f"{inner}[{length}]"
    integer = str(_integer(type_))
    return str(type_) if _types.is_temporal(type_) else integer  # the unit must be the same


def _integer(type_: Any) -> Any:
    if _types.is_time32(type_):
        return pa.int32()
    if _types.is_timestamp(type_) or _types.is_duration(type_) or _types.is_time64(type_):
        return pa.int64()
    if type_ not in _INTEGERS:
        raise TypeError(f"type {type_}")
    return _INTEGERS[type_]


def _from_dictionary(array: Any) -> Tensor | list[Any]:
    if not (_is_text(array.type.value_type) or _is_bytes(array.type.value_type)):
        return to_column(array.dictionary_decode())
    # the list repeats references to one object for each different value
    values = array.dictionary.to_numpy(zero_copy_only=False)
    texts: list[Any] = values[array.indices.to_numpy()].tolist()
    return texts


def _shared(array: Any) -> Tensor:
    # Arrow hands over writable memory by DLPack; by way of numpy it would be marked read-only,
    # and torch warns of that. Nobody else sees the memory: it was decoded for this array.
    tensor: Tensor = torch.utils.dlpack.from_dlpack(array)
    return tensor


def _width(array: Any) -> int:
    if _types.is_fixed_size_list(array.type):
        return int(array.type.list_size)
    lengths = np.diff(array.offsets.to_numpy())
    if (lengths != lengths[0]).any():
        raise DamageError("ragged", "a column has lists of different lengths; pad them")
    return int(lengths[0])


def _is_list(type_: Any) -> bool:
    return bool(
        _types.is_fixed_size_list(type_) or _types.is_list(type_) or _types.is_large_list(type_)
    )


def _is_text(type_: Any) -> bool:
    return bool(
        _types.is_string(type_) or _types.is_large_string(type_) or _types.is_string_view(type_)
    )


def _is_bytes(type_: Any) -> bool:
    return bool(
        _types.is_binary(type_)
        or _types.is_large_binary(type_)
        or _types.is_binary_view(type_)
        or _types.is_fixed_size_binary(type_)
    )
