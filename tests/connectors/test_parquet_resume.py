"""ParquetSource goes on at any batch in the shards it began with, and names the damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
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
