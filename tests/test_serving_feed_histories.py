"""Whatever happens in whatever order, a feed applies each row once."""

import contextlib
import os
import threading
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord
from adasel_stream.serving import LossFeed, LossWriter
from tests.served_records import CountingRecord, listed
from tests.serving_feeds import A, B, Clock, drain, put


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
