"""What a feed makes of segments and folders that are not as they should be."""

import contextlib
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adasel_stream.record import LossRecord
from adasel_stream.record.pending import PendingLabels
from adasel_stream.serving import LossFeed, LossWriter, inbox, listing
from adasel_stream.serving.listing import Listing
from adasel_stream.serving.names import segment_name, temporary_name
from adasel_stream.serving.segment import LOSS, PREDICTION
from tests.served_records import CountingRecord, listed
from tests.serving_feeds import NOW_S, A, B, C, Clock, drain, put


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
