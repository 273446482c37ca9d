"""Deferred columns of Parquet shards are read of chosen rows only, whatever their layout."""

from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pytest
import torch
from torch import Tensor

from adasel_connectors.parquet import ParquetSource
from tests.connectors.shard_files import write_parquet

ROWS = 40
COLUMNS = {
    "bytes": pa.array([bytes([i]) * (i % 7) for i in range(ROWS)]),
    "large": pa.array([b"x" * i for i in range(ROWS)], pa.large_binary()),
    "text": pa.array([f"é{i % 5}" for i in range(ROWS)]),
    "fixed": pa.array([bytes([i, 1, 2]) for i in range(ROWS)], pa.binary(3)),
    "dictionary": pa.array([f"{i % 3}" for i in range(ROWS)]).dictionary_encode(),
    "same": pa.array(["same"] * ROWS),
    "number": pa.array(range(ROWS)),
    "float": pa.array([None if i % 4 == 0 else i / 2 for i in range(ROWS)], pa.float32()),
    "flag": pa.array([i % 2 == 0 for i in range(ROWS)]),
    "vector": pa.array([[i, i + 1] for i in range(ROWS)], pa.list_(pa.float32(), 2)),
    "matrix": pa.array([[[i], [i + 1]] for i in range(ROWS)]),
}
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"compression": "none", "use_dictionary": False},
    {"compression": "none", "dictionary_pagesize_limit": 8},
    {"row_group_size": 7, "max_rows_per_page": 3, "write_page_checksum": True},
    {"data_page_version": "2.0", "compression": "zstd"},
    {"column_encoding": "PLAIN", "use_dictionary": False, "compression": "gzip"},
    {"use_dictionary": False, "compression": "brotli", "max_rows_per_page": 1},
]


def alike(ours: Any, theirs: Any) -> bool:
    """Compare values, NaN with NaN."""
    if isinstance(theirs, Tensor):
        same = torch.isclose(ours.double(), theirs.double(), rtol=0, atol=0, equal_nan=True)
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and bool(same.all())
    return type(ours) is type(theirs) and bool(ours == theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fetched_values_are_rows_of_the_column(tmp_path: Path, layout: dict[str, Any]) -> None:
    """For every type and layout, fetch gives what a row of the column would have been."""
    path = write_parquet(tmp_path / "a.parquet", COLUMNS, **layout)
    (whole,) = ParquetSource(path)
    source = ParquetSource(path, deferred=tuple(COLUMNS))
    (batch,) = source
    assert batch["id"].tolist() == whole["id"].tolist()
    chosen = [39, 0, 1, 17, 17, 6]
    fetched = source.fetch({name: batch[name][chosen] for name in COLUMNS})
    for name in COLUMNS:
        for i, value in zip(chosen, fetched[name], strict=True):
            assert alike(value, whole[name][i]), (name, i)
    assert source.counts["fetched"] == len(chosen) * len(COLUMNS)
    assert source.counts["unfetched"] == 0
