"""Read the header of a page in a Parquet file: what it holds, and how many bytes follow.

The headers are structs in Thrift's compact protocol. Arrow reads them too, but tells nobody
where pages lie, and decodes all of them to give one row.

Source: the Parquet format, `parquet.thrift`, PageHeader; the Thrift compact protocol.
"""

from typing import NamedTuple, TypeAlias

__all__ = ["DATA", "DICTIONARY", "PageHeader", "UnfamiliarError", "read_page_header", "varint"]

DATA, DICTIONARY = 0, 2
"""Types of pages: values, in the first version of the format, and a dictionary of them."""

_DEEPEST = 3
_LONGEST_VARINT_BITS = 63
_WHOLE = (4, 5, 6)  # the protocol's types: whole numbers of 16, 32 and 64 bits
_FIXED = {1: 0, 2: 0, 3: 1, 7: 8}  # true and false in the type itself, a byte, a double
_BINARY, _STRUCT = 8, 12
_Struct: TypeAlias = "dict[int, int | _Struct]"


class UnfamiliarError(Exception):
    """Says that a column is not laid out as expected here; Arrow may read it, or refuse it."""


class PageHeader(NamedTuple):
    """What a page's header says, checked to be numbers of 0 or more.

    Attributes:
        kind: DATA, DICTIONARY, or another type.
        unpacked_bytes: of its body once decompressed.
        packed_bytes: of its body as stored.
        crc: of its body as stored, 32 bits, or None.
        values: that it holds, nulls included.
        encoding: of its values.
    """

    kind: int
    unpacked_bytes: int
    packed_bytes: int
    crc: int | None
    values: int
    encoding: int


def read_page_header(data: memoryview, start: int) -> tuple[PageHeader, int]:
    """Read the header that begins at a byte; return it and where the page's body begins.

    Raises:
        UnfamiliarError: there is none, or it is not one of a page of the first version.
    """
    try:
        fields, stop = _struct(data, start, 0)
    except IndexError as error:
        raise UnfamiliarError("a page's header is cut") from error
    crc, body = fields.get(4), fields.get(5, fields.get(7))
    if not isinstance(body, dict) or not isinstance(crc, int | None):
        raise UnfamiliarError("a page of an unknown kind")
    numbers = [fields.get(1), fields.get(2), fields.get(3), body.get(1), body.get(2)]
    found = [number for number in numbers if isinstance(number, int) and number >= 0]
    if len(found) < len(numbers):
        raise UnfamiliarError("a page's header lacks a number")
    kind, unpacked, packed, values, encoding = found
    checksum = None if crc is None else crc & 0xFFFFFFFF
    return PageHeader(kind, unpacked, packed, checksum, values, encoding), stop


def varint(data: memoryview, at: int) -> tuple[int, int]:
    r"""Read a number of 7 bits a byte, the lowest first; return it and the byte after it.

    Raises:
        IndexError: the data ends before it does.
        UnfamiliarError: it is longer than any number of 64 bits.

    >>> varint(memoryview(b"\xac\x02"), 0)
    (300, 2)
    """
    number = shift = 0
    while (byte := data[at]) & 0x80:
        number |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > _LONGEST_VARINT_BITS:
            raise UnfamiliarError("a number is too long")
    return number | byte << shift, at + 1


def _struct(data: memoryview, at: int, depth: int) -> tuple[_Struct, int]:
    """Read whole numbers and structs by field number; pass over everything else."""
    fields: _Struct = {}
    field = 0
    while head := data[at]:
        at += 1
        kind = head & 0x0F
        if head >> 4:
            field += head >> 4
        else:
            field, at = _whole(data, at)
        if kind in _WHOLE and data[at] < 0x80:  # most numbers have one byte
            fields[field], at = data[at] >> 1 ^ -(data[at] & 1), at + 1
        elif kind in _WHOLE:
            fields[field], at = _whole(data, at)
        elif kind == _STRUCT and depth < _DEEPEST:
            fields[field], at = _struct(data, at, depth + 1)
        elif kind == _BINARY:
            size, at = varint(data, at)
            at += size
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise UnfamiliarError("a field of a page's header is of an unknown type")
    return fields, at + 1


def _whole(data: memoryview, at: int) -> tuple[int, int]:
    number, at = varint(data, at)
    return number >> 1 ^ -(number & 1), at
