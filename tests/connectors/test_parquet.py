"""ParquetSource gives columns as tensors, in batches of an exact size, from any row on."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pytest
import torch

from adasel_connectors.damage import ON_ERROR, OnError
from adasel_connectors.parquet import ParquetSource
from adasel_stream.errors import ShardError
from tests.connectors.shard_files import rows, write_parquet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of 10, 0 and 13 rows in tiny row groups."""
    for name, first, last in (("a", 0, 10), ("b", 10, 10), ("c", 10, 23)):
        columns = {"x": np.arange(first, last), "s": [str(i) for i in range(first, last)]}
        write_parquet(tmp_path / f"{name}.parquet", columns, row_group_size=3)
    return tmp_path


def one_batch(path: Path, columns: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Write columns to a shard and read them as one batch."""
    (batch,) = ParquetSource(write_parquet(path / "one.parquet", columns), **options)
    return batch


def test_batches_have_an_exact_size_across_row_groups_and_shards(folder: Path) -> None:
    """All batches are full but the last, wherever row groups and shards end."""
    source = ParquetSource(folder, batch_size=4)
    assert [len(batch["id"]) for batch in source] == [4, 4, 4, 4, 4, 3]
    assert rows(source, "x") == list(range(23))
    assert rows(source, "s") == [str(i) for i in range(23)]
    assert [i & 0xFFFFFFFF for i in rows(source)] == [*range(10), *range(13)]


@pytest.mark.parametrize(
    ("array", "dtype", "expected"),
    [
        (pa.array([1, 2], pa.int8()), torch.int8, [1, 2]),
        (pa.array([1, 2], pa.uint8()), torch.uint8, [1, 2]),
        (pa.array([1, 2**16 - 1], pa.uint16()), torch.int32, [1, 2**16 - 1]),
        (pa.array([1, 2**32 - 1], pa.uint32()), torch.int64, [1, 2**32 - 1]),
        (pa.array([1, 2**63 - 1], pa.uint64()), torch.int64, [1, 2**63 - 1]),
        (pa.array([0.5, 1.5], pa.float16()), torch.float16, [0.5, 1.5]),
        (pa.array([0.5, 1.5], pa.float32()), torch.float32, [0.5, 1.5]),
        (pa.array([0.5, 1.5]), torch.float64, [0.5, 1.5]),
        (pa.array([True, False]), torch.bool, [True, False]),
        (pa.array([1, 2], pa.timestamp("us", tz="UTC")), torch.int64, [1, 2]),
        (pa.array([datetime.date(1970, 1, 3)] * 2), torch.int32, [2, 2]),
        (pa.array([1, 2], pa.duration("ms")), torch.int64, [1, 2]),
        (pa.array([1, 2], pa.time32("ms")), torch.int32, [1, 2]),
        (pa.array([1, 2]).dictionary_encode(), torch.int64, [1, 2]),
        (pa.array([[1.0, 2], [3, 4]], pa.list_(pa.float32(), 2)), torch.float32, [[1, 2], [3, 4]]),
        (pa.array([[1, 2], [3, 4]]), torch.int64, [[1, 2], [3, 4]]),
        (pa.array([[[1], [2]], [[3], [4]]]), torch.int64, [[[1], [2]], [[3], [4]]]),
        (pa.array([[True], [False]]), torch.bool, [[True], [False]]),
    ],
)
def test_numbers_become_tensors(
    tmp_path: Path, array: Any, dtype: torch.dtype, expected: list[Any]
) -> None:
    """Each Arrow type of numbers, lists of them included, has its torch type."""
    column = one_batch(tmp_path, {"x": array})["x"]
    assert column.dtype == dtype
    assert column.tolist() == expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["é", ""]), ["é", ""]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b"] * 50).dictionary_encode(), ["a", "b"] * 50),
        (pa.array([b"\0", b"\xff"]), [b"\0", b"\xff"]),
        (pa.array([b"ab", b"cd"], pa.binary(2)), [b"ab", b"cd"]),
        (pa.array(["same"] * 500 + ["other"]), ["same"] * 500 + ["other"]),
    ],
)
def test_text_and_bytes_become_lists(tmp_path: Path, array: Any, expected: list[Any]) -> None:
    """Text comes as str and binary as bytes, however it is encoded."""
    assert one_batch(tmp_path, {"x": array}, batch_size=1000)["x"] == expected


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False, "compression": "none"}])
def test_batches_are_views_of_one_decoded_chunk(tmp_path: Path, options: dict[str, Any]) -> None:
    """Neighbouring batches share memory that torch may write to, without a copy or warning."""
    path = write_parquet(tmp_path / "z.parquet", {"x": np.arange(8.0)}, **options)
    first, second = ParquetSource(path, batch_size=4)
    assert first["x"].untyped_storage().data_ptr() == second["x"].untyped_storage().data_ptr()
    first["x"] += 1
    assert second["x"].tolist() == [4, 5, 6, 7]


def test_nulls_in_floats_become_nan(tmp_path: Path) -> None:
    """A missing float is NaN, inside lists too."""
    lists = pa.array([[1.0, None], [2, 3]], pa.list_(pa.float32(), 2))
    halves = pa.array([0.5, None], pa.float16())
    batch = one_batch(tmp_path, {"x": pa.array([0.5, None]), "h": halves, "v": lists})
    assert batch["x"].isnan().tolist() == [False, True]
    assert batch["h"].isnan().tolist() == [False, True]
    assert batch["v"].isnan().tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([0, 1, 2, None, 4, None, None, 7]),
        pa.array(["0", "1", "2", None, "4", None, None, "7"]),
        pa.array([[0], [1], [2], None, [4], None, [None], [7]]),
        pa.array([[0], [1], [2], None, [4], None, [None], [7]], pa.list_(pa.int64(), 1)),
        pa.array([True, True, True, None, True, None, None, True]),
    ],
)
@pytest.mark.parametrize("policy", ON_ERROR)
def test_nulls_elsewhere_make_a_row_unusable(tmp_path: Path, column: Any, policy: OnError) -> None:
    """Such a row raises, is skipped, or ends its shard; ids of the others stay the same."""
    write_parquet(tmp_path / "a.parquet", {"x": column})
    write_parquet(tmp_path / "b.parquet", {"x": column.slice(0, 2)})
    source = ParquetSource(tmp_path, batch_size=2, on_error=policy)
    if policy == "raise":
        with pytest.raises(ShardError, match=r"'a\.parquet': row 3: column 'x' is null"):
            list(source)
        return
    kept = [i & 0xFFFFFFFF for i in rows(source)]
    assert kept == [0, 1, 2, *([4, 7] if policy == "skip_sample" else []), 0, 1]
    skipped = (source.counts["skipped_samples"], source.counts["skipped_shards"])
    assert skipped == ((3, 0) if policy == "skip_sample" else (0, 1))


def test_nulls_can_be_filled(tmp_path: Path) -> None:
    """A value given for a column stands for its nulls."""
    columns = {"x": pa.array([1, None]), "s": pa.array(["a", None] * 100)[:2], "f": [None, 2.0]}
    batch = one_batch(tmp_path, columns, fill_nulls={"x": -1, "s": "?", "f": 0.0})
    assert batch["x"].tolist() == [1, -1]
    assert batch["s"] == ["a", "?"]
    assert batch["f"].tolist() == [0, 2]
    with pytest.raises(ValueError, match="fill_nulls"):
        one_batch(tmp_path, columns, fill_nulls={"x": "none"})


def test_columns_are_chosen_and_ordered(folder: Path) -> None:
    """Only the columns asked for are read; ids can have another name."""
    (batch, *_) = ParquetSource(folder, columns=["s"], id_key="row")
    assert list(batch) == ["row", "s"]


class Tagged(pa.ExtensionType):  # type: ignore[misc]  # pyarrow ships no types
    """An extension type as another library would register it."""

    def __init__(self) -> None:
        """Store as int64."""
        super().__init__(pa.int64(), "tests.tagged")

    def __arrow_ext_serialize__(self) -> bytes:
        """Have no parameters."""
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> "Tagged":
        """Read no parameters."""
        return cls()


@pytest.mark.parametrize("registered", [True, False])
def test_extension_types_are_refused(tmp_path: Path, registered: bool) -> None:
    """A column of an extension type is named at construction; others can be read."""
    array = pa.ExtensionArray.from_storage(Tagged(), pa.array([1, 2]))
    path = write_parquet(tmp_path / "a.parquet", {"x": array, "y": [1, 2]})
    if registered:
        pa.register_extension_type(Tagged())
    try:
        with pytest.raises(TypeError, match="'x' is an extension type"):
            ParquetSource(path)
        assert rows(ParquetSource(path, columns=["y"]), "y") == [1, 2]
    finally:
        if registered:
            pa.unregister_extension_type("tests.tagged")


@pytest.mark.parametrize(
    ("columns", "arguments", "error", "message"),
    [
        ({"x": [1]}, {"columns": ["y"]}, ValueError, "y"),
        ({"x": [1]}, {"columns": []}, ValueError, "none"),
        ({"x": [1]}, {"columns": "x"}, TypeError, "one string"),
        (
            {"id": [1]},
            {},
            ValueError,
            r'column \'id\' of their own, .* id_key="row_id" .* ids=\'id\'',
        ),
        ({"x": [1]}, {"id_key": None}, TypeError, "id_key must be a string, got NoneType"),
        ({"x": [{"a": 1}]}, {}, TypeError, "'x'"),
        ({"x": [["a"]]}, {}, TypeError, "'x'"),
        ({"x": pa.array([1]).cast(pa.decimal128(20))}, {}, TypeError, "decimal"),
        ({"x": [1]}, {"batch_size": 0}, ValueError, "batch_size"),
        ({"x": [1]}, {"max_row_group_bytes": 0}, ValueError, "max_row_group_bytes"),
        ({"x": [1]}, {"fill_nulls": {"z": 0}}, ValueError, "z"),
    ],
)
def test_wrong_arguments_fail_at_construction(
    tmp_path: Path,
    columns: dict[str, Any],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    """A wrong argument is named at once, not when the data is read."""
    path = write_parquet(tmp_path / "a.parquet", columns)
    with pytest.raises(error, match=message):
        ParquetSource(path, **arguments)
