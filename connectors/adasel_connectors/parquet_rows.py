"""Read single rows of a Parquet shard's deferred columns."""

import logging
from bisect import bisect_right
from collections.abc import Callable, Generator, Mapping
from functools import partial
from itertools import accumulate
from threading import Lock
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
from torch import Tensor

from adasel_connectors.byte_cache import ByteCache
from adasel_connectors.damage import DamageError, shown
from adasel_connectors.parquet_columns import (
    filled,
    first_null,
    null_damage,
    to_column,
    value_reader,
)
from adasel_connectors.parquet_file import arrow_errors, rows_at_once
from adasel_connectors.parquet_header import UnfamiliarError
from adasel_connectors.parquet_page import Page, find_leaf
from adasel_connectors.parquet_pages import ChunkPages
from adasel_connectors.references import ID
from adasel_connectors.shards import ShardFile

__all__ = ["ParquetRows"]

_log = logging.getLogger("adasel_connectors")

_ROW = 0xFFFFFFFF


class ParquetRows:
    """The deferred columns of one open shard; what `adasel_connectors.open_shards` asks for.

    Values are picked from their pages where the layout allows it. Where it does not, the row
    group's column is decoded as a whole, once for all that is fetched from it soon.
    """

    def __init__(
        self,
        file: ShardFile,
        digest: int,
        opened: Any,
        *,
        deferred: tuple[str, ...],
        fill_nulls: Mapping[str, Any],
        pages: ByteCache[Any],
        decoded: ByteCache[list[Any] | None],
        untold: set[str],
    ) -> None:
        """Read from `opened`, an Arrow Parquet file over the view of `file`.

        Args:
            file: the shard.
            digest: of its content.
            opened: the same as Arrow opened it.
            deferred: names of its columns that are read.
            fill_nulls: what stands for a null, by column.
            pages: a cache of them, shared with other shards.
            decoded: the same of columns of whole row groups.
            untold: columns of which nobody was told that they are decoded so; shared, too.
        """
        self.file, self.digest = file, digest
        self._opened, self._metadata = opened, opened.metadata
        self._fill_nulls = fill_nulls
        self._pages, self._whole = pages, decoded
        self._untold = untold
        self._view = memoryview(file.view)
        self._lock = Lock()  # Arrow reads one thing at a time from a file
        groups = range(self._metadata.num_row_groups)
        self._ends = list(accumulate(self._metadata.row_group(i).num_rows for i in groups))
        self._types = {name: opened.schema_arrow.field(name).type for name in deferred}
        found = {name: find_leaf(name, self._types[name], opened.schema) for name in deferred}
        self._leaves = {name: leaf for name, leaf in found.items() if leaf is not None}
        self._read = {name: value_reader(self._types[name]) for name in self._leaves}
        self._unfamiliar = {
            (name, group) for name in deferred for group in groups if name not in self._leaves
        }

    def values(self, name: str, references: list[list[int]]) -> tuple[list[Any], int]:
        """Read values of a column; a `DamageError` stands for one that cannot be had."""
        rows = [reference[ID] & _ROW for reference in references]
        groups: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(bisect_right(self._ends, row), []).append(i)
        values: list[Any] = [None] * len(rows)
        for group, indices in groups.items():
            first = self._ends[group - 1] if group else 0
            found = self._of_group(name, group, [rows[i] - first for i in indices])
            for i, value in zip(indices, found, strict=True):
                values[i] = value
        sized = (value for value in values if not isinstance(value, DamageError))
        return values, sum(v.nbytes if isinstance(v, Tensor) else len(v) for v in sized)

    def forget(self) -> None:
        """Drop the pages and columns that are cached of it."""
        self._pages.forget(self.file.stamp)
        self._whole.forget(self.file.stamp)

    def _of_group(self, name: str, group: int, rows: list[int]) -> list[Any]:
        if group == len(self._ends):
            return [DamageError("changed", "the shard has no such row")] * len(rows)
        try:
            if (name, group) not in self._unfamiliar:
                try:
                    return self._picked(name, group, rows)
                except UnfamiliarError:
                    self._unfamiliar.add((name, group))
            self._tell_whole(name)
            return self._decoded(name, group, rows)
        except DamageError as damage:
            return [damage] * len(rows)

    def _picked(self, name: str, group: int, rows: list[int]) -> list[Any]:
        """Pick values from their pages."""
        find = partial(self._find_pages, group, name)
        pages: ChunkPages = self._pages.get(self.file.stamp, (group, name), find)

        def cached(number: int, make: Callable[[], tuple[Page, int]]) -> Page:
            page: Page = self._pages.get(self.file.stamp, (group, name, number), make)
            return page

        return [self._converted(name, value) for value in pages.picked(rows, cached)]

    def _find_pages(self, group: int, name: str) -> tuple[ChunkPages, int]:
        leaf = self._leaves[name]
        row_group = self._metadata.row_group(group)
        chunk = row_group.column(leaf.number)
        pages = ChunkPages(self._view, chunk, leaf, row_group.num_rows)
        return pages, pages.size

    def _converted(self, name: str, value: bytes | DamageError | None) -> Any:
        if value is None and name not in self._fill_nulls:
            return null_damage(name)
        if value is None:
            return pa.scalar(self._fill_nulls[name], self._types[name]).as_py()
        if isinstance(value, DamageError):
            return value
        try:
            return self._read[name](value)
        except UnicodeDecodeError:
            return DamageError("unreadable", f"column {shown(name)} is not UTF-8", one_sample=True)

    def _tell_whole(self, name: str) -> None:
        """Warn of what makes deferring pointless, once for each column of a source."""
        try:
            self._untold.remove(name)  # one of several threads succeeds
        except KeyError:
            return
        _log.warning(
            "fetch decodes whole row groups of the deferred column %s, as its %s does not let rows "
            "be picked. Write it as text, bytes or lists of one length, with "
            'compression="none" and use_dictionary=False; small row groups help, too (see '
            "ParquetSource), or do not defer it",
            shown(name),
            "layout" if name in self._leaves else "type",
        )

    def _decoded(self, name: str, group: int, rows: list[int]) -> list[Any]:
        """Decode the row group's column, or take what was decoded before."""
        decode = partial(self._all_of, name, group)
        arrays = self._whole.get(self.file.stamp, (group, name), decode)
        values: list[Any] = [None] * len(rows)
        start = 0
        for array in self._arrays(name, group) if arrays is None else arrays:
            stop = start + len(array)
            here = [i for i, row in enumerate(rows) if start <= row < stop]
            if here:
                taken = array.take(pa.array([rows[i] - start for i in here]))
                for i, value in zip(here, self._columns(name, taken), strict=True):
                    values[i] = value
            start = stop
        if start <= max(rows):
            raise DamageError("cut", "a row group has fewer rows than the file promises")
        return values

    def _all_of(self, name: str, group: int) -> tuple[list[Any] | None, int]:
        """Decode a row group's column; None where it is more than the cache holds."""
        arrays: list[Any] = []
        size = 0
        for array in self._arrays(name, group):
            arrays.append(array)
            size += array.nbytes
            if size > self._whole.limit:
                return None, 0
        return arrays, size

    def _arrays(self, name: str, group: int) -> Generator[Any]:
        rows = rows_at_once(self._metadata, [name], 1)
        with self._lock, arrow_errors():
            for batch in self._opened.iter_batches(
                batch_size=rows, row_groups=[group], columns=[name], use_threads=False
            ):
                yield batch.column(0)

    def _columns(self, name: str, array: Any) -> list[Any]:
        """Convert n rows to n values as a column would have them."""
        array = filled(array, name, self._fill_nulls)
        try:
            if first_null(array) == len(array):
                with arrow_errors():
                    return list(to_column(array))
        except DamageError as damage:  # one text that is not UTF-8, or lists of several lengths
            if len(array) == 1:
                return [damage]
        if len(array) == 1:
            return [null_damage(name)]
        return [
            value for i in range(len(array)) for value in self._columns(name, array.slice(i, 1))
        ]
