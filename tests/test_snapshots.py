"""Snapshots of a kept record: what was saved comes back, at any capacity, from base and deltas."""

import contextlib
import itertools
import logging
import threading
import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord
from adasel_stream.record.pending import PendingLabels
from adasel_stream.record.snapshots.files import read_manifest
from adasel_stream.record.snapshots.folder import MAX_DELTAS
from tests.kept_records import (
    Content,
    content,
    damage,
    files_of,
    flip_middle,
    kept,
    learn,
    rank_folder,
    saved_content,
)
from tests.record_model import Clock, floats, ints

steps = st.lists(
    st.tuples(st.sampled_from(["update", "save", "full", "restart"]), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=12,
)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
def test_every_restart_finds_the_last_snapshot(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever was updated, saved and reopened: a restart has exactly the rows of the last save."""
    path, clock = tmp_path_factory.mktemp("record"), Clock()
    saved: tuple[Content, dict[str, tuple[int, int]]] = ({}, {})
    runs = "".join(action[0] for action, _ in steps).split("r")
    actions = iter(steps)
    for run in runs:
        with kept(path, 200, clock=clock) as record:
            assert (content(record), record.cursors) == saved
            assert record.saved_cursors == saved[1]
            for action, seed in itertools.islice(actions, len(run)):
                clock.now_s += seed % 3
                if action == "update":
                    rng = np.random.default_rng(seed)
                    learn(record, rng, rng.integers(-40, 40, int(rng.integers(60))))
                    record.cursors["w"] = (seed, 1)
                else:
                    record.save(full=action == "full")
                    saved = content(record), dict(record.cursors)
        next(actions, None)  # the restart itself
    assert saved_content(path, capacity=200) == saved[0]


def test_a_record_that_is_not_kept_says_so(tmp_path: Path) -> None:
    """Without `open` there is nothing to save; with it there is, and `close` saves it."""
    plain = LossRecord(100)
    assert not plain.kept
    assert plain.saved_cursors is None
    with pytest.raises(RecordError, match=r"LossRecord\.open"):
        plain.save()
    plain.close()
    record = LossRecord.open(tmp_path / "new" / "record", 100, engine="numpy")
    assert record.kept
    assert record.saved_cursors == {}
    record.update(ints(7), floats(0.5))
    record.close()
    record = LossRecord.open(tmp_path / "new" / "record", 100, engine="numpy")
    assert record.lookup(ints(7)).losses == [0.5]
    record.close()


def test_deltas_hold_what_changed_and_equal_a_full_snapshot(tmp_path: Path) -> None:
    """After a base, a snapshot writes only rows of changed ids, and together they are all."""
    rng, clock = np.random.default_rng(0), Clock()
    with kept(tmp_path, clock=clock) as record:
        learn(record, rng, np.arange(2000))
        clock.now_s += 10
        record.save()
        for begin in range(0, 300, 100):
            clock.now_s += 10
            learn(record, rng, np.arange(begin, begin + 100))
            record.save()
        expected = content(record)
        assert record.snapshots.total_bytes > 3 * record.snapshots.written_bytes
    assert [file.name.split("-")[0] for file in files_of(tmp_path)] == ["base", *["delta"] * 3]
    assert saved_content(tmp_path) == expected


def test_a_loss_that_is_older_than_the_snapshot_is_in_the_next(tmp_path: Path) -> None:
    """A delta holds late losses, which carry ticks from before the snapshot that it follows."""
    clock = Clock()
    with kept(tmp_path, clock=clock) as record:
        clock.now_s += 100
        record.update(ints(*range(50)), np.ones(50))
        clock.now_s += 1
        record.save()
        clock.now_s += 100
        record.update(ints(99, 3), floats(0.25, 9), age_s=np.array([190.0, 150.0]))
        record.save()
        expected = content(record)
    assert [file.rows for file in read_manifest(rank_folder(tmp_path)).files] == [50, 2]
    assert saved_content(tmp_path) == expected


ages_s = st.integers(0, 40)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rounds=st.lists(
        st.tuples(
            st.sampled_from(["save", "save", "full", "fail to copy", "fail to write", "go back"]),
            st.lists(st.tuples(st.integers(0, 90), ages_s), max_size=12),
            st.lists(st.tuples(st.integers(90, 99), ages_s), max_size=3),
            st.integers(0, 3),
        ),
        max_size=9,
    )
)
def test_losses_of_any_age_are_saved(
    rounds: list[tuple[str, list[tuple[int, int]], list[tuple[int, int]], int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Losses and rows of any age, in between snapshots that fail: the last one has all of them."""
    path, clock = tmp_path_factory.mktemp("record"), Clock()
    with kept(path, clock=clock) as record:
        clock.now_s += 50
        learn(record, np.random.default_rng(0), np.arange(60))
        record.save()
        state = record.state_dict()
        for number, (action, rows, others, passed_s) in enumerate(rounds):
            clock.now_s += passed_s
            for id_, age_s in rows:
                record.update(ints(id_), floats(number), age_s=age_s)
            other = LossRecord(100, clock=clock, engine="numpy")
            other.load_position(record.position())
            for id_, age_s in others:
                other.update(ints(id_), floats(number), age_s=age_s)
            assert record.tick == other.tick  # by a new reading of the clock
            record.place(other.entries(0, other.capacity))
            if action == "go back":
                record.load_state_dict(state)
            with pytest.MonkeyPatch.context() as patch:
                if action.startswith("fail"):
                    step = "folder.write_rows" if action.endswith("write") else "copying._Copied"
                    patch.setattr(f"adasel_stream.record.snapshots.{step}", None)
                with contextlib.suppress(RecordError):
                    record.save(full=action == "full")
        record.save()
        expected = content(record)
    assert saved_content(path) == expected


def test_compaction_keeps_all_and_only_a_base(tmp_path: Path) -> None:
    """After eight deltas the next snapshot is a new base, and older files are gone."""
    rng, clock = np.random.default_rng(0), Clock()
    with kept(tmp_path, clock=clock) as record:
        learn(record, rng, np.arange(3000))
        for number in range(MAX_DELTAS + 2):
            clock.now_s += 5
            learn(record, rng, np.arange(number, number + 20))
            record.save()
            if number == MAX_DELTAS:
                assert len(files_of(tmp_path, "delta")) == MAX_DELTAS
        expected = content(record)
    (only,) = files_of(tmp_path)
    assert only.name.startswith("base-")
    assert saved_content(tmp_path) == expected


@pytest.mark.parametrize("capacity", [4000, 8000, 3000])
def test_another_capacity_keeps_the_newest(capacity: int, tmp_path: Path) -> None:
    """A larger record keeps all; a smaller one loses only rows older than others of the bucket."""
    rng, clock = np.random.default_rng(1), Clock()
    with kept(tmp_path, 4000, clock=clock) as record:
        for begin in range(0, 3000, 100):
            clock.now_s += 10
            learn(record, rng, np.arange(begin, begin + 100))
        record.save()
        saved = content(record)
    restored = saved_content(tmp_path, capacity=capacity)
    assert restored.items() <= saved.items()
    if capacity >= 4000:
        assert restored == saved
    else:
        newest = sorted(saved, key=lambda key: saved[key][2])[-1000:]
        assert len(restored) > 0.85 * len(saved)
        assert sum(key in restored for key in newest) > 0.99 * len(newest)


def test_ages_go_on_over_a_restart(tmp_path: Path) -> None:
    """The time between two runs counts into the age of what the first recorded."""
    clock = Clock()
    with kept(tmp_path, clock=clock) as record:
        clock.now_s += 50
        record.update(ints(1), floats(1))
        record.save()
    clock.now_s += 30
    with kept(tmp_path, clock=clock) as record:
        assert record.lookup(ints(1)).age_s == [30]


def test_counts_go_on_over_a_restart(tmp_path: Path) -> None:
    """Hits and misses before the last snapshot are not forgotten."""
    with kept(tmp_path) as record:
        record.lookup(ints(1, 2))
        record.save()
    with kept(tmp_path) as record:
        assert record.counts["misses"] == 2


def test_a_record_loaded_from_a_checkpoint_begins_a_new_base(tmp_path: Path) -> None:
    """Files of a future that was rolled back do not outlive the next snapshot."""
    clock = Clock()
    with kept(tmp_path, clock=clock) as record:
        record.update(ints(1, 2), floats(1, 2))
        state = record.state_dict()
        clock.now_s += 100
        record.update(ints(1, 3), floats(8, 9))
        record.save()
        record.load_state_dict(state)
        record.save()
        expected = content(record)
    assert saved_content(tmp_path) == expected
    assert len(expected) == 2


def test_another_seed_is_refused(tmp_path: Path) -> None:
    """Keys of another seed would make every id unknown; the error says which one to take."""
    with kept(tmp_path, seed=3) as record:
        record.save()
    with pytest.raises(RecordError, match="seed 3, this one has 0: open it with seed=3"):
        LossRecord.open(tmp_path, 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_every_s": 0}, "save_every_s must be a positive number, got 0"),
        ({"save_every_s": float("nan")}, "save_every_s must be a positive number"),
        ({"save_every_s": "5"}, "save_every_s must be a number, got str"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, 1\], got 2"),
        ({"rank": 0.0}, "rank must be an integer, got float"),
        ({"world_size": True}, "world_size must be an integer, got bool"),
        ({"world_size": 1025}, r"world_size must be in \[1, 1024\], got 1025"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """What can never work is refused before anything is written."""
    with pytest.raises((TypeError, ValueError), match=message):
        LossRecord.open(tmp_path / "r", 100, **arguments)
    assert not (tmp_path / "r").exists()


def test_the_background_saves(tmp_path: Path) -> None:
    """A record that nobody saves is saved every now and then."""
    record = LossRecord.open(tmp_path, 100, save_every_s=0.01, engine="numpy")
    record.update(ints(1), floats(1))
    never = threading.Event()
    deadline_s = time.monotonic() + 20
    while record.snapshots.saved < 3 and time.monotonic() < deadline_s:
        never.wait(0.01)
    record.close()
    assert record.snapshots.saved >= 4
    assert record.snapshots.failed == 0


def test_a_record_is_used_while_it_is_saved(tmp_path: Path) -> None:
    """Updates go on during snapshots; in the end a last delta has all that came later."""
    rng = np.random.default_rng(0)
    capacity = 800_000  # nothing is evicted: snapshots know that longer than the record
    record = LossRecord.open(tmp_path, capacity, save_every_s=0.001, engine="numpy")
    while record.snapshots.saved < 5:
        learn(record, rng, rng.integers(0, 50_000, 1000))
    record.save()
    expected = content(record)
    record.close(save=False)
    assert saved_content(tmp_path, capacity=capacity) == expected


def pending_labels(capacity: int = 800) -> PendingLabels:
    """Predictions that wait; a loss is the distance to the label."""
    return PendingLabels(capacity, lambda p, y: np.abs(p - y), ttl_s=None)


def test_predictions_wait_over_a_restart(tmp_path: Path) -> None:
    """Predictions without labels are in each snapshot; joined ones are not."""
    clock = Clock()
    with kept(tmp_path, clock=clock, pending=pending_labels()) as record:
        record.expect(ints(1, 2, 3), floats(1, 2, 3))
        record.save()
        clock.now_s += 60
        record.join(ints(2), floats(2.5))
        record.save()
    clock.now_s += 40
    with kept(tmp_path, clock=clock, pending=pending_labels(1600)) as record:
        assert record.join(ints(1, 2, 3), floats(0, 0, 0)).tolist() == [True, False, True]
        known = record.lookup(ints(1, 2, 3))
        assert known.losses.tolist() == [1, 0.5, 3]
        assert known.age_s.tolist() == [100, 100, 100]
        assert record.pending is not None
        assert record.pending.counts["joined"] == 3


def test_a_record_without_predictions_keeps_those_of_another(tmp_path: Path) -> None:
    """Opened by somebody who waits for no labels, a record does not lose what waits."""
    with kept(tmp_path, pending=pending_labels()) as record:
        record.expect(ints(1), floats(1))
        record.save()
    for _ in range(2):
        with kept(tmp_path) as record:
            record.update(ints(5), floats(5))
            record.save(full=True)
    with kept(tmp_path, pending=pending_labels()) as record:
        assert record.join(ints(1), floats(3)).all()


def test_damaged_predictions_are_given_up(tmp_path: Path) -> None:
    """A damaged file of predictions is counted; losses do not depend on it."""
    with kept(tmp_path, pending=pending_labels()) as record:
        record.update(ints(5), floats(5))
        record.expect(ints(1), floats(1))
        record.save()
    damage(files_of(tmp_path, "pending")[0], flip_middle)
    with kept(tmp_path, pending=pending_labels()) as record:
        assert record.snapshots.damaged_files == 1
        assert record.lookup(ints(5)).known.all()
        assert not record.join(ints(1), floats(1)).any()


def test_no_cursor_moves_while_a_record_is_copied(tmp_path: Path) -> None:
    """While rows are copied, `copying` is set, and the cursors saved are those of the beginning."""
    with kept(tmp_path) as record:
        seen: list[bool] = []
        record.cursors["w"] = (1, 1)
        entries = record.entries

        def moving(start: int, stop: int, **which: Any) -> object:
            seen.append(record.copying)
            record.cursors["w"] = (2, 2)
            return entries(start, stop, **which)

        record.entries = moving  # type: ignore[method-assign, assignment] # looks on
        record.save()
        assert seen
        assert all(seen)
        assert not record.copying
        assert record.saved_cursors == {"w": (1, 1)}


def test_a_damaged_delta_ends_the_chain(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What comes before a damaged delta is kept, it is counted and logged, and saving goes on."""
    rng, clock = np.random.default_rng(0), Clock()
    contents = []
    with kept(tmp_path, clock=clock) as record:
        learn(record, rng, np.arange(1000))
        for _ in range(4):
            clock.now_s += 10
            record.save()
            contents.append(content(record))
            learn(record, rng, rng.integers(0, 1000, 50))
    damage(files_of(tmp_path)[2], flip_middle)
    with caplog.at_level(logging.WARNING), kept(tmp_path, clock=clock) as record:
        assert content(record) == contents[1]
        assert record.snapshots.damaged_files == 1
        record.save()
    assert "delta-000000000003.parquet' is damaged" in caplog.text
    assert saved_content(tmp_path) == contents[1]
    assert len(files_of(tmp_path)) == 1


def test_a_missing_delta_is_damage(tmp_path: Path) -> None:
    """A delta that was removed ends the chain like one that is damaged."""
    clock = Clock()
    with kept(tmp_path, clock=clock) as record:
        record.update(ints(1, 2, 3), floats(1, 2, 3))
        record.save()
        before = content(record)
        clock.now_s += 5
        record.update(ints(1), floats(5))
        record.save()
    files_of(tmp_path, "delta")[0].unlink()
    with kept(tmp_path) as record:
        assert content(record) == before
        assert record.snapshots.damaged_files == 1


def test_a_damaged_base_is_refused(tmp_path: Path) -> None:
    """A record whose base is damaged is never silently empty: the error names the file."""
    with kept(tmp_path) as record:
        learn(record, np.random.default_rng(0), np.arange(1000))
        record.save()
    (base,) = files_of(tmp_path)
    damage(base, flip_middle)
    for _ in range(2):  # and the refusal gives the lock back
        with pytest.raises(
            RecordError, match=rf"{base.name}' is damaged: its sha256.*salvage=True"
        ):
            LossRecord.open(tmp_path, 100)
    assert base.exists()


def test_salvage_goes_on_with_sound_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to, a record goes on with those row groups of a damaged base that are sound."""
    monkeypatch.setattr("adasel_stream.record.snapshots.columns.GROUP_ROWS", 100)
    with kept(tmp_path) as record:
        learn(record, np.random.default_rng(0), np.arange(1000))
        record.save()
        expected = content(record)
    base = files_of(tmp_path)[0]
    damage(base, flip_middle)
    evidence = base.read_bytes()
    with kept(tmp_path, salvage=True) as record:
        saved = content(record)
        assert record.snapshots.damaged_files == 1
        record.save()
    assert base.with_name(f"{base.name}.damaged").read_bytes() == evidence
    assert saved.items() <= expected.items()
    assert len(saved) == len(expected) - 100
    assert saved_content(tmp_path) == saved


def test_a_lost_manifest_is_noticed(tmp_path: Path) -> None:
    """A folder with files but without its manifest is refused, not begun anew."""
    with kept(tmp_path) as record:
        record.save()
    (rank_folder(tmp_path) / "manifest.json").unlink()
    with pytest.raises(RecordError, match=r"has files but no manifest\.json"):
        LossRecord.open(tmp_path, 100)
    assert len(files_of(tmp_path)) == 1


def test_a_damaged_manifest_is_refused_with_advice(tmp_path: Path) -> None:
    """A record without a manifest that makes sense is not begun anew unasked."""
    with kept(tmp_path) as record:
        record.save()
    damage(rank_folder(tmp_path) / "manifest.json", flip_middle)
    for world_size in (1, 2):
        with pytest.raises(
            RecordError,
            match=rf"manifest.json' is damaged: .*; restore '{tmp_path}' from a copy, or move it",
        ):
            LossRecord.open(tmp_path, 100, world_size=world_size)


def test_what_no_snapshot_wrote_is_left(tmp_path: Path) -> None:
    """Files of others in the folder stay, those of killed writers go."""
    with kept(tmp_path) as record:
        record.save()
    folder = rank_folder(tmp_path)
    others = ["notes.txt", "base.parquet", ".base-1.parquet.tmp"]
    ours = ["delta-000000000099.parquet", f".base-000000000001.parquet.{'0' * 16}.tmp"]
    for name in others + ours:
        (folder / name).write_bytes(b"x")
    with kept(tmp_path):
        pass
    left = {file.name for file in folder.iterdir()}
    assert left == {*others, "owner.lock", "manifest.json", "base-000000000001.parquet"}


def test_a_closed_record_says_that_it_does_not_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: whoever goes on after `close` would notice at the next start only."""
    with LossRecord.open(tmp_path, 100) as record:
        record.update(np.array([1]), np.ones(1))
    assert not caplog.records
    for _ in range(2):
        record.update(np.array([2]), np.ones(1))
    told = [entry.message for entry in caplog.records if "this record is closed" in entry.message]
    assert len(told) == 1
    with LossRecord.open(tmp_path, 100) as again:
        assert again.ids().tolist() == [1]
