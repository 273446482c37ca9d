"""Read Parquet shards column by column, as batches of an exact size.

>>> import tempfile, pyarrow, pyarrow.parquet
>>> folder = tempfile.TemporaryDirectory()
>>> table = pyarrow.table({"x": [0.5, 1.5, 2.5], "y": [0, 1, 0]})
>>> pyarrow.parquet.write_table(table, f"{folder.name}/a.parquet", row_group_size=2)
>>> source = ParquetSource(folder.name, batch_size=2)
>>> for batch in source:
...     print(batch["x"], batch["y"])
tensor([0.5000, 1.5000], dtype=torch.float64) tensor([0, 1])
tensor([2.5000], dtype=torch.float64) tensor([0])
>>> folder.cleanup()
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from os import PathLike
from typing import Any, ClassVar

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
from torch import Tensor

from adasel_connectors.byte_cache import ByteCache
from adasel_connectors.damage import DamageError, OnError, shown
from adasel_connectors.open_shards import Rows
from adasel_connectors.parquet_columns import kind_of
from adasel_connectors.parquet_file import open_file
from adasel_connectors.parquet_reader import ParquetReader
from adasel_connectors.parquet_rows import ParquetRows
from adasel_connectors.position import Position
from adasel_connectors.reader import Report, ShardReader
from adasel_connectors.shard_set import ShardSet
from adasel_connectors.shards import Paths, Shard, ShardFile
from adasel_connectors.source import ShardSource

__all__ = ["ParquetSource"]

_SHOWN_NAMES = 20
_PAGES_BYTES = 1 << 25  # kept of pages around chosen rows; more memory is slower, as it is not warm
_COLUMNS_BYTES = 1 << 28  # the same of columns of whole row groups, where pages cannot be read


class ParquetSource(ShardSource):
    """Batches of the rows of Parquet shards; see this module's first lines for an example.

    Shards are read in order of their names. Each batch is a dict of columns and `id`, int64,
    shape (b,): the shard's 31-bit number times 2^32 plus the row in the shard. Numbers become
    tensors that share Arrow's memory, text a list; `adasel_connectors.parquet_columns` says it
    for each type. A batch that is kept alive keeps up to 8,192 rows of its shard alive.

    All batches have exactly `batch_size` rows, however small the row groups are, but the last
    of a pass may have fewer. One `iter()` is one pass. As the dataset of `DataLoader(source,
    batch_size=None, num_workers=n)` each worker reads every nth shard; each rank does
    likewise. A worker hands over large batches much faster than small ones: take 4,096 rows
    and slice them with `adasel_connectors.chunks.rebatch`.

    Deferred columns are passed over: batches have references of them, int64, shape (b, 2), and
    `fetch` reads the values of chosen rows. Of texts, bytes and lists of one length of floats or
    of 32 or 64 bit integers it picks them from their pages, best where these are stored without
    compression and dictionary, which pictures and embeddings gain nothing from:

        pyarrow.parquet.write_table(
            table,
            path,
            compression={"label": "zstd"},  # columns that are not named: none
            use_dictionary=["label"],
        )

    A compressed page is decompressed as a whole; `max_rows_per_page=16` keeps it small. Checksums
    are those of whole pages too. Of other columns and layouts, such as lists of several lengths or
    a dictionary of floats, `fetch` decodes a column's whole row group, once for all rows that are
    chosen of it soon; then it saves little, and small row groups help. The log `adasel_connectors`
    warns of it once for each column.

    >>> import pyarrow, pyarrow.parquet, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> table = pyarrow.table({"jpg": [b"(0)", b"(1)", b"(2)"], "y": [0, 1, 0]})
    >>> pyarrow.parquet.write_table(table, f"{folder.name}/a.parquet")
    >>> source = ParquetSource(folder.name, deferred=("jpg",))
    >>> (batch,) = source
    >>> source.fetch({"jpg": batch["jpg"][[2, 0]]})
    {'jpg': [b'(2)', b'(0)']}
    >>> folder.cleanup()

    Page checksums are verified where the writer stored them; only a manifest notices every
    altered byte. A shard must not be overwritten or cut while it is read: replace it by
    renaming a new file over it.
    """

    kind: ClassVar[str] = "parquet"
    kinds_of_damage: ClassVar[tuple[str, ...]] = ("cut", "null", "ragged", "schema", "too_large")
    kinds_of_fetch_damage: ClassVar[tuple[str, ...]] = kinds_of_damage
    reference_width: ClassVar[int] = 2

    def __init__(
        self,
        paths: Paths,
        *,
        columns: Sequence[str] | None = None,
        deferred: Sequence[str] = (),
        batch_size: int = 256,
        manifest: str | PathLike[str] | None = None,
        fill_nulls: Mapping[str, Any] | None = None,
        id_key: str = "id",
        memory_map: bool = True,
        max_row_group_bytes: int = 1 << 32,
        on_error: OnError = "raise",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Find the shards and read the columns of the first.

        Args:
            paths: folder, file, glob, or sequence of files.
            columns: names of columns to read; all by default.
            deferred: those of them that are read only of chosen rows, by `fetch`.
            batch_size: rows of each batch, at least 1.
            manifest: file that `write_manifest` made of the shards; each shard is compared
                with it before its first row is given out.
            fill_nulls: what stands for a null, by column. Without it a null in a float is
                NaN, in any other column it makes the row unusable.
            id_key: under which name batches carry ids.
            memory_map: read through the page cache without a copy; False for file systems
                that cannot.
            max_row_group_bytes: decompressed size above which a row group is refused.
            on_error: what to do about damage; see `adasel_connectors.damage.OnError`.
            rank: of this trainer, in [0, world_size).
            world_size: number of trainers that share the shards.

        Raises:
            ValueError: no shards are there, a column is unknown or its name taken, or an
                argument is out of its range.
            TypeError: a column has a type that no column of a batch is made of, or an argument
                is of a wrong one.
        """
        if isinstance(deferred, str):
            raise TypeError(f"deferred must be a sequence of names, got one string {deferred!r}")
        super().__init__(
            ShardSet.find(paths, (".parquet",), manifest),
            deferred=tuple(dict.fromkeys(deferred)),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            on_error=on_error,
        )
        if max_row_group_bytes < 1:
            raise ValueError(f"max_row_group_bytes must be at least 1, got {max_row_group_bytes}")
        if isinstance(columns, str):
            raise TypeError(f"columns must be a sequence of names, got one string {columns!r}")
        if not isinstance(id_key, str):
            raise TypeError(f"id_key must be a string, got {type(id_key).__name__}")
        self._id_key = id_key
        self._options: dict[str, Any] = {
            "memory_map": memory_map,
            "max_row_group_bytes": max_row_group_bytes,
        }
        self._wanted = None if columns is None else list(columns)
        self._fill_nulls = dict(fill_nulls or {})
        self._kinds = self._first_kinds()
        self._widths: dict[str, tuple[int, ...]] = {}
        self._pages = ByteCache[Any](_PAGES_BYTES)
        self._decoded = ByteCache[list[Any] | None](_COLUMNS_BYTES)
        self._untold = set(self.deferred)

    def _open(
        self, shard: Shard, file: ShardFile, digest: int, start: Position, report: Report
    ) -> ShardReader:
        opened = open_file(shard.path, **self._options)
        try:
            if opened.metadata.num_rows:  # without rows, writers do not know the types
                self._check_kinds(opened.schema_arrow)
        except DamageError:
            opened.close()
            raise
        return ParquetReader(
            opened,
            shard,
            start,
            list(self._kinds or ()),
            deferred=self.deferred,
            digest=digest,
            fill_nulls=self._fill_nulls,
            widths=self._widths,
            report=report,
            batch_size=self._batch_size,
        )

    def _rows(self, file: ShardFile, digest: int) -> Rows:
        opened = open_file(pa.BufferReader(pa.py_buffer(file.view)), **self._options)
        self._check_kinds(opened.schema_arrow)
        return ParquetRows(
            file,
            digest,
            opened,
            deferred=self.deferred,
            fill_nulls=self._fill_nulls,
            pages=self._pages,
            decoded=self._decoded,
            untold=self._untold,
        )

    def _join(self, ids: Tensor, columns: dict[str, Any]) -> dict[str, Any]:
        return {self._id_key: ids, **columns}

    def _first_kinds(self) -> dict[str, str] | None:
        for path in self._shards.found.values():
            try:
                with closing(open_file(path, **self._options)) as file:
                    if file.metadata.num_rows:
                        return self._kinds_of(file.schema_arrow)
            except DamageError:
                continue  # reading will meet it again and report it by policy
        return None

    def _check_kinds(self, schema: Any) -> None:
        try:
            kinds = self._kinds_of(schema)
        except (TypeError, ValueError) as error:
            raise DamageError("schema", str(error)) from error
        self._kinds = self._kinds or kinds
        changed = sorted(name for name in self._kinds if kinds.get(name) != self._kinds[name])
        if changed or len(kinds) != len(self._kinds):
            added = sorted(kinds.keys() - self._kinds.keys())
            shown_names = [shown(name) for name in (changed + added)[:_SHOWN_NAMES]]
            raise DamageError("schema", f"columns {shown_names} differ from other shards'")

    def _kinds_of(self, schema: Any) -> dict[str, str]:
        """Name the kind of each column, in the order of batches."""
        names = list(schema.names) if self._wanted is None else self._wanted
        asked = [*names, *self._fill_nulls, *self.deferred]
        unknown = sorted(set(asked) - set(schema.names))
        if unknown or not names or len(set(names)) < len(names):
            got = ", ".join(map(shown, unknown[:_SHOWN_NAMES])) or "none, or one twice"
            known = ", ".join(map(shown, schema.names[:_SHOWN_NAMES]))
            raise ValueError(
                f"columns, deferred and fill_nulls must name different columns of the shards, "
                f"which have {known}; got {got}"
            )
        if not set(self.deferred) <= set(names):
            raise ValueError(f"deferred must be among columns {names}, got {self.deferred}")
        if self._id_key in names:
            raise ValueError(
                f"the shards have a column {self._id_key!r} of their own, and this source adds one "
                'of that name: pass another id_key, such as id_key="row_id" (and '
                f"ids={self._id_key!r} to the loader to go by your own), or columns without it"
            )
        kinds: dict[str, str] = {}
        for name in names:
            try:
                kinds[name] = kind_of(schema.field(name))
                if name in self._fill_nulls:
                    pa.scalar(self._fill_nulls[name], schema.field(name).type)
            except TypeError as error:
                raise TypeError(
                    f"column {shown(name)} is {error}, of which no column of a batch is made; "
                    "leave it out of columns"
                ) from error
            except pa.ArrowException as error:
                raise ValueError(f"fill_nulls[{name!r}] does not fit its column") from error
        return kinds
