"""Give single values of a wide Parquet column without decoding their neighbours.

Arrow decodes whole row groups: to give one image of a thousand it decompresses and copies all of
them. This reader knows where pages lie and steps over values: of a page that is stored
uncompressed it touches only lengths and the chosen values, of a compressed one it decompresses
that page and no other.

It knows columns that `find_leaf` describes, stored plainly or by dictionary, in data pages of
the first version: what Arrow, Spark and DuckDB write unasked. Of everything else, and of most
damage, it says `UnfamiliarError`; Arrow may then read it, or refuse it.
"""

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any, TypeAlias
from zlib import crc32

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types

from adasel_connectors.damage import DamageError
from adasel_connectors.parquet_file import arrow_errors
from adasel_connectors.parquet_header import (
    DATA,
    DICTIONARY,
    PageHeader,
    UnfamiliarError,
    read_page_header,
)
from adasel_connectors.parquet_page import Leaf, Page, by_dictionary, plain, split_levels

__all__ = ["ChunkPages"]

_ENCODINGS = frozenset({"PLAIN", "RLE", "BIT_PACKED", "RLE_DICTIONARY", "PLAIN_DICTIONARY"})
_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "GZIP": "gzip", "ZSTD": "zstd"}
_PLAIN, _BY_DICTIONARY = 0, (2, 8)
_MOST_VALUES, _MOST_BYTES = 1 << 24, 1 << 28  # of a page; what is larger is left to Arrow
_HELD_BYTES = 300  # of the objects that remember where one page lies
_INDEX_BYTES = 16  # a bound and an index
_DICTIONARY = -1  # its number among the pages

Cached: TypeAlias = Callable[[int, Callable[[], tuple[Page, int]]], Page]
"""Gives the page of a number, which the function makes, with its size, where it is not known."""


class ChunkPages:
    """The pages of one column in one row group."""

    def __init__(self, view: memoryview, chunk: Any, leaf: Leaf, rows: int) -> None:
        """Find the pages by walking their headers.

        Args:
            view: the whole file.
            chunk: Arrow's metadata of the column in the row group.
            leaf: how the column is stored.
            rows: of the row group.

        Raises:
            UnfamiliarError: the pages are of another kind, or not what the metadata promise.
        """
        if chunk.compression not in _CODECS or not _ENCODINGS.issuperset(chunk.encodings):
            raise UnfamiliarError("its compression or encoding is not known here")
        self._view = view
        self._codec = _CODECS[chunk.compression]
        self._leaf = leaf
        self._dictionary: tuple[PageHeader, int] | None = None
        self._pages: list[tuple[PageHeader, int]] = []
        offsets = (chunk.dictionary_page_offset, chunk.data_page_offset)
        start = min(offset for offset in offsets if offset is not None)
        stop = start + chunk.total_compressed_size
        if start < 0 or stop > len(view):
            raise UnfamiliarError("it lies outside of the file")
        self._walk(start, stop, rows * leaf.values_per_row)
        ends = accumulate(header.values // leaf.values_per_row for header, _ in self._pages)
        self._first_rows = [0, *ends]

    @property
    def size(self) -> int:
        """Bytes of memory that are kept for it."""
        return _HELD_BYTES * len(self._pages)

    def picked(self, rows: list[int], cached: Cached) -> list[bytes | DamageError | None]:
        """Copy the values of rows of the row group; None for a null.

        A `DamageError` stands for one whose page has a wrong checksum or cannot be decompressed.

        Args:
            rows: numbers in the row group.
            cached: gives pages that are known, and has others made.

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
                page = self._page(number, cached)
            values.append(page.value(row - first) if isinstance(page, Page) else page)
        return values

    def _walk(self, start: int, stop: int, values: int) -> None:
        found = 0
        while found < values:
            header, body = read_page_header(self._view, start)
            start = body + header.packed_bytes
            if start > stop:
                raise UnfamiliarError("a page reaches out of its column")
            if header.values > _MOST_VALUES or header.unpacked_bytes > _MOST_BYTES:
                raise UnfamiliarError("a page is too large")
            if header.kind == DICTIONARY and self._dictionary is None and not self._pages:
                self._dictionary = header, body
            elif header.kind == DATA and not header.values % self._leaf.values_per_row:
                self._pages.append((header, body))
                found += header.values
            else:
                raise UnfamiliarError("a page of an unknown kind, or one that ends within a row")
        if found > values:
            raise UnfamiliarError("pages have more rows than their row group")

    def _page(self, number: int, cached: Cached) -> Page | DamageError:
        try:
            return cached(number, partial(self._load, number, cached))
        except DamageError as damage:
            return damage

    def _load(self, number: int, cached: Cached) -> tuple[Page, int]:
        header, start = self._pages[number]
        rows = header.values // self._leaf.values_per_row
        present, body = split_levels(self._body(header, start), self._leaf, header.values)
        if header.encoding == _PLAIN:
            return plain(body, self._leaf, rows, present), self._size(header, rows)
        if header.encoding not in _BY_DICTIONARY or self._leaf.is_list:
            raise UnfamiliarError("a page of an unknown encoding")
        dictionary = cached(_DICTIONARY, self._load_dictionary)
        return by_dictionary(body, dictionary, rows, present), _INDEX_BYTES * rows

    def _load_dictionary(self) -> tuple[Page, int]:
        if self._dictionary is None:
            raise UnfamiliarError("a dictionary is missing")
        header, start = self._dictionary
        body = self._body(header, start)
        return plain(body, self._leaf, header.values, None), self._size(header, header.values)

    def _body(self, header: PageHeader, start: int) -> memoryview:
        packed = self._view[start : start + header.packed_bytes]
        if header.crc is not None and crc32(packed) != header.crc:
            raise DamageError("unreadable", "a page fails its checksum", one_sample=True)
        if self._codec is None:
            return packed
        with arrow_errors():
            unpacked = pa.decompress(packed, header.unpacked_bytes, codec=self._codec)
        return memoryview(unpacked)

    def _size(self, header: PageHeader, rows: int) -> int:
        return _INDEX_BYTES * rows + (header.unpacked_bytes if self._codec else 0)
