"""Read one Parquet shard from any row on."""

from bisect import bisect_right
from collections.abc import Generator, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from adasel_connectors.damage import DamageError, shown
from adasel_connectors.parquet_columns import filled, first_null, null_damage, to_column
from adasel_connectors.parquet_file import arrow_errors, rows_at_once
from adasel_connectors.position import Position
from adasel_connectors.reader import Piece, Report
from adasel_connectors.references import refer
from adasel_connectors.shards import Shard

__all__ = ["ParquetReader"]


class ParquetReader:
    """Decodes some thousand rows at a time and gives out slices of them."""

    def __init__(
        self,
        file: Any,
        shard: Shard,
        start: Position,
        names: list[str],
        *,
        deferred: tuple[str, ...],
        digest: int,
        fill_nulls: Mapping[str, Any],
        widths: dict[str, tuple[int, ...]],
        report: Report,
        batch_size: int,
    ) -> None:
        """Start at a row; `widths` collects the shapes of rows over all shards.

        Of `deferred` columns among `names` references with `digest` are given.
        """
        self.row, self.offset = start.row, 0
        self._file = file
        self._first_id = shard.number << 32
        self._names = [name for name in names if name not in deferred]
        self._order, self._deferred, self._digest = names, deferred, digest
        self._fill_nulls = fill_nulls
        self._widths = widths
        self._report = report
        self._arrow = self._record_batches(rows_at_once(file.metadata, self._names, batch_size))
        self._rest: Any = None
        self._chunk: dict[str, Any] = {}
        self._ids = torch.empty(0, dtype=torch.int64)
        self._at = 0

    def close(self) -> None:
        """Let go of the file."""
        self._arrow.close()
        self._file.close()

    def take(self, rows: int) -> Piece | None:
        """Give the next 1 to `rows` rows, or None at the shard's end.

        Raises:
            DamageError: the shard cannot be read any further.
        """
        if self._at == len(self._ids) and not self._load():
            return None
        start, stop = self._at, min(self._at + rows, len(self._ids))
        self._at = stop
        self.row += stop - start
        columns = {name: column[start:stop] for name, column in self._chunk.items()}
        return Piece(self._ids[start:stop], columns)

    def _record_batches(self, rows: int) -> Generator[Any]:
        metadata = self._file.metadata
        groups = metadata.num_row_groups
        ends = list(accumulate(metadata.row_group(i).num_rows for i in range(groups)))
        first = bisect_right(ends, self.row)
        skipped = self.row - (ends[first - 1] if first else 0)
        if first == groups:
            return
        with arrow_errors():
            for batch in self._file.iter_batches(
                batch_size=rows,
                row_groups=list(range(first, groups)),
                columns=self._names,
                use_threads=False,  # its pool does not survive the fork of a DataLoader worker
            ):
                if skipped < len(batch):
                    yield batch.slice(skipped)
                skipped = max(0, skipped - len(batch))

    def _load(self) -> bool:
        """Convert the next rows up to an unusable one; False at the end."""
        while (batch := self._next()) is not None:
            arrays = {
                name: filled(batch.column(name), name, self._fill_nulls) for name in self._names
            }
            usable = {name: first_null(array) for name, array in arrays.items()}
            good = min(usable.values(), default=len(batch))
            if good < len(batch):
                self._rest = batch.slice(good or 1)
            if not good:
                self.row += 1
                self._report(
                    null_damage(min(usable, key=usable.__getitem__)), f"row {self.row - 1}: "
                )
                continue
            first = self._first_id + self.row
            self._ids = torch.arange(first, first + good)
            columns = {name: self._column(name, a.slice(0, good)) for name, a in arrays.items()}
            references = refer(self._ids, self._digest)
            self._chunk = {name: columns.get(name, references) for name in self._order}
            self._at = 0
            return True
        if self.row != self._file.metadata.num_rows:
            raise DamageError("cut", f"it ends after {self.row} of its rows")
        return False

    def _next(self) -> Any:
        rest, self._rest = self._rest, None
        return rest if rest is not None and len(rest) else next(self._arrow, None)

    def _column(self, name: str, array: Any) -> Tensor | list[Any]:
        with arrow_errors():
            column = to_column(array)
        shape = tuple(column.shape[1:]) if isinstance(column, Tensor) else ()
        if self._widths.setdefault(name, shape) != shape:
            raise DamageError("ragged", f"column {shown(name)} has lists of another length")
        return column
