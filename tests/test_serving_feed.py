"""A feed applies what was published, once, and nothing else."""

import math
from pathlib import Path

import numpy as np
import pytest

from adasel_stream.record import LossRecord
from adasel_stream.record.pending import PendingLabels
from adasel_stream.serving import LossFeed, LossWriter, listing
from adasel_stream.serving.inbox import Inbox
from adasel_stream.serving.names import segment_name
from adasel_stream.serving.segment import LOSS, PREDICTION
from tests.served_records import CountingRecord, listed
from tests.serving_feeds import NOW_S, A, B, C, Clock, drain, put


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
