"""ParquetSource gives columns as tensors, in batches of an exact size, from any row on."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_connectors.damage import ON_ERROR, OnError
from adasel_connectors.manifest import write_manifest
from adasel_connectors.parquet import ParquetSource
from adasel_stream.errors import ShardError, SourceError
from tests.connectors.shard_files import plain, rows, write_parquet


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


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any),
    st.integers(1, 9),
    st.integers(1, 50),
    st.data(),
)
def test_any_row_groups_and_sizes_resume_at_any_batch(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    row_group_size: int,
    batch_size: int,
    data: st.DataObject,
) -> None:
    """Whatever the layout, a stop and resume at any batch repeats and loses no row."""
    folder = tmp_path_factory.mktemp("shards")
    for i, size in enumerate(sizes):
        columns = {"x": np.arange(size) + 100 * i}
        write_parquet(folder / f"{i}.parquet", columns, row_group_size=row_group_size)
    whole = plain(ParquetSource(folder, batch_size=batch_size))
    stop = data.draw(st.integers(0, len(whole)))
    source = ParquetSource(folder, batch_size=batch_size)
    iterator = iter(source)
    head = plain(next(iterator) for _ in range(stop))
    resumed = ParquetSource(folder, batch_size=batch_size)
    resumed.load_state_dict(json.loads(json.dumps(source.state_dict())))
    assert head + plain(resumed) == whole
    assert [len(batch["x"]) for batch in whole[:-1]] == [batch_size] * (len(whole) - 1)


def test_a_resume_of_a_resume_repeats_and_loses_nothing(folder: Path) -> None:
    """Stopping after each single batch gives the undisturbed sequence and counts."""
    undisturbed = ParquetSource(folder, batch_size=3)
    whole = plain(undisturbed)
    batches: list[dict[str, Any]] = []
    source = ParquetSource(folder, batch_size=3)
    for _ in range(len(whole)):
        batches += plain([next(iter(source))])
        state = source.state_dict()
        source = ParquetSource(folder, batch_size=3)
        source.load_state_dict(state)
    assert batches == whole
    assert list(source) == []
    assert source.counts == undisturbed.counts


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


def test_batches_are_views_of_one_decoded_chunk(tmp_path: Path) -> None:
    """Neighbouring batches share memory that torch may write to, without a copy or warning."""
    path = write_parquet(tmp_path / "z.parquet", {"x": np.arange(8.0)})
    first, second = ParquetSource(path, batch_size=4)
    assert first["x"].untyped_storage().data_ptr() == second["x"].untyped_storage().data_ptr()
    first["x"] += 1
    assert second["x"].tolist() == [4, 5, 6, 7]


def test_nulls_in_floats_become_nan(tmp_path: Path) -> None:
    """A missing float is NaN, inside lists too."""
    lists = pa.array([[1.0, None], [2, 3]], pa.list_(pa.float32(), 2))
    batch = one_batch(tmp_path, {"x": pa.array([0.5, None]), "v": lists})
    assert batch["x"].isnan().tolist() == [False, True]
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


def test_skipped_rows_are_counted_once_however_often_it_resumes(tmp_path: Path) -> None:
    """Nulls between batches are counted as in the undisturbed run."""
    path = write_parquet(tmp_path / "a.parquet", {"x": pa.array([None, 0, None, None, 1, 2, None])})
    source = ParquetSource(path, batch_size=1, on_error="skip_sample")
    values: list[int] = []
    for _ in range(3):
        values += next(iter(source))["x"].tolist()
        state = source.state_dict()
        source = ParquetSource(path, batch_size=1, on_error="skip_sample")
        source.load_state_dict(state)
    assert values == [0, 1, 2]
    assert list(source) == []
    assert source.counts["skipped_samples"] == 4


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
        ({"id": [1]}, {}, ValueError, "id_key"),
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


@pytest.mark.parametrize(
    ("second", "kind"),
    [
        ({"x": [0.5], "v": [[1, 2]]}, "schema"),
        ({"v": [[1, 2]]}, "schema"),
        ({"x": pa.array([1], pa.timestamp("us")), "v": [[1, 2]]}, "schema"),
        ({"x": [1], "v": [[1, 2, 3]]}, "ragged"),
        ({"x": [1, 2], "v": [[1, 2], [1]]}, "ragged"),
    ],
)
def test_a_shard_unlike_the_first_is_named(
    tmp_path: Path, second: dict[str, Any], kind: str
) -> None:
    """Other types or other lengths of lists are damage to the shard, not a broken batch."""
    write_parquet(tmp_path / "a.parquet", {"x": [1, 2], "v": [[1, 2], [3, 4]]})
    write_parquet(tmp_path / "b.parquet", second)
    with pytest.raises(ShardError, match=r"'b\.parquet'"):
        list(ParquetSource(tmp_path, batch_size=1))
    source = ParquetSource(tmp_path, on_error="skip_shard")
    assert rows(source, "x") == [1, 2]
    assert (source.counts[kind], source.counts["skipped_shards"]) == (1, 1)


@pytest.mark.parametrize("policy", ON_ERROR)
def test_cut_and_altered_shards_are_never_silent_with_a_manifest(
    folder: Path, policy: OnError
) -> None:
    """Any cut and any flipped bit is named before the shard's first row is given out."""
    manifest = write_manifest(folder)
    sound = (folder / "c.parquet").read_bytes()
    for i in range(0, len(sound), 97):
        flipped = bytearray(sound)
        flipped[i] ^= 1
        for content in (sound[:i], bytes(flipped)):
            (folder / "c.parquet").write_bytes(content)
            source = ParquetSource(folder, batch_size=1, manifest=manifest, on_error=policy)
            if policy == "raise":
                with pytest.raises(ShardError, match=r"'c\.parquet'"):
                    list(source)
            else:
                assert rows(source, "x") == list(range(10))
                assert source.counts["skipped_shards"] == 1


def test_without_a_manifest_cuts_and_page_checksums_are_noticed(tmp_path: Path) -> None:
    """A cut loses the footer; a flipped bit in a page fails its checksum, where one is stored."""
    path = write_parquet(
        tmp_path / "a.parquet",
        {"x": np.random.default_rng(0).random(500)},
        write_page_checksum=True,
        use_dictionary=False,
    )
    sound = path.read_bytes()
    for i in (0, 10, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:i])
        with pytest.raises(ShardError, match=r"cannot (be )?read"):
            list(ParquetSource(path))
    flipped = bytearray(sound)
    flipped[2000] ^= 1
    path.write_bytes(flipped)
    source = ParquetSource(path, on_error="skip_sample")
    assert list(source) == []
    assert (source.counts["unreadable"], source.counts["skipped_shards"]) == (1, 1)


def test_a_row_group_above_the_limit_is_refused(tmp_path: Path) -> None:
    """A small file that would become large in memory is refused by its footer's own claim."""
    path = tmp_path / "a.parquet"
    zeros = pa.table({"x": pa.array([b"\0" * 1000] * 5000)})
    pq.write_table(zeros, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 50_000
    with pytest.raises(ShardError, match="max_row_group_bytes is 1000000"):
        list(ParquetSource(path, max_row_group_bytes=1_000_000))
    assert len(rows(ParquetSource(path))) == 5000


def test_a_shard_that_changed_or_is_gone_is_refused_by_name(folder: Path) -> None:
    """A snapshot does not go on in other content than it was taken in."""
    source = ParquetSource(folder, batch_size=4)
    next(iter(source))
    state = source.state_dict()
    sound = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(sound.replace(b"\x05\x00", b"\x06\x00"))
    changed = ParquetSource(folder, batch_size=4)
    changed.load_state_dict(state)
    with pytest.raises(ShardError, match=r"'a\.parquet' has changed"):
        next(iter(changed))
    (folder / "a.parquet").write_bytes(sound + b"\0")
    with pytest.raises(ShardError, match=r"'a\.parquet' has changed"):
        ParquetSource(folder).load_state_dict(state)
    (folder / "c.parquet").unlink()
    (folder / "a.parquet").write_bytes(sound)
    with pytest.raises(ShardError, match=r"'c\.parquet' is missing"):
        ParquetSource(folder).load_state_dict(state)
    with pytest.raises(SourceError, match="state of a parquet source"):
        ParquetSource(folder).load_state_dict({**state, "source": "tar"})
