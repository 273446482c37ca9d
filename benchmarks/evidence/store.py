"""Results in one Parquet file, replaced whole as cells come, so that a kill loses few or none."""

import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, NamedTuple

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from adasel_stream.atomic import replace_file

__all__ = ["Cell", "Results", "ResultsError"]

SCHEMA: Final = pa.schema(
    {
        "task": pa.string(),
        "contestant": pa.string(),
        "rate": pa.float64(),
        "seed": pa.int64(),
        "budget": pa.string(),
        "updates": pa.int64(),
        "candidates": pa.int64(),
        "measure": pa.string(),
        "value": pa.float64(),
        "quality": pa.map_(pa.string(), pa.float64()),
        "seconds": pa.map_(pa.string(), pa.float64()),
        "curve": pa.list_(pa.list_(pa.float64())),
        "revision": pa.string(),
    }
)


SAVING_SHARE = 0.05
"""Share of the time that may go into saving; a file of thousands of cells takes a second."""


class ResultsError(Exception):
    """A file of results cannot be used; it is left as it is."""


class Cell(NamedTuple):
    """One run: who, on what, at which rate, with which seed and budget."""

    task: str
    contestant: str
    rate: float
    seed: int
    budget: str


class Results:
    """Rows of results by cell.

    Args:
        path: the Parquet file; it is made with the first rows.

    Raises:
        ResultsError: the file is damaged or holds something else; nothing is overwritten.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[Cell, dict[str, Any]] = {}
        self._next_save_s = 0.0
        if path.exists():
            for row in _read(path):
                self.rows[Cell(*(row[name] for name in Cell._fields))] = row

    def require(self) -> None:
        """Refuse to show nothing.

        Raises:
            ResultsError: there are no rows.
        """
        if not self.rows:
            raise ResultsError(
                f"{self._path} {'has no rows' if self._path.exists() else 'is missing'}, so there "
                "is nothing to show; name a file of results by --results, such as "
                "docs/results/evidence.parquet"
            )

    def check_place(self) -> None:
        """Make sure, before anything is run, that the file can be written.

        Raises:
            ResultsError: it cannot.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self._path.parent):
                pass
        except OSError as error:
            raise ResultsError(
                f"{self._path} cannot be written: {error}; name another file by --results"
            ) from error

    def check(self, revision: str, rates: Sequence[float]) -> None:
        """Refuse to go on with results of other code, with which no comparison would be fair.

        Values are compared at one rate; full training, at the rate 1, selects nothing.

        Raises:
            ResultsError: some rows at these rates are of another revision.
        """
        others = {row["revision"] for cell, row in self.rows.items() if cell.rate in rates}
        others -= {revision}
        if others:
            raise ResultsError(
                f"{self._path} has results of revision {', '.join(sorted(others))} at these rates, "
                f"and the code is now at {revision}; go on at that revision, or name a new file by "
                "--results"
            )

    def add(self, cell: Cell, row: Mapping[str, Any]) -> None:
        """Hold a row, and save all unless that was done just now."""
        self.rows[cell] = {**cell._asdict(), **row}
        if time.monotonic() >= self._next_save_s:
            self.save()

    def save(self) -> None:
        """Replace the file in one step."""
        began_s = time.monotonic()
        raw = BytesIO()
        pq.write_table(pa.Table.from_pylist(list(self.rows.values()), schema=SCHEMA), raw)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, [raw.getvalue()])
        now_s = time.monotonic()
        self._next_save_s = now_s + (now_s - began_s) / SAVING_SHARE


def _read(path: Path) -> Sequence[dict[str, Any]]:
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(
            f"{path} is damaged or no Parquet file: {error}; move it away to begin anew"
        ) from error
    try:
        rows: list[dict[str, Any]] = table.cast(SCHEMA).to_pylist(maps_as_pydicts="strict")
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise ResultsError(
            f"{path} holds no results of this version: {error}; move it away to begin anew"
        ) from error
    return rows
