"""Give a record away as one table of ids and losses, and take such a table in.

Columns: id int64; loss and ema float32; count and version uint16; age_s uint32, whole seconds
from the last loss to the moment when the record was saved. Only id and loss are needed to take a
table in.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped] # pyarrow ships no types
import pyarrow.csv as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from adasel_stream.atomic import replace_file
from adasel_stream.errors import RecordError
from adasel_stream.keys import ids_of_keys, keys_of_ids
from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.loss_record import LossRecord
from adasel_stream.record.snapshots.manifest import last_tick
from adasel_stream.record.snapshots.pieces import Pieces
from adasel_stream.record.snapshots.reading import Snapshot, merged
from adasel_stream.record.snapshots.upkeep import Progress, folders_of, unheard

__all__ = ["export_rows", "import_rows"]

_KINDS: Final = {
    "id": pa.int64(),
    "loss": pa.float32(),
    "ema": pa.float32(),
    "count": pa.uint16(),
    "version": pa.uint16(),
    "age_s": pa.uint32(),
}
_SCHEMA: Final = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _KINDS.items()])
_WANTED: Final = (
    "a table of losses has columns id (whole number) and loss (finite number), and may have "
    "ema, count, version and age_s"
)
_BATCH_ROWS: Final = 65_536
_Columns = dict[str, npt.NDArray[Any]]


def export_rows(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    progress: Progress = unheard,
) -> int:
    """Write all that a record's folder holds to one Parquet or CSV file; it may be in use.

    Args:
        path: the record's folder.
        target: file to write or replace; its name ends in `.parquet` or `.csv`.
        progress: told of rows read.

    Returns:
        Number of rows written.

    Raises:
        ValueError: if the target has another ending.
        RecordError: if there is no record, or a file of it is damaged.
        OSError: if the target cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as path:
    ...     record = LossRecord.open(path, capacity=100)
    ...     record.update(np.array([3, -4]), np.array([0.5, 0.25]))
    ...     record.close()
    ...     rows = export_rows(path, f"{path}/losses.csv")
    ...     rows, import_rows(LossRecord(capacity=200), f"{path}/losses.csv")
    (2, 2)
    """
    suffix = _suffix(target)
    with contextlib.ExitStack() as stack:
        snapshots = [stack.enter_context(Snapshot(folder)) for folder in folders_of(path)]
        total = sum(file.rows for snapshot in snapshots for file in snapshot.manifest.rows)
        written = _Written(progress, total)
        replace_file(target, _encoded(written.over(snapshots), suffix))
    return written.rows


def import_rows(
    record: LossRecord, source: str | os.PathLike[str], progress: Progress = unheard
) -> int:
    r"""Put a Parquet or CSV file of losses into a record; in each bucket the newest stay.

    Args:
        record: opened by `LossRecord.open`, so that it can be saved afterwards. The time of an
            empty one is moved forward by the oldest age, so that ages over a month are kept.
        source: file whose name ends in `.parquet` or `.csv`, with the columns above.
        progress: told of rows read.

    Returns:
        Number of rows of the file that the record held when they came.

    Raises:
        ValueError: if the source has another ending.
        RecordError: if the file cannot be read, lacks a column, or holds a null or a loss that
            is not finite.

    >>> import tempfile
    >>> record = LossRecord(capacity=100, clock=lambda: 0.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = Path(folder, "losses.csv")
    ...     _ = table.write_text("id,loss,age_s\n7,0.25,60\n")
    ...     import_rows(record, table)
    1
    >>> record.lookup(np.array([7])).age_s.tolist()
    [60.0]
    """
    rows, oldest_s = 0, 0
    for columns in _batches(source):
        rows += len(columns["id"])
        oldest_s = max(oldest_s, int(columns["age_s"].max(initial=0)))
    if len(record) == 0:
        position = record.position()
        ticks = position["ticks"]
        older = {"elapsed_s": ticks["elapsed_s"] + oldest_s}
        record.load_position(position | {"ticks": ticks | older})
    kept = done = 0
    for columns in _batches(source):
        kept += record.place(_entries(columns, record.seed, record.tick))
        done += len(columns["id"])
        progress(done, rows)
    return kept


class _Written:
    """Turns snapshots into tables and counts their rows."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.rows = 0
        self._progress, self._total = progress, total

    def over(self, snapshots: list[Snapshot]) -> Iterator[Any]:
        for snapshot in snapshots:
            now = last_tick(snapshot.manifest)
            for group in merged(snapshot):
                self.rows += len(group.keys)
                yield _table(group, snapshot.manifest.seed, now)
                self._progress(self.rows, self._total)


def _table(group: Entries, seed: int, now: int) -> Any:
    values = group.values
    columns: _Columns = {
        "id": ids_of_keys(group.keys, seed),
        "loss": np.ascontiguousarray(values["last"]),
        "ema": np.ascontiguousarray(values["ema"]),
        "count": np.ascontiguousarray(values["count"]),
        "version": np.ascontiguousarray(values["version"]),
        "age_s": np.maximum(0, now - values["tick"].astype(np.int64)).astype(np.uint32),
    }
    return pa.table([columns[name] for name in _KINDS], schema=_SCHEMA)


def _encoded(tables: Iterator[Any], suffix: str) -> Iterator[bytes]:
    pieces = Pieces()
    if suffix == ".csv":
        writer: Any = pc.CSVWriter(pieces, _SCHEMA)
    else:
        writer = pq.ParquetWriter(pieces, _SCHEMA, compression="zstd", write_page_checksum=True)
    for table in tables:
        writer.write_table(table)
        yield from pieces.take()
    writer.close()
    yield from pieces.take()


def _batches(source: str | os.PathLike[str]) -> Iterator[_Columns]:
    """Read a table batch by batch, each column of its own type, missing ones filled in."""
    name = repr(os.fspath(source))
    try:
        for batch in _read(os.fspath(source), _suffix(source)):
            yield _columns(batch, name)
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"cannot read {name}: {type(error).__name__}; {_WANTED}") from error


def _read(source: str, suffix: str) -> Iterator[Any]:
    if suffix == ".csv":
        options = pc.ConvertOptions(column_types=_KINDS)
        with pc.open_csv(source, convert_options=options) as reader:
            yield from reader
        return
    with pq.ParquetFile(source, page_checksum_verification=True) as file:
        known = [column for column in file.schema_arrow.names if column in _KINDS]
        yield from file.iter_batches(_BATCH_ROWS, columns=known, use_threads=False)


def _columns(batch: Any, name: str) -> _Columns:
    columns: _Columns = {}
    for column, kind in _KINDS.items():
        if column in batch.schema.names:
            values = batch.column(column)
            if values.null_count:
                raise RecordError(f"{name} has a null in column {column!r}; {_WANTED}")
            columns[column] = values.cast(kind).to_numpy(zero_copy_only=False)
    if missing := [column for column in ("id", "loss") if column not in columns]:
        raise RecordError(f"{name} has no column {' and no column '.join(missing)}; {_WANTED}")
    if not np.isfinite(columns["loss"]).all():
        raise RecordError(f"{name} has a loss that is not finite; {_WANTED}")
    ones = np.ones(len(columns["id"]), np.uint16)
    filled = {"ema": columns["loss"], "count": ones, "version": ones * 0, "age_s": ones * 0}
    return filled | columns


def _entries(columns: _Columns, seed: int, tick: int) -> Entries:
    values = np.empty(len(columns["id"]), VALUE)
    values["last"], values["ema"] = columns["loss"], columns["ema"]
    values["count"], values["version"] = np.maximum(columns["count"], 1), columns["version"]
    values["tick"] = np.maximum(1, tick - columns["age_s"].astype(np.int64))
    return Entries(keys_of_ids(columns["id"], seed), values)


def _suffix(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix
    if suffix not in (".parquet", ".csv"):
        raise ValueError(f"expected a file name that ends in .parquet or .csv, got {suffix!r}")
    return suffix
