"""Results of the evidence: kept, read back, and never overwritten when they are damaged."""

from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from benchmarks.evidence.store import Cell, Results, ResultsError


def row(value: float) -> dict[str, Any]:
    """Give a row that a cell could have."""
    return {
        "updates": 3,
        "candidates": 300,
        "measure": "accuracy",
        "value": value,
        "quality": {"accuracy": value, "loss": 0.25},
        "seconds": {"all": 1.5, "train": 1.0},
        "curve": [[1.0, 0.5, 0.25], [3.0, 1.5, value]],
        "revision": "abc",
    }


ONE, OTHER = Cell("line", "auto", 0.2, 0, "updates"), Cell("line", "auto", 0.2, 1, "updates")


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    """Every column of every cell survives the file."""
    path = tmp_path / "new" / "r.parquet"
    results = Results(path)
    results.add(ONE, row(0.5))
    results.add(OTHER, row(0.75))
    results.save()
    again = Results(path)
    assert again.rows == {
        ONE: {**ONE._asdict(), **row(0.5)},
        OTHER: {**OTHER._asdict(), **row(0.75)},
    }


def test_the_first_cell_is_on_the_disk_at_once(tmp_path: Path) -> None:
    """A kill right after a cell finds it there, without any call of save."""
    results = Results(tmp_path / "r.parquet")
    results.add(ONE, row(0.5))
    assert list(Results(tmp_path / "r.parquet").rows) == [ONE]


def test_nothing_is_written_before_there_is_something(tmp_path: Path) -> None:
    """Looking makes no file."""
    assert not Results(tmp_path / "r.parquet").rows
    assert not list(tmp_path.iterdir())


def whole_file(path: Path) -> bytes:
    """Write results and give the bytes of their file."""
    results = Results(path)
    results.add(ONE, row(0.5))
    results.save()
    return path.read_bytes()


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_file_that_is_cut_is_refused_and_left_alone(tmp_path: Path, keep: int) -> None:
    """Whatever is left of a cut file stays as it is; the error names it."""
    path = tmp_path / "r.parquet"
    damaged = whole_file(path)[:keep]
    path.write_bytes(damaged)
    with pytest.raises(ResultsError, match=r"r\.parquet is damaged"):
        Results(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"task": ["line"]}),
        pa.table({"a": [1]}),
        pa.Table.from_pylist([{**ONE._asdict(), **row(0.5)}]).drop_columns(["curve"]),
    ],
    ids=["few columns", "others", "one missing"],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, table: Any) -> None:
    """Parquet without the right columns holds no results; the error says what to do."""
    path = tmp_path / "r.parquet"
    pq.write_table(table, path)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="move it away"):
        Results(path)
    assert path.read_bytes() == before


def test_columns_of_other_types_are_refused(tmp_path: Path) -> None:
    """A text where a number belongs is found on reading, not in the middle of a report."""
    path = tmp_path / "r.parquet"
    results = Results(path)
    results.add(ONE, row(0.5))
    results.save()
    table = pq.ParquetFile(path).read()
    place = table.schema.get_field_index("value")
    pq.write_table(table.set_column(place, "value", pa.array(["much"])), path)
    with pytest.raises(ResultsError, match="no results of this version"):
        Results(path)


def test_a_folder_is_no_file_of_results(tmp_path: Path) -> None:
    """A folder in the file's place is refused by name."""
    with pytest.raises(ResultsError, match=tmp_path.name):
        Results(tmp_path)
