"""Rows that a record gives away and takes in: the newest of each bucket stay."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord
from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.ticks import FIRST_TICK
from tests.record_model import Clock, bucket_first, bucket_of, floats, ints, key_of, same_bucket

_NOW = FIRST_TICK + 899


def rows_of(rows: list[tuple[int, int, float]], seed: int = 0) -> Entries:
    """Return entries from (id, tick, loss)."""
    values = np.zeros(len(rows), VALUE)
    values["tick"] = [tick for _, tick, _ in rows]
    values["last"] = values["ema"] = [loss for _, _, loss in rows]
    values["count"] = 1
    return Entries(np.array([key_of(id_, seed) for id_, _, _ in rows], np.uint64), values)


def old_record(capacity: int) -> LossRecord:
    """Return an empty record whose time has gone on for 899 seconds."""
    clock = Clock()
    record = LossRecord(capacity, clock=clock)
    clock.now_s += _NOW - FIRST_TICK
    assert record.tick == _NOW
    return record


def held(record: LossRecord) -> dict[int, bytes]:
    """Return the value of each key."""
    entries = record.entries(0, record.capacity)
    assert len(entries.keys) == len(record)
    return {
        int(key): value.tobytes() for key, value in zip(entries.keys, entries.values, strict=True)
    }


def expected(rows: list[tuple[int, int, float]], buckets: int) -> dict[int, tuple[int, float]]:
    """Return what must stay of rows, in plain Python: (tick, loss) by key."""
    newest: dict[int, tuple[int, float]] = {}
    for id_, tick, loss in rows:
        key = key_of(id_, 0)
        if key not in newest or tick >= newest[key][0]:
            newest[key] = (tick, loss)
    kept: dict[int, tuple[int, float]] = {}
    for bucket in range(buckets):
        keys = [key for key in newest if bucket_of(key, buckets) == bucket]
        keys.sort(key=lambda key: (-newest[key][0], bucket_first(key)))
        kept |= {key: newest[key] for key in keys[:8]}
    return kept


_rows = st.lists(
    st.tuples(
        st.integers(0, 60), st.integers(1, 6), st.integers(-40, 40).map(lambda eighth: eighth / 8)
    ),
    max_size=80,
)


@settings(deadline=None, max_examples=150)
@given(rows=_rows, cuts=st.lists(st.integers(0, 80), max_size=4), buckets=st.integers(2, 5))
def test_the_newest_of_each_bucket_stay(
    rows: list[tuple[int, int, float]], cuts: list[int], buckets: int
) -> None:
    """In however many batches rows come, the eight newest of a bucket are there in the end."""
    record = old_record(buckets * 8)
    edges = [0, *sorted(cuts), len(rows)]
    for start, stop in pairwise(edges):
        record.place(rows_of(rows[start:stop]))
    assert held(record) == {
        key: np.array([(loss, loss, tick, 1, 0)], VALUE).tobytes()
        for key, (tick, loss) in expected(rows, buckets).items()
    }


@settings(deadline=None, max_examples=100)
@given(rows=_rows, shuffle=st.randoms(use_true_random=False), cut=st.integers(0, 80))
def test_the_order_of_batches_does_not_matter(
    rows: list[tuple[int, int, float]], shuffle: Any, cut: int
) -> None:
    """Where no two rows have the same key and tick, any order gives the same contents."""
    rows = list({(id_, tick): (id_, tick, loss) for id_, tick, loss in rows}.values())
    shuffled = list(rows)
    shuffle.shuffle(shuffled)
    one, other = old_record(24), old_record(24)
    one.place(rows_of(rows))
    for part in (shuffled[:cut], shuffled[cut:]):
        other.place(rows_of(part))
    assert held(one) == held(other)


def test_the_rows_kept_are_counted() -> None:
    """A row that met a newer one, or found eight newer ones in its bucket, is not kept."""
    record = old_record(80)
    ids = same_bucket(11, buckets=10)
    assert record.place(rows_of([(id_, 5, 1.0) for id_ in ids[:8]])) == 8
    assert record.place(rows_of([(ids[0], 4, 2.0), (ids[1], 6, 2.0)])) == 1
    assert record.place(rows_of([(ids[8], 4, 3.0), (ids[9], 7, 3.0), (ids[10], 3, 3.0)])) == 1
    assert record.place(rows_of([])) == 0
    assert len(record) == 8
    losses = record.lookup(ints(ids[0], ids[1], ids[8], ids[9], ids[10])).losses
    assert losses[1:].tolist() == [2, 0, 3, 0]


@pytest.mark.parametrize("capacity", [400, 800, 1600])
def test_rows_move_to_a_record_of_another_size(capacity: int) -> None:
    """As large or larger keeps all rows; the age and the average of each go with it."""
    clock = Clock()
    source = LossRecord(400, clock=clock)
    for start in range(0, 260, 20):
        clock.now_s += 1
        source.update(np.arange(start, start + 20), np.linspace(0, 1, 20))
    target = LossRecord(capacity, clock=clock)
    target.load_position(source.position())
    slices = [source.entries(start, start + 64) for start in range(0, 400, 64)]
    assert sum(target.place(part) for part in reversed(slices)) == len(source) == len(target)
    assert held(target) == held(source)
    for mine, theirs in zip(source.lookup(source.ids()), target.lookup(source.ids()), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_smaller_record_keeps_the_newest_rows() -> None:
    """At half the slots nearly all of the newest half are there, and few of the others."""
    clock = Clock()
    source, target = LossRecord(16_000, clock=clock), LossRecord(8_000, clock=clock)
    for start in range(0, 10_000, 100):
        clock.now_s += 1
        source.update(np.arange(start, start + 100), np.ones(100, np.float32))
    target.load_position(source.position())
    target.place(source.entries(0, source.capacity))
    known = target.lookup(np.arange(10_000)).known
    assert known[5_000:].mean() > 0.93
    assert known[:5_000].mean() < 0.6


def test_entries_since_a_tick_are_the_rows_that_changed() -> None:
    """A row updated at the asked tick is there, one updated a second before is not."""
    clock = Clock()
    record = LossRecord(100, clock=clock)
    record.update(ints(1, 2), floats(1, 2))
    clock.now_s += 5
    record.update(ints(2, 3), floats(3, 4))
    since = record.tick
    assert since == FIRST_TICK + 5
    changed = record.entries(0, record.capacity, since_tick=since).values["last"]
    assert sorted(changed.tolist()) == [3, 4]
    assert len(record.entries(0, record.capacity).keys) == 3
    assert len(record.entries(0, 0).keys) == 0


def test_entries_are_copies() -> None:
    """Later updates do not reach into rows that were given away."""
    record = LossRecord(100)
    record.update(ints(1), floats(1))
    entries = record.entries(0, record.capacity)
    record.update(ints(1), floats(5))
    assert entries.values["last"].tolist() == [1]


def _damaged(name: str, value: float) -> Entries:
    entries = rows_of([(1, 1, 1.0), (2, 1, 1.0)])
    entries.values[name][1] = value
    return entries


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (_damaged("tick", 0), "a row has tick 0"),
        (_damaged("tick", _NOW + 1), "a row is younger than the record"),
        (_damaged("ema", np.nan), "an average is not finite"),
        (_damaged("last", np.inf), "a loss is not finite"),
        (Entries(np.zeros(1, np.uint64), np.zeros(2, VALUE)), r"shape \(1,\) and .* \(2,\)"),
        (Entries(np.zeros(1, np.int64), np.zeros(1, VALUE)), "got int64"),
    ],
)
def test_damaged_entries_are_refused(entries: Entries, message: str) -> None:
    """The message names what is wrong, and no row was placed."""
    record = old_record(100)
    with pytest.raises(RecordError, match=message):
        record.place(entries)
    assert len(record) == 0


def test_cursors_are_part_of_the_state() -> None:
    """How far each writer's segments were applied is restored with the rows."""
    record, resumed = LossRecord(100), LossRecord(100)
    record.cursors["server-1"] = (3, 128)
    resumed.load_state_dict(record.state_dict())
    assert resumed.cursors == {"server-1": (3, 128)}
    resumed.cursors["server-1"] = (4, 0)
    assert record.cursors == {"server-1": (3, 128)}


@pytest.mark.parametrize("cursor", [(1,), (1, -1), ("1", 1), 7, [1, 2.0]])
def test_a_damaged_cursor_is_refused(cursor: npt.ArrayLike) -> None:
    """A cursor is a pair of whole numbers; the record is then as before."""
    record = LossRecord(100)
    record.update(ints(1), floats(1))
    state = LossRecord(100).state_dict() | {"cursors": {"server-1": cursor}}
    with pytest.raises(RecordError, match="a cursor is no pair of whole numbers"):
        record.load_state_dict(state)
    assert (len(record), record.cursors) == (1, {})
