"""Open Parquet shards with bounded memory, and report whatever Arrow refuses as damage."""

import os
from collections.abc import Collection, Generator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from adasel_connectors.damage import DamageError

__all__ = ["arrow_errors", "count_rows", "open_file", "rows_at_once"]

_CHUNK_ROWS = 8192
_CHUNK_BYTES = 1 << 25
_WORST_CHUNK_BYTES = 1 << 30
_FEW_VALUES_BYTES = 4  # a value's share of its column, where most of it is an index


@contextmanager
def arrow_errors() -> Generator[None]:
    """Turn what Arrow raises about a file into damage; its own words may show content."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamageError("unreadable", f"Arrow cannot read it: {type(error).__name__}") from error


def count_rows(path: str) -> int:
    """Read from a Parquet file's footer how many rows it has.

    Raises:
        DamageError: it is not a readable Parquet file.
    """
    with arrow_errors():
        return int(pq.read_metadata(path).num_rows)


def open_file(source: Any, *, memory_map: bool, max_row_group_bytes: int) -> Any:
    """Open a Parquet file; text columns of few different values come as dictionaries.

    Without that, a small file could name one long text in each of a million rows, and become
    a million copies.

    Args:
        source: a path, or an Arrow file that is open.
        memory_map: read a path through the page cache without a copy.
        max_row_group_bytes: decompressed size above which a row group is refused.

    Raises:
        DamageError: it cannot be read, or a row group is too large.
    """
    options = {
        "memory_map": memory_map,
        "pre_buffer": False,  # it would start Arrow's threads, which do not survive a fork
        "page_checksum_verification": True,
    }
    if isinstance(source, str) and not os.path.isfile(source):
        raise DamageError("missing", "the file is missing")
    with arrow_errors():
        file = pq.ParquetFile(source, **options)
        metadata = file.metadata
        largest = max(_row_group_bytes(metadata), default=0)
        if largest > max_row_group_bytes:
            file.close()
            raise DamageError(
                "too_large",
                f"a row group takes {largest} bytes, max_row_group_bytes is {max_row_group_bytes}",
            )
        repetitive = sorted(_repetitive_texts(metadata))
        if not repetitive:
            return file
        file.close()
        return pq.ParquetFile(source, metadata=metadata, read_dictionary=repetitive, **options)


def rows_at_once(metadata: Any, names: Collection[str], batch_size: int) -> int:
    """Choose how many rows to decode at a time: many, but of bounded memory.

    At least a batch, since that many are asked for in any case.

    Args:
        metadata: of the file.
        names: of the columns that are decoded.
        batch_size: rows that are asked for.
    """
    repetitive = _repetitive_texts(metadata)
    rows = _CHUNK_ROWS
    for group in range(metadata.num_row_groups):
        row_bytes = worst_bytes = 1.0
        for column in _columns(metadata, group):
            if not _is_part_of(column.path_in_schema, names):
                continue
            value_bytes = column.total_uncompressed_size / max(
                1, metadata.row_group(group).num_rows
            )
            row_bytes += value_bytes
            if _is_text(column) and column.path_in_schema not in repetitive:
                # each value may be as long as everything that the column stores
                worst_bytes = max(worst_bytes, float(column.total_uncompressed_size))
        rows = min(rows, int(_CHUNK_BYTES / row_bytes), int(_WORST_CHUNK_BYTES / worst_bytes))
    return max(1, rows // batch_size) * batch_size


def _repetitive_texts(metadata: Any) -> set[str]:
    if not metadata.num_row_groups:
        return set()
    return {
        column.path_in_schema
        for column in _columns(metadata, 0)
        if _is_text(column)
        and column.total_uncompressed_size <= _FEW_VALUES_BYTES * column.num_values
    }


def _is_part_of(path: str, names: Collection[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _is_text(column: Any) -> bool:
    return column.physical_type == "BYTE_ARRAY" and any(
        "DICTIONARY" in encoding for encoding in column.encodings
    )


def _row_group_bytes(metadata: Any) -> list[int]:
    return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]


def _columns(metadata: Any, group: int) -> list[Any]:
    row_group = metadata.row_group(group)
    return [row_group.column(i) for i in range(row_group.num_columns)]
