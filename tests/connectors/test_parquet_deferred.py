"""Deferred columns of Parquet shards are read of chosen rows only, whatever their layout."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adasel_connectors.parquet import ParquetSource
from adasel_connectors.parquet_header import UnfamiliarError, read_page_header
from adasel_connectors.parquet_levels import are_all, hybrid
from adasel_connectors.parquet_rows import ParquetRows
from adasel_stream.errors import ShardError
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


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_values_and_layout_are_fetched_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Nulls, empty values, pages and row groups of any size: each value comes, or its error."""
    kind = data.draw(st.sampled_from(["bytes", "fixed", "text", "vector"]))
    one = {
        "bytes": st.binary(max_size=9),
        "fixed": st.binary(min_size=3, max_size=3),
        "text": st.text(max_size=5).filter(lambda text: text.isprintable()),
        "vector": st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=2),
    }[kind]
    types = {
        "bytes": pa.binary(),
        "fixed": pa.binary(3),
        "text": pa.string(),
        "vector": pa.list_(pa.int32(), 2),
    }
    nulls = st.none() if data.draw(st.booleans()) else st.nothing()
    written = data.draw(st.lists(one | nulls, min_size=1, max_size=40))
    table = pa.table(
        {"x": pa.array(written, types[kind])},
        schema=pa.schema([pa.field("x", types[kind], nullable=None in written)]),
    )
    path = tmp_path_factory.mktemp("shards") / "a.parquet"
    pq.write_table(
        table,
        path,
        row_group_size=data.draw(st.integers(1, 41)),
        max_rows_per_page=data.draw(st.integers(1, 41)),
        use_dictionary=data.draw(st.booleans()),
        compression=data.draw(st.sampled_from(["none", "snappy", "zstd", "gzip", "lz4"])),
        data_page_version=data.draw(st.sampled_from(["1.0", "1.0", "2.0"])),
        write_page_checksum=data.draw(st.booleans()),
    )
    source = ParquetSource(path, deferred=("x",), batch_size=64)
    (batch,) = source
    rows = data.draw(st.lists(st.integers(0, len(written) - 1), max_size=20))
    fetched = source.fetch({"x": batch["x"][rows]})["x"]
    for row, value in zip(rows, fetched, strict=True):
        if written[row] is None:
            assert "'x' is null" in str(value)
            continue
        assert (value.tolist() if isinstance(value, Tensor) else value) == written[row]
    assert source.counts["unfetched_null"] == sum(written[row] is None for row in rows)


def test_nulls_are_filled_where_a_value_is_given(tmp_path: Path) -> None:
    """A value given for a deferred column stands for its nulls, in the column's type."""
    columns = {
        "bytes": pa.array([b"a", None]),
        "text": pa.array(["a", None]),
        "number": pa.array([1, None]),
        "vector": pa.array([[1, 2], None], pa.list_(pa.int32(), 2)),
    }
    fills = {"bytes": b"?", "text": "?", "number": 7}
    path = write_parquet(tmp_path / "a.parquet", columns)
    source = ParquetSource(path, deferred=tuple(columns), fill_nulls=fills)
    (batch,) = source
    fetched = source.fetch({name: batch[name] for name in columns})
    assert fetched["bytes"] == [b"a", b"?"]
    assert fetched["text"] == ["a", "?"]
    assert [int(number) for number in fetched["number"]] == [1, 7]
    assert fetched["vector"][0].tolist() == [1, 2]
    assert isinstance(fetched["vector"][1], ShardError)


PICKED = [
    {"compression": "none", "use_dictionary": False},
    {"compression": "snappy", "use_dictionary": True},
    {"compression": "zstd", "use_dictionary": False, "row_group_size": 7, "max_rows_per_page": 3},
]


@pytest.mark.parametrize("layout", PICKED)
def test_arrow_decodes_no_row_of_a_known_layout(
    tmp_path: Path, layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts, bytes and lists of one length are picked from their pages."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a row group was decoded")

    monkeypatch.setattr(ParquetRows, "_arrays", refuse)
    names = ["bytes", "large", "text", "fixed", "dictionary", "same"]
    if not layout["use_dictionary"]:
        names.append("vector")
    path = write_parquet(tmp_path / "a.parquet", COLUMNS, **layout)
    source = ParquetSource(path, deferred=names, columns=names)
    (batch,) = source
    source.fetch({name: batch[name] for name in names})
    assert source.counts["fetched"] == len(names) * ROWS


def test_a_row_group_that_must_be_decoded_is_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is fetched from a row group of another layout soon shares one decoding."""
    decoded: list[int] = []
    whole = ParquetRows._arrays

    def watched(self: ParquetRows, name: str, group: int) -> Any:
        decoded.append(group)
        return whole(self, name, group)

    monkeypatch.setattr(ParquetRows, "_arrays", watched)
    path = write_parquet(tmp_path / "a.parquet", COLUMNS, row_group_size=10)
    source = ParquetSource(path, columns=["number"], deferred=("number",))
    (batch,) = source
    for row in range(ROWS):
        assert source.fetch({"number": batch["number"][[row]]})["number"][0] == row
    assert decoded == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "written", "why"),
    [("number", {}, "type"), ("vector", {"use_dictionary": True}, "layout")],
)
def test_decoding_whole_row_groups_is_told_once(
    tmp_path: Path,
    name: str,
    written: dict[str, Any],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One line names the column and what would help, however many shards and row groups follow."""
    columns = {key: COLUMNS[key] for key in (name, "bytes")}
    for shard in "ab":
        write_parquet(tmp_path / f"{shard}.parquet", columns, row_group_size=7, **written)
    source = ParquetSource(tmp_path, deferred=(name, "bytes"), batch_size=2 * ROWS)
    (batch,) = source
    with ThreadPoolExecutor(4) as pool:
        rows = range(2 * ROWS)
        list(pool.map(lambda row: source.fetch({name: batch[name][[row]]}), rows))
    source.fetch({"bytes": batch["bytes"]})
    (told,) = caplog.messages
    assert f"row groups of the deferred column '{name}', as its {why} does" in told
    assert "use_dictionary=False" in told


def test_a_row_group_larger_than_the_cache_is_decoded_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then every fetch decodes it anew, and keeps the chosen rows only."""
    monkeypatch.setattr("adasel_connectors.parquet._COLUMNS_BYTES", 100)
    path = write_parquet(tmp_path / "a.parquet", {"x": pa.array([[i] * 3 for i in range(20_000)])})
    source = ParquetSource(path, deferred=("x",), batch_size=20_000)
    (batch,) = source
    for _ in range(2):
        fetched = source.fetch({"x": batch["x"][[19_999, 3]]})["x"]
        assert [value.tolist() for value in fetched] == [[19_999] * 3, [3] * 3]


def test_what_is_not_chosen_is_not_read(tmp_path: Path) -> None:
    """Pages are destroyed; nothing notices before a row of a destroyed page is fetched."""
    rng = np.random.default_rng(0)
    contents = [rng.bytes(3000) for _ in range(ROWS)]
    path = write_parquet(
        tmp_path / "a.parquet",
        {"y": range(ROWS), "x": contents},
        compression="none",
        use_dictionary=False,
        write_statistics=False,  # they would have copies of contents
        max_rows_per_page=4,
        write_page_checksum=True,
    )
    damaged = bytearray(path.read_bytes())
    for row in range(8, ROWS):
        start = damaged.index(contents[row])
        damaged[start : start + 3000] = bytes(3000)
    path.write_bytes(damaged)
    source = ParquetSource(path, deferred=("x",))
    (batch,) = source
    assert batch["y"].tolist() == list(range(ROWS))
    assert source.fetch({"x": batch["x"][:8]})["x"] == contents[:8]
    values = source.fetch({"x": batch["x"][4:12]})["x"]
    assert values[:4] == contents[4:8]
    assert all(isinstance(value, ShardError) for value in values[4:])
    assert "sample 8: a page fails its checksum" in str(values[4])
    assert source.counts["unfetched_unreadable"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"use_dictionary": False}, {"max_rows_per_page": 7}])
def test_damaged_pages_give_errors_or_the_very_value(
    tmp_path: Path, layout: dict[str, Any]
) -> None:
    """With page checksums, no flipped bit of a wide column changes a value unseen."""
    contents = [bytes([i]) * (20 + i) for i in range(ROWS)]
    path = write_parquet(
        tmp_path / "a.parquet", {"x": contents}, write_page_checksum=True, **layout
    )
    chunk = pq.read_metadata(path).row_group(0).column(0)
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    failed = 0
    for at in rng.integers(4, 4 + chunk.total_compressed_size, 200).tolist():
        flipped = bytearray(sound)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        source = ParquetSource(path, deferred=("x",))
        (batch,) = source
        for value, content in zip(source.fetch({"x": batch["x"]})["x"], contents, strict=True):
            assert isinstance(value, ShardError) or value == content
            failed += isinstance(value, ShardError)
    assert failed > 200


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_page_header_or_unfamiliar(content: bytes) -> None:
    """A header made to harm is refused: it neither loops, nor recurses, nor claims a negative."""
    try:
        header, stop = read_page_header(memoryview(content), 0)
    except UnfamiliarError:
        return
    assert min(header.unpacked_bytes, header.packed_bytes, header.values, header.encoding) >= 0
    assert 0 < stop <= len(content)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=40), st.integers(-1, 40), st.integers(0, 200))
def test_any_bytes_are_levels_or_unfamiliar(content: bytes, width: int, count: int) -> None:
    """Levels made to harm give as many numbers as were asked for, or are refused."""
    try:
        numbers = hybrid(memoryview(content), width, count)
    except UnfamiliarError:
        return
    assert numbers.shape == (count,)
    for value in (0, 1):
        assert are_all(value, memoryview(content), width, count) == bool((numbers == value).all())


def test_a_page_that_claims_too_much_is_left_to_arrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No room is made for what a page's header claims, before Arrow's own limits have seen it."""
    monkeypatch.setattr("adasel_connectors.parquet_pages._MOST_BYTES", 1000)
    monkeypatch.setattr("adasel_connectors.parquet_pages.pa.decompress", None)
    contents = [bytes([i]) * 100 for i in range(ROWS)]
    path = write_parquet(tmp_path / "a.parquet", {"x": contents}, use_dictionary=False)
    source = ParquetSource(path, deferred=("x",))
    (batch,) = source
    assert source.fetch({"x": batch["x"][[7]]})["x"] == contents[7:8]


def test_a_data_set_of_deferred_columns_alone_has_ids(tmp_path: Path) -> None:
    """Where nothing else is read, candidates are ids and references, over all row groups."""
    path = write_parquet(tmp_path / "a.parquet", {"x": ["a", "b", "c"]}, row_group_size=2)
    source = ParquetSource(path, deferred=("x",), batch_size=2)
    batches = list(source)
    assert [len(batch["id"]) for batch in batches] == [2, 1]
    assert source.fetch({"x": batches[1]["x"]}) == {"x": ["c"]}
