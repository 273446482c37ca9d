"""Give single values of a wide Parquet column without decoding their neighbours.

Arrow decodes whole row groups: to give one image of a thousand it decompresses and copies all of
them. This reader knows where pages lie and steps over values: of a page that is stored
uncompressed it touches only lengths and the chosen values, of a compressed one it decompresses
that page and no other.

It knows flat columns of text and bytes, stored plainly or by dictionary, in data pages of the
first version: what Arrow, Spark and DuckDB write unasked. Of everything else, and of most
damage, it says `UnfamiliarError`; Arrow may then read it, or refuse it.

Source: the Parquet format, "Data Pages" and "Encodings".
"""

import struct
from array import array
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types

from adasel_connectors.byte_cache import ByteCache
from adasel_connectors.damage import DamageError
from adasel_connectors.parquet_file import arrow_errors
from adasel_connectors.parquet_header import (
    DATA,
    DICTIONARY,
    PageHeader,
    UnfamiliarError,
    read_page_header,
)
from adasel_connectors.parquet_levels import hybrid

__all__ = ["ChunkPages", "Page", "is_familiar"]

_ENCODINGS = frozenset({"PLAIN", "RLE", "BIT_PACKED", "RLE_DICTIONARY", "PLAIN_DICTIONARY"})
_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "GZIP": "gzip", "ZSTD": "zstd"}
_PLAIN, _BY_DICTIONARY = 0, (2, 8)
_MOST_VALUES, _MOST_BYTES = 1 << 24, 1 << 28  # of a page; what is larger is left to Arrow
_LENGTH = struct.Struct("<I")
_PAGE_BYTES = 300  # of the objects that remember where one page lies


@dataclass(frozen=True, slots=True)
class Page:
    """The values of one page, or of a dictionary, ready to be picked.

    Attributes:
        data: where they lie.
        bounds: where each of them begins in it, and the last one ends.
        prefix: bytes at the beginning of each, which hold its length.
        indices: which of the values each row has, -1 for a null; None where row i has value i.
    """

    data: memoryview
    bounds: Sequence[int]
    prefix: int
    indices: Sequence[int] | None

    def value(self, row: int) -> bytes | None:
        """Copy the value of a row of the page; None for a null."""
        at = row if self.indices is None else self.indices[row]
        if at < 0:
            return None
        return bytes(self.data[self.bounds[at] + self.prefix : self.bounds[at + 1]])


def is_familiar(chunk: Any, column: Any) -> bool:
    """Tell whether the pages of a column chunk are of a kind that can be read here.

    Args:
        chunk: Arrow's metadata of it.
        column: the column in Arrow's Parquet schema.
    """
    return bool(
        chunk.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
        and column.max_repetition_level == 0
        and column.max_definition_level <= 1
        and chunk.compression in _CODECS
        and _ENCODINGS.issuperset(chunk.encodings)
    )


class ChunkPages:
    """The pages of one column in one row group."""

    def __init__(
        self,
        view: memoryview,
        chunk: Any,
        column: Any,
        *,
        rows: int,
        cache: ByteCache[Any],
        key: Hashable,
    ) -> None:
        """Find the pages by walking their headers.

        Args:
            view: the whole file.
            chunk: metadata of a chunk that `is_familiar`.
            column: the column in the schema.
            rows: of the row group.
            cache: of pages, shared with others.
            key: of this chunk in the cache.

        Raises:
            UnfamiliarError: the pages are not what the metadata promise.
        """
        self._view = view
        self._codec = _CODECS[chunk.compression]
        self._width = column.length if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
        self._nullable = column.max_definition_level == 1
        self._cache, self._key = cache, key
        self._dictionary: tuple[PageHeader, int] | None = None
        self._pages: list[tuple[PageHeader, int]] = []
        offsets = (chunk.dictionary_page_offset, chunk.data_page_offset)
        start = min(offset for offset in offsets if offset is not None)
        self._walk(start, start + chunk.total_compressed_size, rows)
        ends = accumulate(header.values for header, _ in self._pages)
        self._first_rows = [0, *ends]

    @property
    def size(self) -> int:
        """Bytes of memory that are kept for it."""
        return _PAGE_BYTES * len(self._pages)

    def picked(self, rows: list[int]) -> list[bytes | DamageError | None]:
        """Copy the values of rows of the row group; None for a null.

        A `DamageError` stands for one whose page has a wrong checksum or cannot be decompressed.

        Raises:
            UnfamiliarError: a page is not what its header promises.
        """
        values: list[bytes | DamageError | None] = []
        page: Page | DamageError | None = None
        first = stop = 0
        for row in rows:
            if not first <= row < stop:  # most rows are in the page of the one before
                number = bisect_right(self._first_rows, row) - 1
                first, stop = self._first_rows[number : number + 2]
                page = self._page(number)
            values.append(page.value(row - first) if isinstance(page, Page) else page)
        return values

    def _page(self, number: int) -> Page | DamageError:
        try:
            page: Page = self._cache.get((self._key, number), partial(self._load, number))
        except DamageError as damage:
            return damage
        return page

    def _load(self, number: int) -> tuple[Page, int]:
        header, start = self._pages[number]
        body = self._body(header, start)
        present = None
        if self._nullable:
            present, body = _present(body, header.values)
        count = header.values if present is None else int(present.sum())
        if header.encoding == _PLAIN:
            return self._plain(header, body, count, present)
        if header.encoding not in _BY_DICTIONARY or not body:
            raise UnfamiliarError("a page of an unknown encoding")
        dictionary: Page = self._cache.get((self._key, "dictionary"), self._load_dictionary)
        chosen = hybrid(body[1:], body[0], count)
        if count and chosen.max() >= len(dictionary.bounds) - 1:
            raise UnfamiliarError("an index lies outside of its dictionary")
        indices = array("q", _spread(chosen, present).tobytes())
        return replace(dictionary, indices=indices), 8 * len(indices)

    def _load_dictionary(self) -> tuple[Page, int]:
        if self._dictionary is None:
            raise UnfamiliarError("a dictionary is missing")
        header, start = self._dictionary
        return self._plain(header, self._body(header, start), header.values, None)

    def _walk(self, start: int, stop: int, rows: int) -> None:
        found = 0
        while found < rows:
            header, body = read_page_header(self._view, start)
            start = body + header.packed_bytes
            if start > stop:
                raise UnfamiliarError("a page reaches out of its column")
            if header.values > _MOST_VALUES or header.unpacked_bytes > _MOST_BYTES:
                raise UnfamiliarError("a page is too large")
            if header.kind == DICTIONARY and self._dictionary is None and not self._pages:
                self._dictionary = header, body
            elif header.kind == DATA:
                self._pages.append((header, body))
                found += header.values
            else:
                raise UnfamiliarError("a page of an unknown kind")
        if found > rows:
            raise UnfamiliarError("pages have more rows than their row group")

    def _body(self, header: PageHeader, start: int) -> memoryview:
        packed = self._view[start : start + header.packed_bytes]
        if header.crc is not None and crc32(packed) != header.crc:
            raise DamageError("unreadable", "a page fails its checksum", one_sample=True)
        if self._codec is None:
            return packed
        with arrow_errors():
            unpacked = pa.decompress(packed, header.unpacked_bytes, codec=self._codec)
        return memoryview(unpacked)

    def _plain(
        self,
        header: PageHeader,
        body: memoryview,
        count: int,
        present: npt.NDArray[np.bool_] | None,
    ) -> tuple[Page, int]:
        """Find where `count` values begin that are stored one after another."""
        bounds: Sequence[int]
        if self._width:
            bounds, prefix = range(0, (count + 1) * self._width, self._width), 0
        else:
            bounds, prefix = _chain(body, count), _LENGTH.size
        if bounds[-1] > len(body):
            raise UnfamiliarError("a value reaches out of its page")
        indices = None
        if present is not None:
            indices = array("q", _spread(np.arange(count), present).tobytes())
        kept = header.unpacked_bytes if self._codec else 0
        return Page(body, bounds, prefix, indices), kept + 8 * (count + header.values)


def _chain(body: memoryview, count: int) -> Sequence[int]:
    """Step from length to length; return where values and their lengths begin, and the end."""
    bounds = [0]
    at = 0
    read, step, add = _LENGTH.unpack_from, _LENGTH.size, bounds.append
    try:
        for _ in range(count):
            at += step + read(body, at)[0]
            add(at)
    except struct.error as error:
        raise UnfamiliarError("a value reaches out of its page") from error
    return array("q", bounds)


def _present(body: memoryview, rows: int) -> tuple[npt.NDArray[np.bool_] | None, memoryview]:
    """Read which rows are not null, or None when all are there; and what follows in the page."""
    if len(body) < _LENGTH.size:
        raise UnfamiliarError("a page has no levels")
    (size,) = _LENGTH.unpack_from(body)
    present = hybrid(body[_LENGTH.size : _LENGTH.size + size], 1, rows) == 1
    return None if present.all() else present, body[_LENGTH.size + size :]


def _spread(
    indices: npt.NDArray[np.int64], present: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.int64]:
    """Give each row its index, and -1 to the rows that are null."""
    if present is None:
        return indices
    spread = np.full(len(present), -1, np.int64)
    spread[present] = indices
    return spread
