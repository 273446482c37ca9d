"""A feed applies what was published, once, and nothing else."""

import contextlib
import math
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord
from adasel_stream.record.pending import PendingLabels
from adasel_stream.serving import LossFeed, LossWriter, ServedRecord, inbox, listing
from adasel_stream.serving.inbox import Inbox
from adasel_stream.serving.listing import Listing
from adasel_stream.serving.names import segment_name, temporary_name
from adasel_stream.serving.segment import LOSS, PREDICTION, ROW, write_segment
from tests.served_records import CountingRecord, listed

NOW_S = 10_000.0
A, B, C = ("aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Make a clock."""
    return Clock()


@pytest.fixture
def feed(tmp_path: Path, clock: Clock) -> LossFeed:
    """Make a feed of the test's folder that looks into it every second."""
    return LossFeed(tmp_path, poll_every_s=1.0, clock=clock, wall_clock=lambda: NOW_S)


def put(folder: Path, writer: str, sequence: int, *ids: int, **fields: Any) -> Path:
    """Publish a segment of rows with these ids."""
    rows = np.zeros(len(ids), ROW)
    rows["id"] = ids
    for name, value in fields.items():
        rows[name] = value
    write_segment(folder, writer, sequence, rows.view(np.uint8).data)
    return folder / segment_name(writer, sequence)


def drain(feed: LossFeed, record: ServedRecord, clock: Clock, max_rows: int = 16_384) -> int:
    """Poll until nothing is left, and return the rows taken."""
    taken = 0
    for _ in range(10_000):
        clock.now_s += 1.0
        rows = feed.poll(record, max_rows)
        taken += rows
        if not rows and not feed.backlog_segments and feed._look is None:
            return taken
    raise AssertionError("the backlog never ended")


def test_rows_reach_the_record_as_they_were_written(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """Id, loss, version and age come over; a row from the future has age 0."""
    put(tmp_path, A, 0, 5, 6, value=[0.5, 2.0], version=[3, 4], second=[9_990, 20_000])
    record = CountingRecord()
    assert drain(feed, record, clock) == 2
    assert record.losses == {5: (0.5, 3, 10.0), 6: (2.0, 4, 0.0)}
    assert feed.newest_age_s == 0.0
    assert record.cursors == {A: (1, 0)}


def test_the_writer_and_the_feed_agree(tmp_path: Path, feed: LossFeed, clock: Clock) -> None:
    """Two writers' losses and predictions all come over, and nothing stays in the folder."""
    record = CountingRecord(pending=True)
    with LossWriter(tmp_path, segment_rows=100) as one, LossWriter(tmp_path) as other:
        one.write(np.arange(250), np.full(250, 0.5))
        other.write_predictions(np.arange(1000, 1003), np.array([0.1, 0.2, 0.3]))
        assert one.publish()
        assert other.publish()
        assert drain(feed, record, clock) == 253
    assert record.applied == dict.fromkeys(range(250), 1)
    assert list(record.expected) == [1000, 1001, 1002]
    assert listed(tmp_path) == []


def test_predictions_without_a_place_are_ignored_and_counted(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """A record without pending labels gets the losses only; unknown kinds go nowhere."""
    put(tmp_path, A, 0, 1, 2, 3, kind=[LOSS, PREDICTION, 77])
    record = CountingRecord()
    assert drain(feed, record, clock) == 3
    assert record.applied == {1: 1}
    assert record.expected == {}
    assert feed.counts["rows_applied"] == 1
    assert feed.counts["rows_ignored"] == 2
    assert listed(tmp_path, ".seg") == []


def test_a_loss_record_takes_losses_predictions_versions_and_ages(
    tmp_path: Path, clock: Clock
) -> None:
    """What servers write is found in the record that trainers use, and labels join predictions."""
    time = Clock()
    pending = PendingLabels(100, lambda p, y: np.abs(p - y), ttl_s=60)
    record = LossRecord(100, max_age_s=20, pending=pending, engine="numpy", clock=time)
    time.now_s = NOW_S
    feed = LossFeed(tmp_path, clock=clock, wall_clock=time)
    for number, name in enumerate(["fresh", "old", "stale"]):
        time.now_s = NOW_S - 15 * number
        with LossWriter(tmp_path, version=65_530 + number, clock=time) as writer:
            writer.write([name], np.array([0.5 + number]))
            writer.write_predictions([f"waiting {name}"], np.array([0.25]))
    time.now_s = NOW_S
    assert drain(feed, record, clock) == 6
    known = record.lookup(["fresh", "old", "stale"])
    assert known.losses.tolist() == [0.5, 1.5, 0.0]
    assert known.age_s.tolist() == [0.0, 15.0, math.inf]
    assert sorted(record.items().versions.tolist()) == [65_530, 65_531, 65_532]
    assert record.join(["waiting fresh", "waiting other"], np.ones(2)).tolist() == [True, False]
    assert record.lookup(["waiting fresh"]).losses.tolist() == [0.75]


def test_no_poll_takes_more_than_it_may(tmp_path: Path, feed: LossFeed, clock: Clock) -> None:
    """Large segments are applied in parts, small ones together, each row once and in order."""
    put(tmp_path, A, 0, *range(25))
    for number in range(1, 31):
        put(tmp_path, A, number, 100 + number)
    record = CountingRecord()
    clock.now_s += 1.0
    assert [feed.poll(record, max_rows=10) for _ in range(3)] == [10, 10, 5]
    assert record.cursors == {A: (1, 0)}
    assert drain(feed, record, clock, max_rows=10) == 30
    assert record.calls == 6
    assert list(record.applied) == [*range(25), *range(101, 131)]


def test_writers_take_turns(tmp_path: Path, feed: LossFeed, clock: Clock) -> None:
    """A writer with a long backlog does not hold up another."""
    for number in range(5):
        put(tmp_path, A, number, number)
    put(tmp_path, B, 0, 100)
    put(tmp_path, C, 0, 200)
    record = CountingRecord()
    clock.now_s += 1.0
    for _ in range(3):
        feed.poll(record, max_rows=1)
    assert list(record.applied) == [0, 100, 200]


def test_the_folder_is_listed_no_more_often_than_asked(
    tmp_path: Path, feed: LossFeed, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks a poll with nothing to do asks the clock and nothing else."""
    record = CountingRecord()
    feed.poll(record)
    put(tmp_path, A, 0, 1)
    with monkeypatch.context() as patch:
        patch.delattr(Inbox, "look")
        clock.now_s = 0.999
        assert feed.poll(record) == 0
    clock.now_s = 1.0
    assert feed.poll(record) == 1


def test_a_crowded_folder_is_listed_in_steps(
    tmp_path: Path, feed: LossFeed, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No poll reads more than a part of the names, and none applies before all are known."""
    monkeypatch.setattr(listing, "_STEP_NAMES", 10)
    for number in range(35):
        put(tmp_path, A, number, number)
    record = CountingRecord()
    clock.now_s += 1.0
    assert [feed.poll(record) for _ in range(4)] == [0, 0, 0, 35]
    assert drain(feed, record, clock) == 0


def test_a_backlog_does_not_hide_new_writers(tmp_path: Path, feed: LossFeed, clock: Clock) -> None:
    """The folder is looked at while known segments are left, so that a newcomer has its turn."""
    for number in range(20):
        put(tmp_path, A, number, number)
    record = CountingRecord()
    feed.poll(record, max_rows=1)
    put(tmp_path, B, 0, 100)
    clock.now_s += 1.0
    feed.poll(record, max_rows=1)
    feed.poll(record, max_rows=1)
    assert 100 in record.applied


def test_nothing_is_applied_while_a_snapshot_is_copied(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """Rows, cursors and files stay as they are until the copy is done."""
    path = put(tmp_path, A, 0, 1)
    record = CountingRecord()
    record.copying = True
    assert feed.poll(record) == 0
    assert record.cursors == {}
    assert path.exists()
    record.copying = False
    assert drain(feed, record, clock) == 1


def test_a_copy_that_begins_in_the_middle_of_a_poll_is_respected(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """What was read before the copy began is applied after it."""

    class Copied(CountingRecord):
        looks = 0

        @property
        def copying(self) -> bool:
            self.looks += 1
            return self.looks == 2

        @copying.setter
        def copying(self, _: bool) -> None: ...

    put(tmp_path, A, 0, 1)
    record = Copied()
    clock.now_s += 1.0
    assert feed.poll(record) == 0
    assert record.applied == {}
    assert feed.poll(record) == 1
    assert record.looks == 4


def test_a_kept_record_keeps_segments_until_they_are_saved(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """A segment goes when a snapshot covers all of it, not when it was applied."""
    for number in range(3):
        put(tmp_path, A, number, number, number + 10)
    record = CountingRecord(kept=True)
    drain(feed, record, clock)
    assert len(listed(tmp_path, ".seg")) == 3
    record.saved_cursors = {A: (2, 1)}
    drain(feed, record, clock)
    assert listed(tmp_path, ".seg") == [segment_name(A, 2)]
    record.saved_cursors = {A: (3, 0)}
    drain(feed, record, clock)
    assert listed(tmp_path, ".seg") == []


def test_an_unkept_record_keeps_what_its_states_may_need(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """A segment goes when the last state but one covers it; before any is taken, at once."""
    record = LossRecord(100, engine="numpy")

    def left_after(number: int) -> list[int]:
        put(tmp_path, A, number, number)
        drain(feed, record, clock)
        return [int(name.split(".")[1]) for name in listed(tmp_path, ".seg")]

    assert left_after(0) == []
    record.state_dict()
    assert left_after(1) == [1]
    assert left_after(2) == [1, 2]
    older = record.state_dict()
    assert left_after(3) == [1, 2, 3]
    newer = record.state_dict()
    assert record.state_dict().keys() == newer.keys()  # of the same moment: the same state
    assert left_after(4) == [3, 4]
    record.load_state_dict(older)
    drain(feed, record, clock)
    assert sorted(record.ids().tolist()) == [0, 1, 2, 3, 4]
    assert left_after(5) == [3, 4, 5]


def test_a_state_that_is_loaded_meanwhile_keeps_its_segments(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """What was applied and waits to be removed stays, where the record is set back before it."""
    record = LossRecord(100, engine="numpy")
    state = record.state_dict()
    fresh = LossRecord(100, engine="numpy")
    for number in range(40):
        put(tmp_path, A, number, number)
    feed.poll(fresh)
    fresh.load_state_dict(state)
    drain(feed, fresh, clock)
    assert sorted(fresh.ids().tolist()) == list(range(40))
    assert fresh.items().counts.tolist() == [1] * 40
    assert len(listed(tmp_path, ".seg")) == 40


def test_a_restarted_trainer_goes_on_where_its_snapshot_is(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """Rows that the snapshot holds are not applied again, the others of their segment are."""
    put(tmp_path, A, 0, 0, 1)
    put(tmp_path, A, 1, *range(2, 10))
    record = CountingRecord(kept=True)
    record.cursors = {A: (1, 3)}
    record.saved_cursors = dict(record.cursors)
    assert drain(feed, record, clock) == 5
    assert list(record.applied) == [5, 6, 7, 8, 9]
    assert listed(tmp_path, ".seg") == [segment_name(A, 1)]
    assert feed.counts["segments_missing"] == 0


def test_a_record_that_is_set_back_gets_its_rows_again(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """A state loaded into the record in the middle of a backlog is followed at once."""
    for number in range(6):
        put(tmp_path, A, number, 2 * number, 2 * number + 1)
    record = CountingRecord(kept=True)
    clock.now_s += 1.0
    for _ in range(5):
        feed.poll(record, max_rows=1)
    record.applied.clear()
    record.cursors = {A: (0, 1)}
    drain(feed, record, clock, max_rows=3)
    assert record.applied == dict.fromkeys(range(1, 12), 1)
    assert feed.counts["segments_missing"] == 0


def test_missing_segments_are_counted(tmp_path: Path, feed: LossFeed, clock: Clock) -> None:
    """A gap in a writer's sequence is counted once and passed over; an unknown beginning is not."""
    record = CountingRecord()
    put(tmp_path, A, 5, 5)
    drain(feed, record, clock)
    assert feed.counts["segments_missing"] == 0
    put(tmp_path, A, 9, 9)
    put(tmp_path, A, 11, 11)
    drain(feed, record, clock)
    assert feed.counts["segments_missing"] == 4
    assert list(record.applied) == [5, 9, 11]


def test_a_listing_that_misses_a_file_loses_none(
    tmp_path: Path, feed: LossFeed, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later segment that shows before an earlier one does not make that one missing."""
    hidden = {segment_name(A, 0), segment_name(A, 3)}

    def list_some(folder: Path, listing: Listing) -> Iterator[None]:
        for name in set(os.listdir(folder)) - hidden:
            listing.add(name)
        listing.segments[A].sort()
        hidden.clear()
        if 6 not in listing.segments[A]:
            put(tmp_path, A, 6, 6)  # shows in the second listing without number 5
        yield

    for number in range(5):
        put(tmp_path, A, number, number)
    monkeypatch.setattr(inbox, "list_in_steps", list_some)
    record = CountingRecord()
    for _ in range(3):
        feed.poll(record)
    assert list(record.applied) == [0, 1, 2, 3, 4]
    put(tmp_path, A, 5, 5)
    drain(feed, record, clock)
    assert list(record.applied) == [0, 1, 2, 3, 4, 5, 6]
    assert feed.counts["segments_missing"] == 0


def test_a_segment_that_its_writer_removed_is_missing(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """A file that is gone between the look and the reading is passed over and counted."""
    paths = [put(tmp_path, A, number, number) for number in range(3)]
    record = CountingRecord()
    feed.poll(record, max_rows=1)
    paths[1].unlink()
    drain(feed, record, clock)
    assert list(record.applied) == [0, 2]
    assert feed.counts["segments_missing"] == 1


def test_a_damaged_segment_is_set_aside(tmp_path: Path, feed: LossFeed, clock: Clock) -> None:
    """Not one of its rows is applied, it stays for a look, and those around it are applied."""
    paths = [put(tmp_path, A, number, number, number + 10) for number in range(3)]
    damaged = bytearray(paths[1].read_bytes())
    damaged[-20] ^= 1
    paths[1].write_bytes(damaged)
    record = CountingRecord()
    assert drain(feed, record, clock) == 4
    assert list(record.applied) == [0, 10, 2, 12]
    assert listed(tmp_path) == [f"{segment_name(A, 1)}.damaged"]
    assert feed.counts["segments_damaged"] == 1
    assert feed.counts["segments_missing"] == 0


def test_few_damaged_segments_are_kept(tmp_path: Path, feed: LossFeed, clock: Clock) -> None:
    """Sixteen of them, the newest, however many there were and whoever set them aside."""
    record = CountingRecord()
    for number in range(40):
        put(tmp_path, A, number, number).write_bytes(b"damaged")
        if number % 7 == 0:
            drain(feed, record, clock)
    drain(feed, record, clock)
    assert len(listed(tmp_path, ".damaged")) == 16
    assert feed.counts["segments_damaged"] == 40
    assert f"{segment_name(A, 39)}.damaged" in os.listdir(tmp_path)


def test_a_newer_format_waits_for_a_newer_release(
    tmp_path: Path, feed: LossFeed, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """It and what follows of its writer stays, is counted, and named once; others go on."""
    from tests.test_serving_segment import frame

    newer = frame(1, b"?", version=2, writer=A, number=1)
    put(tmp_path, A, 0, 0)
    (tmp_path / segment_name(A, 1)).write_bytes(newer)
    put(tmp_path, A, 2, 2)
    put(tmp_path, B, 0, 10)
    record = CountingRecord()
    drain(feed, record, clock)
    assert feed.counts["segments_newer"] == 2
    put(tmp_path, A, 3, 3)
    put(tmp_path, B, 1, 11)
    drain(feed, record, clock)
    drain(feed, record, clock)
    assert list(record.applied) == [0, 10, 11]
    assert listed(tmp_path, ".seg") == [segment_name(A, number) for number in (1, 2, 3)]
    assert (tmp_path / segment_name(A, 1)).read_bytes() == newer
    assert feed.counts["segments_newer"] == 3
    assert [record.message.split(" has ")[0] for record in caplog.records] == [
        f"segment {segment_name(A, 1)}"
    ]


def test_files_that_are_not_ours_are_left_alone(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """Odd names, links, folders and pipes neither stop the feed nor are they touched."""
    target = tmp_path / "target"
    target.mkdir()
    for name in (
        *("notes.txt", "a.seg", f"{A}.1.seg", f"{A}.00000000000x.seg", f"{A.upper()}.{0:012d}.seg"),
        *(
            f"{A}.{0:012d}.seg\n",
            f"{A}.{0:012d}.seg.part",
            "ä\udcff.lock",
            f"{A}." + "\u0660" * 12 + ".seg",
        ),
        *("..seg", ".lock", f".{A}.tmp", "\x1b[2J", "x" * 255),
    ):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / segment_name(A, 1)).symlink_to(target)
    (tmp_path / segment_name(A, 2)).mkdir()
    os.mkfifo(tmp_path / segment_name(A, 3))
    (tmp_path / f"{B}.lock").symlink_to(target)
    before = sorted(os.listdir(tmp_path))
    put(tmp_path, C, 0, 1)
    record = CountingRecord()
    assert drain(feed, record, clock) == 1
    assert sorted(os.listdir(tmp_path)) == before
    assert feed.counts["segments_damaged"] == 0


def test_what_becomes_a_link_after_the_look_is_not_read(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """A segment's place taken by a link or a pipe in the last moment does no harm."""
    put(tmp_path, A, 0, 0)
    link, pipe = put(tmp_path, A, 1, 1), put(tmp_path, B, 0, 2)
    record = CountingRecord()
    feed.poll(record, max_rows=1)
    elsewhere = put(tmp_path / ".." / tmp_path.name, C, 7, 666).rename(tmp_path / "elsewhere")
    link.unlink()
    link.symlink_to(elsewhere)
    pipe.unlink()
    os.mkfifo(pipe)
    put(tmp_path, A, 2, 3)
    drain(feed, record, clock)
    assert sorted(record.applied) == [0, 3]
    assert elsewhere.exists()


def test_what_dead_writers_left_is_removed(tmp_path: Path, feed: LossFeed, clock: Clock) -> None:
    """Lock and beginnings of a killed writer go, its segments count; a living one keeps all."""
    record = CountingRecord()
    (tmp_path / f"{A}.lock").touch()
    (tmp_path / temporary_name(A, 1)).write_bytes(b"beginning")
    (tmp_path / temporary_name(B, 0)).write_bytes(b"beginning")
    put(tmp_path, A, 0, 1)
    with LossWriter(tmp_path) as living:
        living.write(np.array([2]), np.array([0.5]))
        living.publish()
        name = listed(tmp_path, ".seg")[0 if listed(tmp_path, ".seg")[0][:16] != A else 1][:16]
        (tmp_path / temporary_name(name, 1)).write_bytes(b"being written")
        drain(feed, record, clock)
        assert sorted(record.applied) == [1, 2]
        assert listed(tmp_path) == sorted([temporary_name(name, 1), f"{name}.lock"])


def test_a_writer_whose_lock_was_removed_shows_it_again(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """Whoever cleans up too much takes nothing from a living writer for long."""
    with LossWriter(tmp_path) as writer:
        writer.write(np.array([1]), np.array([0.5]))
        writer.publish()
        (tmp_path / listed(tmp_path, ".lock")[0]).unlink()
        writer.write(np.array([2]), np.array([0.5]))
        assert writer.publish()
        assert len(listed(tmp_path, ".lock")) == 1
        record = CountingRecord()
        drain(feed, record, clock)
        assert len(listed(tmp_path, ".lock")) == 1
    assert sorted(record.applied) == [1, 2]


def test_cursors_of_gone_writers_do_not_pile_up(
    tmp_path: Path, feed: LossFeed, clock: Clock
) -> None:
    """Of 1,200 writers that came and went, a bounded number is remembered, the latest."""
    record = CountingRecord()
    for number in range(12):
        for one in range(100):
            put(tmp_path, f"{number * 100 + one:016x}", 0, one)
        drain(feed, record, clock)
    while listed(tmp_path, ".seg"):
        feed.poll(record)
    clock.now_s += 1.0
    feed.poll(record)
    assert len(record.cursors) == 1024
    assert f"{1199:016x}" in record.cursors
    assert feed.counts["rows_applied"] == 1_200


def test_a_folder_that_is_gone_is_waited_for(tmp_path: Path, clock: Clock) -> None:
    """Without the folder a poll does nothing, and with it everything goes on, nothing twice."""
    feed = LossFeed(tmp_path / "folder", clock=clock)
    record = CountingRecord(kept=True)
    put(tmp_path / "folder", A, 0, 1)
    drain(feed, record, clock)
    (tmp_path / "folder").rename(tmp_path / "away")
    assert drain(feed, record, clock) == 0
    assert feed.counts["failures"] > 0
    (tmp_path / "folder").mkdir()
    assert drain(feed, record, clock) == 0
    shutil.rmtree(tmp_path / "folder")
    (tmp_path / "away").rename(tmp_path / "folder")
    put(tmp_path / "folder", A, 1, 2)
    drain(feed, record, clock)
    assert record.applied == {1: 1, 2: 1}


def test_a_segment_that_may_not_be_opened_waits(
    tmp_path: Path, feed: LossFeed, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files or a missing permission is counted, not taken for damage."""
    put(tmp_path, A, 0, 1)
    put(tmp_path, B, 0, 2)
    record = CountingRecord()
    refused = os.open

    def refuse(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if str(path).endswith(segment_name(A, 0)):
            raise PermissionError(13, "Permission denied")
        return refused(path, flags, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        feed.poll(record)
    assert list(record.applied) == [2]
    assert feed.counts["failures"] == 1
    drain(feed, record, clock)
    assert sorted(record.applied) == [1, 2]


@pytest.mark.parametrize("names", [0, 25])
def test_a_record_that_raises_loses_nothing(
    tmp_path: Path, feed: LossFeed, clock: Clock, monkeypatch: pytest.MonkeyPatch, names: int
) -> None:
    """What failed is applied and counted later, once, however long the folder takes to list."""

    class Failing(CountingRecord):
        fails = True

        def update(self, *arguments: Any, **named: Any) -> None:
            if self.fails:
                raise KeyboardInterrupt
            super().update(*arguments, **named)

    monkeypatch.setattr(listing, "_STEP_NAMES", 10)
    for number in range(names):
        (tmp_path / f"note{number}").touch()
    paths = [put(tmp_path, A, number, number) for number in (1, 2, 4)]
    record = Failing()
    record.cursors = {A: (1, 0)}
    clock.now_s += 1.0
    for _ in range(10):
        with contextlib.suppress(KeyboardInterrupt):
            feed.poll(record)
    assert record.cursors == {A: (1, 0)}
    assert all(path.exists() for path in paths)
    assert feed.counts["segments_applied"] == feed.counts["segments_missing"] == 0
    record.fails = False
    drain(feed, record, clock)
    assert record.applied == {1: 1, 2: 1, 4: 1}
    assert feed.counts["segments_applied"] == 3
    assert feed.counts["segments_missing"] == 1
    assert listed(tmp_path, ".seg") == []


@pytest.mark.parametrize("method", ["update", "expect"])
def test_losses_and_predictions_are_applied_together(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A record that takes one kind and fails at the other has each row once in the end."""
    put(tmp_path, A, 0, 1, 2, 3, 4, kind=[LOSS, PREDICTION, LOSS, PREDICTION], second=9_990)
    pending = PendingLabels(100, lambda p, y: np.abs(p - y), ttl_s=60)
    record = LossRecord(100, pending=pending, engine="numpy", clock=lambda: NOW_S)
    feed = LossFeed(tmp_path, clock=clock, wall_clock=lambda: NOW_S)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(record, method, fail)
        for _ in range(3):
            with pytest.raises(MemoryError):
                feed.poll(record)
        assert len(record) == 0
        assert record.cursors == {}
    drain(feed, record, clock)
    assert record.items().counts.tolist() == [1, 1]
    assert sorted(record.items().ids.tolist()) == [1, 3]
    assert len(pending) == 2
    assert feed.counts["rows_applied"] == 4


def test_wrong_arguments_are_named(tmp_path: Path, feed: LossFeed) -> None:
    """What cannot be a time or a number of rows is refused."""
    with pytest.raises(ValueError, match=r"poll_every_s must be .* got -1"):
        LossFeed(tmp_path, poll_every_s=-1)
    with pytest.raises(TypeError, match="poll_every_s must be a number, got str"):
        LossFeed(tmp_path, poll_every_s="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="clock must return seconds"):
        LossFeed(tmp_path, clock=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_rows must be positive, got 0"):
        feed.poll(CountingRecord(), 0)
    with pytest.raises(TypeError, match="max_rows must be an integer, got float"):
        feed.poll(CountingRecord(), 1.5)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match="is no folder, nor can it be made one: pass"):
            LossFeed(folder)


def test_a_feed_that_applied_nothing_has_no_age(feed: LossFeed) -> None:
    """Before the first row there is no newest one."""
    assert feed.newest_age_s == math.inf


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_history_applies_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever is published, polled, saved and killed in whatever order: each row counts once."""
    folder = tmp_path_factory.mktemp("h")
    state, clock = folder / "state", Clock()
    serving = folder / "serving"
    record, feed = CountingRecord.load(state), LossFeed(serving, clock=clock)
    next_id, numbers = 0, {A: 0, B: 0}
    for step in data.draw(st.lists(st.sampled_from("abppsk"), max_size=40)):
        match step:
            case "a" | "b":
                writer = A if step == "a" else B
                n = data.draw(st.integers(1, 5))
                put(serving, writer, numbers[writer], *range(next_id, next_id + n))
                next_id, numbers[writer] = next_id + n, numbers[writer] + 1
            case "p":
                clock.now_s += data.draw(st.sampled_from([0.0, 1.0]))
                feed.poll(record, data.draw(st.integers(1, 7)))
            case "s":
                record.save(state)
            case _:
                feed.close()  # as if it were dead
                record, feed = CountingRecord.load(state), LossFeed(serving, clock=clock)
    drain(feed, record, clock)
    assert record.applied == dict.fromkeys(range(next_id), 1)
    record.save(state)
    drain(feed, record, clock)
    assert listed(serving, ".seg") == []


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_history_of_states_applies_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A record that goes on from the newest state on disk has each row once, saved when it may."""
    serving, clock = tmp_path_factory.mktemp("s"), Clock()
    feed = LossFeed(serving, clock=clock)
    record = LossRecord(1000, engine="numpy", clock=clock)
    on_disk = taken = record.state_dict()
    next_id, numbers = 0, {A: 0, B: 0}
    for step in data.draw(st.lists(st.sampled_from("abpptsk"), min_size=15, max_size=40)):
        match step:
            case "a" | "b":
                writer = A if step == "a" else B
                n = data.draw(st.integers(1, 5))
                put(serving, writer, numbers[writer], *range(next_id, next_id + n))
                next_id, numbers[writer] = next_id + n, numbers[writer] + 1
            case "p":
                clock.now_s += 1.0
                feed.poll(record, data.draw(st.integers(1, 7)))
            case "t":
                on_disk = taken
                taken = record.state_dict()
            case "s":
                on_disk = taken
            case _:
                feed.close()  # as if it were dead
                record = LossRecord(1000, engine="numpy", clock=clock)
                record.load_state_dict(taken := on_disk)
                feed = LossFeed(serving, clock=clock)
    drain(feed, record, clock)
    assert sorted(record.ids().tolist()) == list(range(next_id))
    assert set(record.items().counts.tolist()) <= {1}
    assert feed.counts["segments_missing"] == 0


def test_rows_may_come_while_the_feed_drains(tmp_path: Path) -> None:
    """A writer in another thread at full speed: every row that it kept arrives, once."""
    record = CountingRecord()
    done = threading.Event()

    def serve() -> None:
        with LossWriter(tmp_path, segment_rows=64, publish_every_s=0.001) as writer:
            for first in range(0, 4_000, 20):
                writer.write(np.arange(first, first + 20), np.ones(20, np.float32))
                if first % 200 == 0:
                    writer.publish()
            counts.update(writer.counts)
        done.set()

    counts: dict[str, int] = {}
    feed = LossFeed(tmp_path, poll_every_s=0.0)
    thread = threading.Thread(target=serve)
    thread.start()
    while not done.is_set() or feed.backlog_segments or listed(tmp_path, ".seg"):
        feed.poll(record)
    thread.join()
    assert record.applied.total() == len(record.applied) == counts["rows_written"]
    assert feed.counts["segments_missing"] == 0


def test_a_closed_feed_takes_nothing(tmp_path: Path) -> None:
    """Rows are for the feed that has the folder now."""
    put(tmp_path, A, 0, 1)
    closed = LossFeed(tmp_path)
    closed.close()
    record = CountingRecord()
    with pytest.raises(RecordError, match=r"this feed of .* is closed: make another"):
        closed.poll(record)
    assert record.applied == {}
    with contextlib.closing(LossFeed(tmp_path)) as feed:
        assert feed.poll(record) == 1


def test_a_forked_child_does_not_drain(tmp_path: Path) -> None:
    """The folder belongs to the parent, and two would each get a part of the losses."""
    put(tmp_path, A, 0, 1)
    feed = LossFeed(tmp_path)
    child = os.fork()
    if child == 0:
        try:
            feed.poll(CountingRecord())
        except RecordError:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert feed.poll(CountingRecord()) == 1


def test_a_folder_has_one_feed(tmp_path: Path) -> None:
    """Two trainers, or two ranks with one path, would each get a part of the losses."""
    feed = LossFeed(tmp_path)
    with pytest.raises(
        RecordError, match=r"serving folder .* has an owner already, this process: close the other"
    ):
        LossFeed(tmp_path)
    feed.close()
    second = LossFeed(tmp_path)
    del second
    LossFeed(tmp_path).close()
