"""A record's folder without its trainer: verified, compacted, exported, imported, and queried."""

import itertools
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped] # pyarrow ships no types
import pyarrow.csv as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord
from adasel_stream.record.snapshots import reading
from adasel_stream.record.snapshots.columns import SHARDS, shards_of
from adasel_stream.record.snapshots.exchange import export_rows, import_rows
from adasel_stream.record.snapshots.files import read_manifest
from adasel_stream.record.snapshots.reading import Snapshot, merged
from adasel_stream.record.snapshots.upkeep import compact, verify
from tests.kept_records import (
    Content,
    content,
    content_of,
    damage,
    files_of,
    flip_middle,
    kept,
    learn,
    rank_folder,
    saved_content,
)
from tests.record_model import Clock, floats, ints

Told = list[tuple[int, int]]


def fill(path: Path, deltas: int = 3) -> Content:
    """Save a record with a base and some deltas, and return what it held.

    It is large enough to evict nothing: snapshots still know what was evicted since their base.
    """
    rng, clock = np.random.default_rng(0), Clock()
    with kept(path, 20_000, clock=clock) as record:
        learn(record, rng, np.arange(-1000, 1000))
        for _ in range(1 + deltas):
            clock.now_s += 10
            record.save()
            learn(record, rng, rng.integers(-1000, 1000, 100))
        record.save()
        return content(record)


def tell(told: Told) -> Any:
    """Note what progress is told."""
    return lambda done, total: told.append((done, total))


def assert_complete(told: Told) -> None:
    """Progress goes up, to all of it."""
    assert told == sorted(told)
    assert {total for _, total in told} == {told[-1][0]}


def test_a_sound_record_has_no_findings(tmp_path: Path) -> None:
    """Every row of every file is looked at, also while a trainer has the record open."""
    fill(tmp_path)
    told: Told = []
    with kept(tmp_path):
        assert verify(tmp_path, tell(told)) == []
    assert verify(rank_folder(tmp_path)) == []
    assert_complete(told)
    assert told[-1][0] == sum(file.rows for file in read_manifest(rank_folder(tmp_path)).files)


def test_every_damaged_file_is_found(tmp_path: Path) -> None:
    """Findings name each file that cannot be used, with the reason, and the others are fine."""
    fill(tmp_path)
    base, first, second, _, _ = files_of(tmp_path)
    damage(base, flip_middle)
    damage(first, lambda content: content[:-1])
    second.unlink()
    findings = verify(tmp_path)
    assert [finding.path for finding in findings] == [base, first, second]
    reasons = ["its sha256 is not the manifest's", "it has", "it is missing"]
    for finding, reason in zip(findings, reasons, strict=True):
        assert reason in finding.reason
    damage(rank_folder(tmp_path) / "manifest.json", flip_middle)
    assert [finding.path.name for finding in verify(tmp_path)] == ["manifest.json"]


def test_what_is_no_record_is_named(tmp_path: Path) -> None:
    """A folder without a record is an error, not a record without findings."""
    for work in (verify, compact):
        with pytest.raises(RecordError, match="is no record"):
            work(tmp_path)


def test_compaction_leaves_one_base_with_all(tmp_path: Path) -> None:
    """Folded, a record has the same content in one file, and training goes on from there."""
    expected = fill(tmp_path, deltas=4)
    told: Told = []
    sizes = compact(tmp_path, tell(told))
    assert [file.name.split("-")[0] for file in files_of(tmp_path)] == ["base"]
    assert sizes.rows_before > sizes.rows_after == len(expected)
    assert sizes.bytes_before > sizes.bytes_after == files_of(tmp_path)[0].stat().st_size
    assert_complete(told)
    assert saved_content(tmp_path, capacity=20_000) == expected
    assert verify(tmp_path) == []
    assert compact(tmp_path).rows_before == len(expected)  # again, it changes nothing
    with kept(tmp_path, 20_000) as record:
        record.save()
    assert saved_content(tmp_path, capacity=20_000) == expected


def test_a_record_in_use_is_not_compacted(tmp_path: Path) -> None:
    """Its owner compacts it by itself; another process is refused."""
    fill(tmp_path)
    with kept(tmp_path), pytest.raises(RecordError, match="has an owner already"):
        compact(tmp_path)


def test_a_damaged_record_is_not_compacted(tmp_path: Path) -> None:
    """Damage is named and left for the user to decide about."""
    fill(tmp_path)
    files = files_of(tmp_path)
    damage(files[2], flip_middle)
    with pytest.raises(RecordError, match="is damaged"):
        compact(tmp_path)
    assert files_of(tmp_path) == files


@pytest.mark.parametrize("window_rows", [100, 10**6])
def test_a_snapshot_is_read_in_key_order(
    window_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and deltas come as one sorted sequence without repetition, in windows of any size."""
    expected = fill(tmp_path)
    monkeypatch.setattr(reading, "_WINDOW_ROWS", window_rows)
    with Snapshot(rank_folder(tmp_path)) as snapshot:
        groups = list(merged(snapshot))
        part = list(merged(snapshot, range(100, 300)))
    keys = np.concatenate([group.keys for group in groups])
    assert (keys[1:] > keys[:-1]).all()
    assert content_of(groups) == expected
    shards = shards_of(np.array(list(expected), np.uint64)).tolist()
    wanted = {key: expected[key] for key, s in zip(expected, shards, strict=True) if 100 <= s < 300}
    assert content_of(part) == wanted


def test_ranges_of_shards_are_read_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However shards are cut into ranges, together they are all rows, each once."""
    monkeypatch.setattr("adasel_stream.record.snapshots.columns.GROUP_ROWS", 64)
    expected = fill(tmp_path)
    compact(tmp_path)
    (entry,) = read_manifest(rank_folder(tmp_path)).files
    for bounds in ([0, 1, 2, 500, 501, 900, SHARDS], [0, 512, SHARDS], range(0, SHARDS + 1, 8)):
        with Snapshot(rank_folder(tmp_path)) as snapshot:
            rows = snapshot.rows_of(entry)
            groups = [
                g
                for begin, end in itertools.pairwise(bounds)
                for g in rows.groups(range(begin, end))
            ]
        assert sum(len(group.keys) for group in groups) == len(expected)
        assert content_of(groups) == expected


def test_a_snapshot_is_read_while_its_owner_replaces_it(tmp_path: Path) -> None:
    """Files that a reader has opened stay readable when a compaction removes them."""
    with kept(tmp_path) as record:
        record.update(ints(1, 2), floats(1, 2))
        record.save()
        expected = content(record)
        with Snapshot(rank_folder(tmp_path)) as snapshot:
            record.update(ints(3), floats(3))
            record.save(full=True)
            assert content_of(list(merged(snapshot))) == expected


def test_duckdb_and_pyarrow_open_the_files_as_they_are(tmp_path: Path) -> None:
    """Other tools read ids and losses from a base without knowing anything of this package."""
    with kept(tmp_path) as record:
        record.update(np.arange(-500, 500), np.arange(1000) / 8)
        record.save()
    (base,) = files_of(tmp_path)
    query = f"select count(*), min(id), max(id), sum(last), max(count) from read_parquet('{base}')"
    total = duckdb.connect().execute(query).fetchall()
    assert total == [(1000, -500, 499, sum(range(1000)) / 8, 1)]
    by_id = dict(
        zip(*(pq.read_table(base)[name].to_pylist() for name in ("id", "last")), strict=True)
    )
    assert by_id == {id_: (id_ + 500) / 8 for id_ in range(-500, 500)}


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_an_export_imports_as_it_was(suffix: str, tmp_path: Path) -> None:
    """Ids, losses, averages, counts, versions and ages survive the way through one file."""
    expected = fill(tmp_path / "from")
    told: Told = []
    table = tmp_path / f"losses.{suffix}"
    assert export_rows(tmp_path / "from", table, tell(told)) == len(expected)
    told.clear()
    with kept(tmp_path / "to", 20_000) as record:
        assert import_rows(record, table, tell(told)) == len(expected)
        assert content(record) == expected
        record.save()
    assert_complete(told)
    assert saved_content(tmp_path / "to", capacity=20_000) == expected


def test_an_export_of_all_ranks_is_one_file(tmp_path: Path) -> None:
    """The snapshots of all ranks are exported together."""
    for rank in range(2):
        with kept(tmp_path, rank=rank, world_size=2) as record:
            record.update(ints(rank), floats(rank))
            record.save()
    assert export_rows(tmp_path, tmp_path / "all.parquet") == 2
    assert sorted(pq.read_table(tmp_path / "all.parquet")["id"].to_pylist()) == [0, 1]


def test_an_import_needs_ids_and_losses_alone(tmp_path: Path) -> None:
    """A table made elsewhere, with integers of any width, fills a record."""
    pq.write_table(
        pa.table({"id": pa.array([5, 6], pa.int32()), "loss": [0.5, 1.5]}), tmp_path / "t.parquet"
    )
    with kept(tmp_path / "r") as record:
        record.update(ints(6), floats(9))
        assert import_rows(record, tmp_path / "t.parquet") == 2
        assert record.lookup(ints(5, 6)).losses.tolist() == [0.5, 1.5]
        record.save()
    assert len(saved_content(tmp_path / "r")) == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1]}, "has no column loss; a table of losses has columns id"),
        ({"other": [1]}, "has no column id and no column loss;"),
        ({"id": [1], "loss": [float("nan")]}, "a loss that is not finite|null in column 'loss'"),
        ({"id": [1, None], "loss": [1.0, 2.0]}, "a null in column 'id'"),
        ({"id": [1], "loss": [1.0], "count": [-1]}, "cannot read"),
        ({"id": ["one"], "loss": [1.0]}, "cannot read"),
    ],
    ids=lambda part: str(part)[:24],
)
def test_a_table_that_does_not_fit_is_refused(
    columns: dict[str, list[Any]], message: str, tmp_path: Path
) -> None:
    """What is no table of losses changes nothing in the record."""
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    pc.write_csv(pa.table(columns), tmp_path / "t.csv")
    for name in ("t.parquet", "t.csv"):
        record = LossRecord(100, engine="numpy")
        with pytest.raises(RecordError, match=message):
            import_rows(record, tmp_path / name)
        assert len(record) == 0


def test_another_ending_is_refused(tmp_path: Path) -> None:
    """A file is of the format that its name says, or refused before anything is read."""
    with pytest.raises(ValueError, match=r"ends in \.parquet or \.csv, got '\.txt'"):
        export_rows(tmp_path, tmp_path / "t.txt")
    with pytest.raises(ValueError, match=r"ends in \.parquet or \.csv, got ''"):
        import_rows(LossRecord(100, engine="numpy"), tmp_path / "t")


def test_a_record_whose_first_snapshot_failed_exports_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest is there, and says that nothing was saved yet."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    record = LossRecord.open(tmp_path / "record", 100)
    record.update(ints(1), floats(1))
    with monkeypatch.context() as patch:
        patch.setattr("adasel_stream.record.snapshots.folder.write_rows", refuse)
        with pytest.raises(RecordError, match="No space left"):
            record.save()
    record.close(save=False)
    assert export_rows(tmp_path / "record", tmp_path / "out.csv") == 0
