"""Rows of a record as Parquet, sorted by key, and back; nothing in a file is trusted.

Columns, all required: key uint64, id int64, ema and last float, tick uint32, count and version
uint16. `id` is what the key was made of, so that other programs can read a file as it is. Row
groups hold at most `GROUP_ROWS` rows, so that a range of keys is read without most others. Every
page has a checksum.
"""

from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped] # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from adasel_stream.errors import DamagedSnapshotError
from adasel_stream.keys import ids_of_keys
from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.snapshots.pieces import Pieces

__all__ = [
    "GROUP_ROWS",
    "SHARDS",
    "RowsFile",
    "encode_groups",
    "shards_of",
    "sorted_groups",
]

SHARDS: Final = 1024
"""Virtual shards: a key's top 10 bits name its own."""

GROUP_ROWS: Final = 131_072
"""Most rows in a row group."""

_SHARD_SHIFT: Final = np.uint64(54)
_SCHEMA: Final = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            *(("key", pa.uint64()), ("id", pa.int64())),
            *(("ema", pa.float32()), ("last", pa.float32()), ("tick", pa.uint32())),
            *(("count", pa.uint16()), ("version", pa.uint16())),
        )
    ]
)
_COMPRESSED: Final = ("ema", "last", "tick", "count", "version")
_WRITTEN: Final[dict[str, Any]] = {
    # keys and ids are random bits, which no compression makes smaller
    "compression": {name: "zstd" if name in _COMPRESSED else "none" for name in _SCHEMA.names},
    "compression_level": dict.fromkeys(_COMPRESSED, 1),
    "use_dictionary": ["tick", "count", "version"],
    "write_page_checksum": True,
    "store_schema": False,
}
_READ: Final = ["key", *(VALUE.names or ())]
# what a row may claim of memory, encoded without any saving, and a page's and a dictionary's own
_ROW_BYTES: Final = 64
_GROUP_BYTES: Final = 2**20


def shards_of(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the virtual shard of each key, shape (n,), in [0, 1024).

    >>> shards_of(np.array([0, 2**64 - 1], np.uint64)).tolist()
    [0, 1023]
    """
    return keys >> _SHARD_SHIFT


def sorted_groups(entries: Entries) -> Iterator[Entries]:
    """Cut rows into row groups in the order of their keys.

    Args:
        entries: rows with distinct keys, in any order.

    >>> rows = Entries(np.array([3, 1], np.uint64), np.ones(2, VALUE))
    >>> [group.keys.tolist() for group in sorted_groups(rows)]
    [[1, 3]]
    """
    order = _order(entries.keys)
    # numpy moves 16-byte numbers faster than structures of 16 bytes
    values = entries.values.view(np.complex128)
    for start in range(0, len(order), GROUP_ROWS):
        rows = order[start : start + GROUP_ROWS]
        yield Entries(entries.keys.take(rows), values.take(rows).view(VALUE))


def _order(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return an order of distinct keys, shape (n,), int64."""
    # the row number takes the lowest bits: sorting words is three times as fast as an argsort
    row_mask = np.uint64((1 << max(0, len(keys) - 1).bit_length()) - 1)
    packed = keys & ~row_mask
    packed |= np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    alike = np.zeros(len(keys) + 1, np.bool_)
    np.less_equal(packed[1:] ^ packed[:-1], row_mask, out=alike[1:-1])
    packed &= row_mask
    order = packed.view(np.int64)
    # a handful of keys in millions differ only in the bits that the row number took
    few = (alike[1:] | alike[:-1]).nonzero()[0]
    order[few] = order[few][np.argsort(keys[order[few]])]
    return order


def encode_groups(groups: Iterable[Entries], seed: int) -> Iterator[bytes]:
    """Encode row groups as a Parquet file, piece by piece.

    Args:
        groups: keys ascending within and across groups; large ones are cut.
        seed: the record's seed, by which ids are had back from keys.

    >>> rows = Entries(np.array([1, 3], np.uint64), np.ones(2, VALUE))
    >>> b"".join(encode_groups([rows], seed=0))[:4]
    b'PAR1'
    """
    pieces = Pieces()
    writer = pq.ParquetWriter(pieces, _SCHEMA, **_WRITTEN)
    for group in groups:
        columns = {name: np.ascontiguousarray(group.values[name]) for name in VALUE.names or ()}
        columns |= {"key": group.keys, "id": ids_of_keys(group.keys, seed)}
        # not pa.array, which would import pandas where it is installed, at the first snapshot
        arrays = [
            pa.Array.from_buffers(
                field.type, len(group.keys), [None, pa.py_buffer(columns[field.name])]
            )
            for field in _SCHEMA
        ]
        writer.write_table(pa.table(arrays, schema=_SCHEMA), row_group_size=GROUP_ROWS)
        yield from pieces.take()
    writer.close()
    yield from pieces.take()


class RowsFile:
    """A Parquet file of rows; each is checked when it is read.

    Args:
        file: an open file, or its bytes in memory; it stays the caller's to close.
        rows: how many rows it must have.
        name: what errors call it.

    Raises:
        DamagedSnapshotError: if it is no such file.

    >>> import io
    >>> rows = Entries(np.array([1, 3], np.uint64), np.ones(2, VALUE))
    >>> file = io.BytesIO(b"".join(encode_groups([rows], seed=0)))
    >>> [group.keys.tolist() for group in RowsFile(file, rows=2, name="example").groups()]
    [[1, 3]]
    """

    def __init__(self, file: IO[bytes], rows: int, name: str) -> None:
        self._name = name
        with self._arrow_errors():
            # reading ahead would start Arrow's threads, which do not survive a fork
            self._file = pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
            # types kept as metadata could be others than the columns' own
            plain = not self._file.metadata.metadata and self._file.schema_arrow.equals(_SCHEMA)
        if not plain:
            raise self._damaged("its columns are not those of a record")
        metadata = self._file.metadata
        if metadata.num_rows != rows:
            raise self._damaged(f"it has {metadata.num_rows} rows, expected {rows}")
        self._sizes = [self._checked_rows(i) for i in range(metadata.num_row_groups)]
        if sum(self._sizes) != rows:
            raise self._damaged("its row groups do not add up")

    def groups(
        self, shards: range = range(SHARDS), *, skip_damaged: bool = False
    ) -> Iterator[Entries]:
        """Read the rows of a range of virtual shards, a row group at a time, keys ascending.

        Args:
            shards: a contiguous part of [0, 1024).
            skip_damaged: leave out a damaged row group instead of raising.

        Raises:
            DamagedSnapshotError: if a row group cannot be read or holds what no record could.
        """
        last_key = -1
        for group in self._reached(shards):
            try:
                entries = self._read(group, last_key)
            except DamagedSnapshotError:
                if skip_damaged:
                    continue
                raise
            last_key = int(entries.keys[-1])
            yield _within(entries, shards)

    def _checked_rows(self, group: int) -> int:
        metadata = self._file.metadata.row_group(group)
        rows = int(metadata.num_rows)
        if not 1 <= rows <= GROUP_ROWS:
            raise self._damaged(f"a row group has {rows} rows, expected 1 to {GROUP_ROWS}")
        if metadata.total_byte_size > rows * _ROW_BYTES + _GROUP_BYTES:
            raise self._damaged(f"{rows} rows claim {metadata.total_byte_size} bytes")
        return rows

    def _reached(self, shards: range) -> range:
        """Return the row groups that may have rows of these shards."""
        groups = range(len(self._sizes))
        if len(shards) == SHARDS:
            return groups
        # Not by statistics: where Arrow finds those damaged it aborts the process.
        begin = bisect_left(groups, shards.start, key=self._first_shard)
        end = bisect_left(groups, shards.stop, lo=begin, key=self._first_shard)
        return range(max(0, begin - 1), end)

    def _first_shard(self, group: int) -> int:
        with self._arrow_errors():
            keys = self._file.read_row_group(group, columns=["key"], use_threads=False)
            return int(keys.column(0)[0].as_py()) >> int(_SHARD_SHIFT)

    def _read(self, group: int, last_key: int) -> Entries:
        rows = self._sizes[group]
        with self._arrow_errors():
            table = self._file.read_row_group(group, columns=_READ, use_threads=False)
            if len(table) != rows:
                raise self._damaged(f"a row group has {len(table)} rows, expected {rows}")
            keys = _numbers(table.column("key"), np.dtype(np.uint64))
            values = np.empty(rows, VALUE)
            for name in VALUE.names or ():
                values[name] = _numbers(table.column(name), VALUE[name])
        for holds, what in (
            (int(keys[0]) > last_key and (keys[1:] > keys[:-1]).all(), "its keys are not in order"),
            ((values["tick"] > 0).all(), "a row has tick 0"),
            ((values["count"] > 0).all(), "a row has count 0"),
            (np.isfinite(values["ema"]).all(), "an average is not finite"),
            (np.isfinite(values["last"]).all(), "a loss is not finite"),
        ):
            if not holds:
                raise self._damaged(what)
        return Entries(keys, values)

    @contextmanager
    def _arrow_errors(self) -> Generator[None]:
        try:
            yield
        # LookupError and UnicodeDecodeError: names of columns and metadata are bytes of the file
        except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
            # Arrow's own words may show content
            raise self._damaged(f"Arrow cannot read it: {type(error).__name__}") from error

    def _damaged(self, reason: str) -> DamagedSnapshotError:
        return DamagedSnapshotError(f"{self._name} is damaged: {reason}")


def _numbers(column: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """View a column without nulls; `to_numpy` would import pandas where it is installed."""
    chunks = [
        np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)
        for chunk in column.chunks
        if len(chunk)
    ]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _within(entries: Entries, shards: range) -> Entries:
    if len(shards) == SHARDS:
        return entries
    begin, end = np.searchsorted(shards_of(entries.keys), [shards.start, shards.stop])
    return Entries(entries.keys[begin:end], entries.values[begin:end])
