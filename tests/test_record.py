"""The loss record: against a model in plain Python, and its promises one by one."""

import tracemalloc
from collections.abc import Callable
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord
from adasel_stream.record.keys import ids_of_keys, instance_ids, keys_of_ids, keys_of_strings

_WORD = 2**64
_LIMITS = np.iinfo(np.int64)
_LARGEST = float(np.finfo(np.float32).max)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """Return the set time."""
        return self.now_s


class Row(TypedDict):
    """What the model keeps of one id."""

    key: int
    ema: float
    last: float
    tick: int
    count: int
    version: int


def key_of(id_: int, seed: int) -> int:
    """Mix an id as the record documents it, in plain integers."""
    return _finalise((id_ % _WORD) ^ _finalise((seed + 0x9E3779B97F4A7C15) % _WORD))


def _finalise(bits: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = (bits ^ (bits >> 33)) * factor % _WORD
    return bits ^ (bits >> 33)


def bucket_of(key: int, buckets: int) -> int:
    """Return the bucket from the 32 bits after the top 10."""
    return (key >> 22) % 2**32 * buckets >> 32


class Model:
    """A record as a dict of buckets, one row after the other."""

    def __init__(self, buckets: int, decay: float, seed: int) -> None:
        self.buckets: dict[int, list[Row | None]] = {b: [None] * 8 for b in range(buckets)}
        self.decay, self.seed, self.tick = decay, seed, 1
        self.evicted = self.dropped = self.rejected = 0

    def way(self, key: int) -> tuple[list[Row | None], int | None]:
        """Return a key's bucket and where in it the key is."""
        bucket = self.buckets[bucket_of(key, len(self.buckets))]
        ways = [way for way, row in enumerate(bucket) if row is not None and row["key"] == key]
        return bucket, ways[0] if ways else None

    def update(self, ids: list[int], losses: list[float], version: int) -> None:
        """Record a batch."""
        groups: dict[int, list[float]] = {}
        for id_, loss in zip(ids, losses, strict=True):
            if abs(loss) <= _LARGEST:
                groups.setdefault(key_of(id_, self.seed), []).append(float(np.float32(loss)))
            else:
                self.rejected += 1
        new: dict[int, list[int]] = {}
        for key in sorted(groups, key=lambda key: (key << 10) % _WORD | key >> 54):
            bucket, way = self.way(key)
            if way is None:
                new.setdefault(bucket_of(key, len(self.buckets)), []).append(key)
            else:
                old = bucket[way]
                assert old is not None
                bucket[way] = self._row(key, groups[key], version, old)
        for number, keys in new.items():
            bucket = self.buckets[number]
            turn = keys[0] % 8
            ages = [(row["tick"] if row else 0, way ^ turn) for way, row in enumerate(bucket)]
            for key, (tick, turned) in zip(keys, sorted(ages), strict=False):
                bucket[turned ^ turn] = self._row(key, groups[key], version, None)
                self.evicted += tick > 0
            self.dropped += max(0, len(keys) - 8)

    def _row(self, key: int, losses: list[float], version: int, old: Row | None) -> Row:
        mean = sum(sorted(losses)) / len(losses)
        ema = mean if old is None else mean + self.decay ** len(losses) * (old["ema"] - mean)
        return Row(
            key=key,
            ema=float(np.float32(ema)),
            last=float(np.float32(mean)),
            tick=self.tick,
            count=min(65535, len(losses) + (old["count"] if old else 0)),
            version=version % 65536,
        )

    def columns(self) -> dict[str, list[Any]]:
        """Return the slots in use and their rows, as `state_dict` lists them."""
        rows = [row for number in sorted(self.buckets) for row in self.buckets[number]]
        columns: dict[str, list[Any]] = {"used": [row is not None for row in rows]}
        held = [row for row in rows if row is not None]
        columns["keys"] = [row["key"] for row in held]
        for name in ("ema", "last", "tick", "count", "version"):
            columns[name] = [row[name] for row in held]
        return columns


def ints(*ids: int) -> npt.NDArray[np.int64]:
    """Return an array of ids."""
    return np.array(ids, np.int64)


def floats(*losses: float) -> npt.NDArray[np.float32]:
    """Return an array of losses."""
    return np.array(losses, np.float32)


def same_bucket(count: int, buckets: int, seed: int = 0) -> list[int]:
    """Return ids that share bucket 0."""
    ids = (id_ for id_ in range(10**6) if bucket_of(key_of(id_, seed), buckets) == 0)
    return [next(ids) for _ in range(count)]


def assert_same_state(one: LossRecord, other: LossRecord) -> None:
    """Compare two records slot for slot."""
    assert len(one) == len(other)
    mine, theirs = one.state_dict(), other.state_dict()
    mine_table, theirs_table = mine.pop("table"), theirs.pop("table")
    assert mine == theirs
    assert mine_table.keys() == theirs_table.keys()
    for name in mine_table:
        np.testing.assert_array_equal(mine_table[name], theirs_table[name], err_msg=name)


def assert_is_model(record: LossRecord, model: Model) -> None:
    """Compare a record with the model slot for slot."""
    expected, table = model.columns(), record.state_dict()["table"]
    assert np.unpackbits(table["used"]).astype(bool).tolist() == expected["used"]
    for name in ("keys", "last", "tick", "count", "version"):
        assert table[name].tolist() == expected[name], name
    np.testing.assert_allclose(table["ema"], expected["ema"], rtol=1e-6)
    assert len(record) == len(expected["keys"])
    counts = record.counts
    assert (counts["evicted"], counts["dropped"]) == (model.evicted, model.dropped)
    assert counts["rejected"] == model.rejected


_ids = st.one_of(
    st.integers(0, 60), st.sampled_from([_LIMITS.min, _LIMITS.max, -1]), st.integers(-(2**63), 99)
)
_losses = st.one_of(
    st.integers(-80, 80).map(lambda eighths: eighths / 8),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e39]),
)
_batches = st.lists(
    st.tuples(
        st.lists(st.tuples(_ids, _losses), max_size=40), st.integers(0, 3), st.integers(0, 70_000)
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=50)
@given(
    batches=_batches,
    buckets=st.integers(2, 5),
    decay=st.sampled_from([0.0, 0.5, 0.9]),
    seed=st.sampled_from([0, 1, 2**64 - 1]),
)
def test_agrees_with_a_dict_of_buckets(
    batches: list[tuple[list[tuple[int, float]], int, int]], buckets: int, decay: float, seed: int
) -> None:
    """Every slot, count and answer equals that of a model in plain Python."""
    clock = Clock()
    record = LossRecord(buckets * 8, decay=decay, seed=seed, clock=clock)
    model = Model(buckets, decay, seed)
    for rows, pause_s, version in batches:
        clock.now_s += pause_s
        model.tick += pause_s
        ids, losses = [row[0] for row in rows], [row[1] for row in rows]
        record.update(ints(*ids), np.array(losses, np.float64), version=version)
        model.update(ids, losses, version)

    assert_is_model(record, model)
    assert sorted(record.ids().tolist()) == sorted(
        ids_of_keys(np.array(model.columns()["keys"], np.uint64), seed).tolist()
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_a_dict_of_buckets_when_crowded(seed: int) -> None:
    """The same under many evictions, duplicates, drops, and batches of very different sizes."""
    random = np.random.default_rng(seed)
    clock = Clock()
    record, model = LossRecord(64, decay=0.5, clock=clock), Model(8, 0.5, 0)
    for size in random.choice([1, 2, 9, 64, 300], 60).tolist():
        pause_s = int(random.integers(0, 2))
        clock.now_s += pause_s
        model.tick += pause_s
        ids = random.integers(0, 10 ** random.integers(1, 6), size)
        losses = random.integers(-99, 99, size) / 8
        record.update(ids, losses)
        model.update(ids.tolist(), losses.tolist(), 0)
    assert_is_model(record, model)
    assert min(model.evicted, model.dropped) > 100


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(0, 200), st.floats(-1e6, 1e6, width=32)), max_size=300),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_order_of_rows_does_not_matter(rows: list[tuple[int, float]], shuffle: Any) -> None:
    """A batch in another order gives the same record, bit for bit, drops and all."""
    clock = Clock()
    one, other = LossRecord(48, clock=clock), LossRecord(48, clock=clock)
    for record in (one, other):
        record.update(ints(*range(30)), np.ones(30, np.float32))
    shuffled = list(rows)
    shuffle.shuffle(shuffled)
    for record, batch in ((one, rows), (other, shuffled)):
        record.update(ints(*(r[0] for r in batch)), floats(*(r[1] for r in batch)))
    assert_same_state(one, other)


def test_the_mean_of_duplicates_does_not_depend_on_their_order() -> None:
    """Losses whose floating-point sum depends on the order still give one mean."""
    clock = Clock()
    one, other = LossRecord(10, clock=clock), LossRecord(10, clock=clock)
    one.update(ints(1, 1, 1), floats(1e30, 1, -1e30))
    other.update(ints(1, 1, 1), floats(1, 1e30, -1e30))
    assert_same_state(one, other)


@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(_LIMITS.min, _LIMITS.max)), seed=st.integers(0, 2**64 - 1))
def test_integer_ids_come_back_exactly(ids: list[int], seed: int) -> None:
    """The mix has an exact inverse for every id and seed, and matches its description."""
    keys = keys_of_ids(ints(*ids), seed)
    assert keys.tolist() == [key_of(id_, seed) for id_ in ids]
    assert ids_of_keys(keys, seed).tolist() == ids


def test_extreme_ids_are_ordinary_ids() -> None:
    """The smallest, the largest, 0 and -1 are unknown at first, then found and exported."""
    ids = ints(_LIMITS.min, _LIMITS.max, 0, -1)
    record = LossRecord(100)
    assert not record.lookup(ids).known.any()
    record.update(ids, floats(1, 2, 3, 4))
    assert record.lookup(ids).losses.tolist() == [1, 2, 3, 4]
    assert sorted(record.ids().tolist()) == sorted(ids.tolist())


@pytest.mark.parametrize("capacity", [1, 16, 17, 1000])
def test_no_id_is_taken_for_a_free_slot(capacity: int) -> None:
    """The ids whose keys equal the marks of free slots are unknown until they are recorded."""
    ids = ids_of_keys(np.array([0, _WORD - 1], np.uint64), seed=0)
    record = LossRecord(capacity)
    assert not record.lookup(ids).known.any()
    record.update(ids, floats(5, 6))
    assert record.lookup(ids).losses.tolist() == [5, 6]
    assert sorted(record.ids().tolist()) == sorted(ids.tolist())
    assert len(record) == 2


def test_keys_that_differ_only_in_their_last_sorted_bits_stay_apart() -> None:
    """Ids alike in all bits that the packed sort keeps are still different ids."""
    key = 0x0123456789ABCDEF
    keys = np.array([key, key ^ 1 << 54, key, key ^ 1 << 55], np.uint64)
    ids = ids_of_keys(keys, seed=0)
    record = LossRecord(100, decay=0.5)
    record.update(ids, floats(1, 2, 3, 4))
    assert record.lookup(ids).losses.tolist() == [2, 2, 2, 4]
    assert len(record) == 3


def test_a_record_takes_24_bytes_a_slot_and_never_grows() -> None:
    """Memory is taken at construction; a hundred times as many ids do not add to it."""
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
    for loss in (_LARGEST, -_LARGEST, _LARGEST, _LARGEST):
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
        "evicted": 0,
        "dropped": 0,
        "rejected": 0,
    }


def test_seeds_place_ids_differently() -> None:
    """Ids that share a bucket under one seed are spread under another."""
    ids = ints(*same_bucket(64, buckets=100, seed=0))
    kept = []
    for seed in (0, 1, 2):
        record = LossRecord(800, seed=seed)
        record.update(ids, np.ones(64, np.float32))
        kept.append(len(record))
    assert kept[0] == 8
    assert min(kept[1:]) > 50


def test_empty_batches_are_fine() -> None:
    """No rows change nothing."""
    record = LossRecord(10)
    record.update(ints(), floats())
    record.update([], floats())
    for answer in (record.lookup(ints()), record.lookup([])):
        assert [column.shape for column in answer] == [(0,)] * 4
    record.update(["a"], floats(1))
    record.update(ints(), floats())
    assert len(record) == 1


def test_answers_have_the_documented_types() -> None:
    """Losses, averages and ages are float32, known is bool, ids are int64."""
    record = LossRecord(10)
    record.update(ints(1), np.array([1.0]))
    known, items = record.lookup(ints(1, 2)), record.items()
    assert [column.dtype for column in known] == [np.float32, np.bool_, np.float32, np.float32]
    assert items.ids.dtype == np.int64
    assert items.counts.dtype == items.versions.dtype == np.uint16


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_inputs_are_never_changed(dtype: type[np.floating[Any]]) -> None:
    """Read-only arrays are accepted and stay as they were, whatever their types."""
    ids, losses = np.arange(500) % 90, np.linspace(0, 1, 500).astype(dtype)
    losses[3] = np.nan
    given_ids, given_losses = ids.copy(), losses.copy()
    given_ids.flags.writeable = given_losses.flags.writeable = False
    record = LossRecord(40)
    record.update(given_ids, given_losses)
    record.lookup(given_ids)
    np.testing.assert_array_equal(given_ids, ids)
    np.testing.assert_array_equal(given_losses, losses)


def test_lists_of_names_are_never_changed() -> None:
    """A list of strings stays as it was."""
    names = ["a", "b", "a"]
    LossRecord(40).update(names, floats(1, 2, 3))
    assert names == ["a", "b", "a"]


@pytest.mark.parametrize(
    "ids",
    [
        np.array([5, -6, 7], np.int32),
        np.array([5, -6, 7], ">i8"),
        np.array([5, 0, -6, 0, 7, 0], np.int64)[::2],
    ],
)
def test_other_integer_layouts_name_the_same_ids(ids: npt.NDArray[np.int64]) -> None:
    """Narrow, byte-swapped and strided arrays of ids are taken by value."""
    record = LossRecord(40)
    record.update(ids, floats(1, 2, 3))
    assert record.lookup(ints(5, -6, 7)).losses.tolist() == [1, 2, 3]


_text = st.text(st.characters(), max_size=40) | st.text("ab\0", max_size=20)


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(_text, max_size=30), seed=st.integers(0, 2**64 - 1))
def test_a_string_has_one_key_whatever_stands_beside_it(texts: list[str], seed: int) -> None:
    """A key depends on the string and the seed only; different strings differ."""
    keys = keys_of_strings(texts, seed).tolist()
    assert keys == [int(keys_of_strings([text], seed)[0]) for text in texts]
    assert len(set(keys)) == len(set(texts))


def test_string_keys_never_change() -> None:
    """A record outlives its process: these keys must be the same for ever, everywhere."""
    texts = ["", "a", "sample-1", "shard-000017/000123.jpg", "é", "\ud800", "x" * 256, "x" * 257]
    assert [hex(key) for key in keys_of_strings(texts, seed=3).tolist()] == [
        "0xc4604b5554502216",
        "0x6cac24b5420608fd",
        "0xb7e361218affd773",
        "0xefb79fb0ca3637d2",
        "0x322a5861cc35ce42",
        "0xff506c6614b5b26b",
        "0xcc5b1066cefc0b41",
        "0xecc0afa3ee1350c2",
    ]


def test_string_keys_spread_evenly() -> None:
    """A million-fold pattern of names gives no equal keys, and fills all buckets alike."""
    texts = [f"shard-{i // 1000:06d}/{i % 1000:06d}" for i in range(100_000)]
    keys = keys_of_strings(texts, seed=0)
    assert len(np.unique(keys)) == len(keys)
    for bits in (keys >> np.uint64(54), keys >> np.uint64(44), keys >> np.uint64(22)):
        loads = np.bincount((bits & np.uint64(1023)).astype(np.int64), minlength=1024)
        # chi-square with 1,023 degrees of freedom: mean 1,023, deviation 45
        assert ((loads - loads.mean()) ** 2 / loads.mean()).sum() < 1023 + 5 * 45


def test_strings_of_all_kinds_are_ids() -> None:
    """The empty string, unicode, a lone surrogate, zero bytes and long names are told apart."""
    names = ["", "\0", "a", "a\0", "é", "e\u0301", "日本語", "\ud800", "🙂" * 3]
    names += ["x" * length for length in (7, 8, 9, 255, 256, 257, 100_000)]
    losses = np.arange(len(names), dtype=np.float32)
    record = LossRecord(400)
    record.update(names, losses)
    assert record.lookup(names[::-1]).losses.tolist() == losses[::-1].tolist()
    assert record.lookup(["x", "A", "a\0\0"]).known.tolist() == [False] * 3
    assert len(record) == len(names)


def test_a_string_is_known_by_its_integer_id() -> None:
    """Strings and their `instance_ids` name the same instance, in and out."""
    record = LossRecord(10)
    record.update(["a"], floats(1))
    assert record.lookup(instance_ids(["a"])).losses.tolist() == [1]
    assert record.ids().tolist() == instance_ids(["a"]).tolist()


@pytest.mark.parametrize(
    ("ids", "losses", "message"),
    [
        ([1, 2], floats(1, 2), r"ids must be .* got a list with \['int'\]"),
        (["a", None], floats(1, 2), r"ids must be .* got a list with \['NoneType'\]"),
        ("ab", floats(1, 2), "ids must be .* got str"),
        (np.array([1.0]), floats(1), r"got an array of float64, shape \(1,\)"),
        (np.array([1], np.uint64), floats(1), "got an array of uint64"),
        (np.array([True]), floats(1), "got an array of bool"),
        (np.array(["a"]), floats(1), "got an array of <U1"),
        (np.array([[1]]), floats(1), r"shape \(1, 1\)"),
        (np.array(1), np.array(1.0), r"shape \(\)"),
        (ints(1), [1.0], "losses must be a floating-point numpy array, got list"),
        (ints(1), ints(1), "losses must be a floating-point numpy array, got int64"),
        (ints(1, 2), floats(1), r"losses have shape \(1,\), expected \(2,\): one loss per id"),
        (ints(1), np.array([[1.0]]), r"losses have shape \(1, 1\), expected \(1,\)"),
    ],
)
def test_wrong_batches_are_refused(ids: Any, losses: Any, message: str) -> None:
    """The message says what was expected and what came; the record stays as it was."""
    record = LossRecord(10)
    with pytest.raises(RecordError, match=message):
        record.update(ids, losses)
    assert len(record) == 0
    record.update(["free to choose"], floats(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"capacity": 0}, ValueError, r"capacity must be in \[1, 17179869184\], got 0"),
        ({"capacity": 1e6}, TypeError, "capacity must be an integer, got float"),
        ({"capacity": True}, TypeError, "capacity must be an integer, got bool"),
        ({"decay": 1.0}, ValueError, r"decay must be in \[0, 1\), got 1.0"),
        ({"decay": np.nan}, ValueError, r"decay must be in \[0, 1\), got nan"),
        ({"decay": "0.9"}, TypeError, "decay must be a number, got str"),
        ({"max_age_s": 0}, ValueError, "max_age_s must be a positive .* pass None for no limit"),
        ({"max_age_s": np.nan}, ValueError, "max_age_s must be a positive"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 18446744073709551615\], got -1"),
        ({"seed": None}, TypeError, "seed must be an integer, got NoneType"),
        ({"clock": 5.0}, TypeError, "clock must return seconds when called, got float"),
    ],
)
def test_wrong_arguments_fail_at_construction(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message names the argument, its range and what came."""
    with pytest.raises(error, match=message):
        LossRecord(**{"capacity": 100, **arguments})


def test_a_version_that_is_no_integer_is_refused() -> None:
    """A fraction is not cut off silently, and nothing is recorded."""
    record = LossRecord(10)
    with pytest.raises(TypeError):
        record.update(ints(1), floats(1), version=1.5)  # type: ignore[arg-type]  # on purpose
    assert len(record) == 0


def train(record: LossRecord, clock: Clock, steps: int, seed: int) -> None:
    """Update and look up random batches."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        clock.now_s += float(random.random() * 3)
        ids = random.integers(0, 900, 64)
        record.lookup(ids)
        record.update(ids, random.random(64), version=int(random.integers(9)))


def test_a_restored_record_goes_on_identically() -> None:
    """Restored slot for slot, a record evicts, averages and counts as the first would have."""
    clock = Clock()
    first = LossRecord(300, max_age_s=20, seed=5, clock=clock)
    train(first, clock, steps=40, seed=0)
    state = first.state_dict()
    later = Clock()
    later.now_s = clock.now_s
    second = LossRecord(300, max_age_s=20, seed=5, clock=later)
    second.update(ints(1, 2, 3), floats(9, 9, 9))
    second.load_state_dict(state)
    assert_same_state(first, second)
    train(first, clock, steps=40, seed=1)
    train(second, later, steps=40, seed=1)
    assert_same_state(first, second)
    assert first.counts["evicted"] > 0
    assert first.counts["stale"] > 0


def test_a_state_is_a_copy() -> None:
    """Later updates do not reach into a state, nor a state into the record it restored."""
    record = LossRecord(100)
    record.update(ints(1), floats(1))
    state = record.state_dict()
    record.update(ints(1, 2), floats(5, 5))
    other = LossRecord(100)
    other.load_state_dict(state)
    other.update(ints(1), floats(7))
    third = LossRecord(100)
    third.load_state_dict(state)
    assert third.lookup(ints(1, 2)).losses.tolist() == [1, 0]


def test_restoring_forgets_what_the_record_held_before() -> None:
    """A used record that is restored holds the state's ids and no other."""
    record, other = LossRecord(100), LossRecord(100)
    record.update(ints(1), floats(1))
    other.update(ints(*range(2, 50)), np.ones(48, np.float32))
    other.load_state_dict(record.state_dict())
    assert other.ids().tolist() == [1]
    assert_same_state(record, other)


def test_the_time_between_two_processes_has_passed() -> None:
    """A loss is as old after a restart as it would have been without one."""
    record = LossRecord(100, clock=lambda: 50.0)
    record.update(ints(1), floats(1))
    other = LossRecord(100, clock=lambda: 80.0)
    other.load_state_dict(record.state_dict())
    assert other.lookup(ints(1)).age_s.tolist() == [30]


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a damage: one entry of the table replaced."""
    return lambda state: state["table"].__setitem__(name, value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("table"), "'table' must be dict, got NoneType"),
        (lambda state: state.update(capacity="104"), "'capacity' must be int, got str"),
        (lambda state: state.update(capacity=96), r"capacity 96, .* 104: construct it with"),
        (lambda state: state.update(seed=1), "seed 1, this one has 0"),
        (lambda state: state["counts"].pop("hits"), "'hits' must be int"),
        (lambda state: state["ticks"].update(elapsed_s=np.nan), "no number of seconds"),
        (lambda state: state["ticks"].update(elapsed_s=-1.0), "no number of seconds"),
        (_set("layout", 2), "table layout 2, this version reads 1"),
        (_set("used", np.zeros(13, np.uint8)), r"'keys' must be uint64 of shape \(0,\)"),
        (_set("used", np.zeros(12, np.uint8)), r"'used' must be uint8 of shape \(13,\)"),
        (_set("keys", np.ones(3, np.int64)), "'keys' must be uint64 .* got int64"),
        (lambda state: state["table"]["keys"].sort(), "bucket not its own"),
        (_set("last", floats(1, 2, np.nan)), "a loss is not finite"),
        (_set("ema", floats(1, np.inf, 2)), "an average is not finite"),
        (_set("tick", np.array([1, 0, 1], np.uint32)), "tick 0"),
        (_set("tick", np.array([1, 2**32 - 1, 1], np.uint32)), "younger than the record"),
    ],
)
def test_a_damaged_state_is_refused(damage: Callable[[dict[str, Any]], Any], message: str) -> None:
    """The message names what is wrong, and the record is as before."""
    source = LossRecord(100)
    source.update(ints(1, 2, 3), floats(1, 2, 3))
    state = source.state_dict()
    damage(state)
    record = LossRecord(100, clock=Clock())
    record.update(ints(7), floats(4))
    untouched = LossRecord(100, clock=Clock())
    untouched.load_state_dict(record.state_dict())
    with pytest.raises(RecordError, match=message):
        record.load_state_dict(state)
    assert_same_state(record, untouched)


def test_a_state_with_one_key_twice_is_refused() -> None:
    """Searches rely on a key being in one slot only."""
    ids = ints(*same_bucket(2, buckets=13))
    source = LossRecord(100)
    source.update(ids, floats(1, 2))
    state = source.state_dict()
    state["table"]["keys"][1] = state["table"]["keys"][0]
    with pytest.raises(RecordError, match="a key is there twice"):
        LossRecord(100).load_state_dict(state)
