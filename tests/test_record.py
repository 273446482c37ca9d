"""The loss record: its size, which ids it keeps, and what it answers of them."""

import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from adasel_stream.record import LossRecord
from tests.record_model import LARGEST, Clock, computing_with, floats, ints, same_bucket


@pytest.fixture(autouse=True, scope="module", params=["numpy", "numba"])
def every_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test of this module with both engines."""
    with computing_with(request.param):
        yield


def test_a_record_takes_24_bytes_a_slot_and_never_grows() -> None:
    """Memory is taken at construction; a hundred times as many ids do not add to it."""
    LossRecord(1).update(ints(1), floats(1))  # whatever the engine needs, once
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        record = LossRecord(20_000)
        taken = tracemalloc.get_traced_memory()[0] - before
        for start in range(0, 2_000_000, 50_000):
            record.update(np.arange(start, start + 50_000), np.ones(50_000, np.float32))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert record.record_bytes == 24 * record.capacity == 480_000
    assert taken < 480_000 + 10_000
    assert grown < 480_000 + 10_000
    assert len(record) <= record.capacity


def test_the_keys_of_a_bucket_share_one_cache_line() -> None:
    """Both planes begin on a 64-byte boundary."""
    for capacity in (1, 100, 12_345, 200_000):
        table = LossRecord(capacity)._table
        assert table.keys.ctypes.data % 64 == 0
        assert table.values.ctypes.data % 64 == 0


@pytest.mark.parametrize(("asked", "given_"), [(1, 16), (16, 16), (17, 24), (1001, 1008)])
def test_capacity_is_rounded_up_to_whole_buckets(asked: int, given_: int) -> None:
    """A record has at least the slots that were asked for."""
    assert LossRecord(asked).capacity == given_


def test_most_ids_stay_when_there_are_slots_to_spare() -> None:
    """At load 0.8 over 93% of the ids are kept, at load 2/3 over 96%: chance, not clustering."""
    for seed in (0, 1):
        for slack, kept in ((1.25, 0.925), (1.5, 0.96)):
            record = LossRecord(int(50_000 * slack), seed=seed)
            record.update(np.arange(50_000), np.ones(50_000, np.float32))
            assert len(record) > kept * 50_000


def test_the_oldest_of_a_full_bucket_makes_room() -> None:
    """The id not updated for longest goes; an update, not a lookup, makes an id young."""
    clock = Clock()
    record = LossRecord(80, clock=clock)
    ids = same_bucket(10, buckets=10)
    for id_ in ids[:8]:
        clock.now_s += 1
        record.update(ints(id_), floats(id_))
    clock.now_s += 1
    record.update(ints(ids[0]), floats(0.5))
    record.lookup(ints(ids[1]))

    record.update(ints(ids[8]), floats(8))
    assert record.lookup(ints(*ids)).known.tolist() == [True, False] + [True] * 7 + [False]
    record.update(ints(ids[9]), floats(9))
    assert record.lookup(ints(*ids)).known.tolist() == [True, False, False] + [True] * 7
    assert record.counts["evicted"] == 2
    assert len(record) == 8


def test_a_burst_within_one_second_does_not_replace_the_same_slot_each_time() -> None:
    """Where all are equally old, newcomers do not all push out the newcomer before them."""
    record = LossRecord(80, clock=Clock())
    ids = same_bucket(24, buckets=10)
    for id_ in ids:
        record.update(ints(id_), floats(1))
    assert record.lookup(ints(*ids[:8])).known.sum() <= 4


def test_newcomers_beyond_the_ways_of_a_bucket_are_dropped_and_counted() -> None:
    """One batch with twelve new ids of one bucket keeps eight of them."""
    record = LossRecord(80)
    ids = ints(*same_bucket(12, buckets=10))
    record.update(ids, np.arange(12, dtype=np.float32))
    known = record.lookup(ids)
    assert known.known.sum() == len(record) == 8
    assert known.losses[known.known].tolist() == np.flatnonzero(known.known).tolist()
    assert record.counts["dropped"] == 4
    assert record.counts["evicted"] == 0


def test_the_first_loss_begins_the_average() -> None:
    """An average is not pulled towards 0."""
    record = LossRecord(10, decay=0.75)
    record.update(ints(1), floats(4))
    assert record.lookup(ints(1)).ema.tolist() == [4]
    record.update(ints(1), floats(8))
    assert record.lookup(ints(1)).ema.tolist() == [5]
    assert record.lookup(ints(1)).losses.tolist() == [8]


def test_duplicates_weigh_as_many_losses_and_count_as_many() -> None:
    """Three losses of one id leave decay**3 of the old average; the last loss is their mean."""
    record = LossRecord(10, decay=0.5)
    record.update(ints(1), floats(8))
    record.update(ints(1, 1, 1, 2), floats(1, 2, 3, 7))
    known, items = record.lookup(ints(1, 2)), record.items()
    assert known.losses.tolist() == [2, 7]
    assert known.ema.tolist() == [2 + (8 - 2) / 8, 7]
    assert dict(zip(items.ids.tolist(), items.counts.tolist(), strict=True)) == {1: 4, 2: 1}


def test_counts_saturate() -> None:
    """A count stops at 65,535 instead of starting over."""
    record = LossRecord(10)
    for _ in range(2):
        record.update(np.zeros(65_534, np.int64), np.ones(65_534, np.float32))
        record.update(ints(0), floats(1))
    assert record.items().counts.tolist() == [65_535]


def test_versions_wrap() -> None:
    """A model version is kept modulo 65,536, the last one for each id."""
    record = LossRecord(10)
    record.update(ints(1), floats(1), version=5)
    record.update(ints(1), floats(1), version=65_536 + 3)
    assert record.items().versions.tolist() == [3]


def test_losses_that_are_not_finite_are_rejected_and_counted() -> None:
    """NaN, infinities and numbers beyond float32 leave no trace but a count."""
    record = LossRecord(10)
    record.update(ints(1, 2), floats(1, 2))
    record.update(ints(1, 2, 3, 4, 1), np.array([np.nan, np.inf, -np.inf, 1e300, 3.0]))
    known = record.lookup(ints(1, 2, 3, 4))
    assert known.losses.tolist() == [3, 2, 0, 0]
    assert known.known.tolist() == [True, True, False, False]
    assert record.counts["rejected"] == 4
    record.update(ints(9), floats(np.nan))
    assert len(record) == 2


def test_extreme_losses_keep_the_average_finite() -> None:
    """The largest float32 of both signs, alone and averaged, never become infinite."""
    record = LossRecord(10, decay=0.9)
    for loss in (LARGEST, -LARGEST, LARGEST, LARGEST):
        record.update(ints(1, 1), floats(loss, loss))
        assert np.isfinite(record.lookup(ints(1)).ema).all()
    record.update(ints(2, 3), floats(-1e-45, -0.0))
    assert record.lookup(ints(2, 3)).losses.tolist() == floats(-1e-45, -0.0).tolist()


def test_stale_losses_are_unknown() -> None:
    """A loss older than max_age_s is counted as stale, and an update makes it known again."""
    clock = Clock()
    record = LossRecord(10, max_age_s=10, clock=clock)
    record.update(ints(1, 2), floats(1, 2))
    clock.now_s += 10
    assert record.lookup(ints(1)).known.tolist() == [True]
    clock.now_s += 1
    record.update(ints(2), floats(3))
    known = record.lookup(ints(1, 2, 3))
    assert known.known.tolist() == [False, True, False]
    assert known.losses.tolist() == [0, 3, 0]
    assert known.age_s.tolist() == [np.inf, 0, np.inf]
    assert known.ema[0] == 0
    counts = record.counts
    assert (counts["hits"], counts["stale"], counts["misses"]) == (2, 1, 1)


def test_ages_are_the_seconds_since_the_last_update() -> None:
    """An age grows with the clock and starts over at an update."""
    clock = Clock()
    record = LossRecord(10, clock=clock)
    record.update(ints(1), floats(1))
    clock.now_s += 3_600.5
    assert record.lookup(ints(1)).age_s.tolist() == [3_600]
    record.update(ints(1), floats(1))
    assert record.lookup(ints(1)).age_s.tolist() == [0]


def test_a_clock_that_jumps_back_breaks_nothing() -> None:
    """Ages never wrap or become negative, and time goes on from the earlier reading."""
    clock = Clock()
    record = LossRecord(80, clock=clock, max_age_s=100)
    record.update(ints(1), floats(1))
    clock.now_s -= 900
    record.update(ints(2), floats(2))
    assert record.lookup(ints(1, 2)).age_s.tolist() == [0, 0]
    clock.now_s += 7
    assert record.lookup(ints(1, 2)).age_s.tolist() == [7, 7]


def test_a_clock_that_jumps_far_ahead_breaks_nothing() -> None:
    """After a thousand years the record still answers and takes losses."""
    clock = Clock()
    record = LossRecord(80, clock=clock)
    record.update(ints(1), floats(1))
    clock.now_s += 3.2e10
    record.update(ints(2), floats(2))
    clock.now_s += 5
    known = record.lookup(ints(1, 2))
    assert known.losses.tolist() == [1, 2]
    assert known.age_s[0] > 4.2e9


def test_hits_misses_and_stale_add_up_to_the_rows_looked_up() -> None:
    """Every row that was looked up is counted once, duplicates included."""
    record = LossRecord(100)
    record.update(ints(*range(10)), np.ones(10, np.float32))
    record.lookup(ints(1, 1, 2, 50))
    record.lookup(ints())
    assert record.counts == {
        "hits": 3,
        "misses": 1,
        "stale": 0,
        "stale_version": 0,
        "evicted": 0,
        "dropped": 0,
        "rejected": 0,
    }


def test_threads_share_a_record() -> None:
    """Rows of several threads are all counted, and calls under one lock stay together."""
    record = LossRecord(4_000)

    def work(first: int) -> None:
        for number in range(100):
            ids = np.arange(first, first + 500)
            with record.lock:
                record.update(ids, np.full(500, number, np.float32))
                assert set(record.lookup(ids).losses.tolist()) <= {0.0, float(number)}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, (0, 0, 250, 250)))
    assert sum(record.counts[name] for name in ("hits", "misses")) == 4 * 100 * 500
    assert record.items().counts.sum() == 4 * 100 * 500
