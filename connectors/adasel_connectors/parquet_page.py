"""Find the values in the body of one page of a Parquet file, without copying them.

Source: the Parquet format, "Data Pages", "Nested Encoding" and "Encodings".
"""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types

from adasel_connectors.parquet_header import UnfamiliarError
from adasel_connectors.parquet_levels import are_all, hybrid

__all__ = ["Leaf", "Page", "by_dictionary", "find_leaf", "plain", "split_levels"]

_LENGTH = struct.Struct("<I")
_NUMBERS = {pa.float32(): 4, pa.float64(): 8, pa.int32(): 4, pa.int64(): 8}  # stored as they are

Present = npt.NDArray[np.bool_] | None
"""Which rows are not null, shape (rows,); None where all are there."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """How the values of a column are stored.

    Attributes:
        number: of the column among those that are stored; nested columns have several.
        is_list: whether rows are lists.
        values_per_row: 1, or the length of its lists.
        width: bytes of each row; 0 where a length is stored before each value.
        max_definition_level: what the format calls so: 1 where rows can be null.
    """

    number: int
    is_list: bool
    values_per_row: int
    width: int
    max_definition_level: int


@dataclass(frozen=True, slots=True)
class Page:
    """The rows of one page, or the values of a dictionary, ready to be picked.

    Attributes:
        data: where they lie.
        bounds: where each of them begins in it, and the last one ends.
        prefix: bytes at the beginning of each, which hold its length.
        indices: which of the values each row has, -1 for a null; None where row i has value i.
    """

    data: memoryview
    bounds: Sequence[int]
    prefix: int
    indices: Sequence[int] | None = None

    def value(self, row: int) -> bytes | None:
        """Copy the value of a row of the page; None for a null."""
        at = row if self.indices is None else self.indices[row]
        if at < 0:
            return None
        return bytes(self.data[self.bounds[at] + self.prefix : self.bounds[at + 1]])


def find_leaf(name: str, arrow_type: Any, schema: Any) -> Leaf | None:
    """Say how a column is stored; None where its pages are not understood here.

    Understood are texts, bytes, and lists of one length of floats and of integers of 32 and 64
    bits. Lists of other lengths would need every row's level to be decoded.

    Args:
        name: of the column.
        arrow_type: its type.
        schema: Arrow's Parquet schema of the file.
    """
    paths = [schema.column(i).path for i in range(len(schema.names))]
    numbers = [i for i, path in enumerate(paths) if path == name or path.startswith(f"{name}.")]
    if len(numbers) != 1:
        return None
    (number,) = numbers
    column = schema.column(number)
    highest = column.max_definition_level
    if pa.types.is_fixed_size_list(arrow_type) and arrow_type.value_type in _NUMBERS:
        width = arrow_type.list_size * _NUMBERS[arrow_type.value_type]
        one_level = column.max_repetition_level == 1 and width
        return Leaf(number, True, arrow_type.list_size, width, highest) if one_level else None
    if column.max_repetition_level or highest > 1:
        return None
    if column.physical_type == "BYTE_ARRAY":
        return Leaf(number, False, 1, 0, highest)
    if pa.types.is_fixed_size_binary(arrow_type) and column.length:
        return Leaf(number, False, 1, column.length, highest)
    return None


def split_levels(body: memoryview, leaf: Leaf, values: int) -> tuple[Present, memoryview]:
    """Read which rows of a page are there, and give the rest of its body.

    Raises:
        UnfamiliarError: the levels are cut; or the column is one of lists, and one is null or
            has a null in it.
    """
    if leaf.is_list:
        # The type promises the length of lists, so these levels say nothing new.
        _, body = _section(body)
    highest = leaf.max_definition_level
    if not highest:
        return None, body
    levels, rest = _section(body)
    if are_all(highest, levels, highest.bit_length(), values):
        return None, rest
    if leaf.is_list:
        raise UnfamiliarError("a list is null or has a null in it")
    return hybrid(levels, 1, values) == 1, rest


def plain(body: memoryview, leaf: Leaf, rows: int, present: Present) -> Page:
    """Find the rows of a page whose values are stored one after another.

    Raises:
        UnfamiliarError: a value reaches out of the page.
    """
    stored = rows if present is None else int(present.sum())
    bounds: Sequence[int]
    if leaf.width:
        bounds, prefix = range(0, (stored + 1) * leaf.width, leaf.width), 0
    else:
        bounds, prefix = _chain(body, stored), _LENGTH.size
    if bounds[-1] > len(body):
        raise UnfamiliarError("a value reaches out of its page")
    if present is None:
        return Page(body, bounds, prefix)
    return Page(body, bounds, prefix, _indices(np.arange(stored), present))


def by_dictionary(body: memoryview, dictionary: Page, rows: int, present: Present) -> Page:
    """Find the rows of a page that are stored as indices of a dictionary.

    Raises:
        UnfamiliarError: the indices are cut or lie outside of the dictionary.
    """
    if not body:
        raise UnfamiliarError("indices are cut")
    stored = rows if present is None else int(present.sum())
    chosen = hybrid(body[1:], body[0], stored)
    if stored and chosen.max() >= len(dictionary.bounds) - 1:
        raise UnfamiliarError("an index lies outside of its dictionary")
    return replace(dictionary, indices=_indices(chosen, present))


def _section(body: memoryview) -> tuple[memoryview, memoryview]:
    """Split off levels, which have their length before them."""
    if len(body) < _LENGTH.size:
        raise UnfamiliarError("levels are cut")
    stop = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    if stop > len(body):
        raise UnfamiliarError("levels are cut")
    return body[_LENGTH.size : stop], body[stop:]


def _chain(body: memoryview, values: int) -> Sequence[int]:
    """Step from length to length; return where each begins, and the end."""
    bounds = [0]
    at = 0
    read, step, add = _LENGTH.unpack_from, _LENGTH.size, bounds.append
    try:
        for _ in range(values):
            at += step + read(body, at)[0]
            add(at)
    except struct.error as error:
        raise UnfamiliarError("a value reaches out of its page") from error
    return array("q", bounds)


def _indices(chosen: npt.NDArray[np.int64], present: Present) -> Sequence[int]:
    """Give each row the index of its value, and -1 to the rows that are null."""
    if present is not None:
        spread = np.full(len(present), -1, np.int64)
        spread[present] = chosen
        chosen = spread
    return array("q", chosen.tobytes())
