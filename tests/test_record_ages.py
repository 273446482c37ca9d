"""Losses that come late or from another model version, and the ages of those that make room."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord
from adasel_stream.record.evicted import EVICTED_AGE_BOUNDS_S
from adasel_stream.record.ticks import FIRST_TICK
from tests.record_model import Clock, computing_with, floats, ints, same_bucket


@pytest.fixture(autouse=True, scope="module", params=["numpy", "numba"])
def every_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test of this module with both engines."""
    with computing_with(request.param):
        yield


def old_record(capacity: int = 80, **arguments: Any) -> tuple[LossRecord, Clock]:
    """Return an empty record that was constructed a thousand seconds ago."""
    clock = Clock()
    record = LossRecord(capacity, clock=clock, **arguments)
    clock.now_s += 1_000
    return record, clock


def test_a_loss_is_as_old_as_it_says() -> None:
    """Ages of a batch or of each row count from now, in whole seconds."""
    record, clock = old_record()
    record.update(ints(1, 2), floats(1, 2), age_s=7)
    record.update(ints(3, 4, 5), floats(3, 4, 5), age_s=floats(2.9, 0, 10**9))
    clock.now_s += 1
    assert record.lookup(ints(1, 2, 3, 4, 5)).age_s.tolist() == [8, 8, 3, 1, FIRST_TICK + 1_000]


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_losses_may_be_older_than_the_record(engine: str) -> None:
    """A record that begins today takes what serving said yesterday for what it is."""
    record = LossRecord(100, max_age_s=20, engine=engine)
    record.update(ints(1, 2), floats(1, 2), age_s=floats(30, 10))
    assert record.lookup(ints(1, 2)).known.tolist() == [False, True]


def test_an_age_below_zero_counts_as_zero() -> None:
    """The clock of a serving machine may run ahead of the trainer's."""
    record, _ = old_record()
    record.update(ints(1), floats(1), age_s=-5.0)
    record.update(ints(2), floats(1), age_s=floats(-np.inf))
    assert record.lookup(ints(1, 2)).age_s.tolist() == [0, 0]


def test_a_late_loss_moves_the_average_and_nothing_else() -> None:
    """A loss older than the one that is there leaves the last loss, its age and its version."""
    record, _ = old_record(decay=0.5)
    record.update(ints(1), floats(8), version=3, age_s=10)
    record.update(ints(1), floats(4), version=2, age_s=11)
    items = record.items()
    assert (items.losses.tolist(), items.ema.tolist(), items.age_s.tolist()) == ([8], [6], [10])
    assert (items.counts.tolist(), items.versions.tolist()) == ([2], [3])


def test_a_loss_of_the_same_age_is_taken_as_newer() -> None:
    """Ages are whole seconds: within one, the last to come is the last loss."""
    record, _ = old_record(decay=0.5)
    record.update(ints(1), floats(8), version=3, age_s=10)
    record.update(ints(1), floats(4), version=2, age_s=10)
    assert record.lookup(ints(1)).losses.tolist() == [4]
    assert record.items().versions.tolist() == [2]


def test_duplicates_are_stamped_with_the_newest_and_its_version() -> None:
    """Of equal ages, the largest version counts."""
    record, _ = old_record()
    record.update(
        ints(1, 1, 1, 1),
        floats(1, 2, 3, 6),
        version=ints(9, 4, 5, 8),
        age_s=floats(7, 2, 2, 3),
    )
    items = record.items()
    assert (items.losses.tolist(), items.counts.tolist()) == ([3], [4])
    assert (items.age_s.tolist(), items.versions.tolist()) == ([2], [5])


def test_a_late_loss_of_a_new_id_does_not_evict_a_younger_one() -> None:
    """It is dropped and counted where all of its bucket are younger."""
    record, _ = old_record()
    ids = same_bucket(10, buckets=10)
    record.update(ints(*ids[:8]), np.ones(8, np.float32), age_s=floats(*range(1, 9)))
    record.update(ints(ids[8], ids[9]), floats(2, 2), age_s=floats(8, 9))
    assert record.lookup(ints(*ids)).known.tolist() == [True] * 7 + [False, True, False]
    assert (record.counts["evicted"], record.counts["dropped"]) == (1, 1)


def test_rejected_rows_take_their_ages_and_versions_along() -> None:
    """A row that is not finite shifts nothing of the rows after it."""
    record, _ = old_record()
    record.update(ints(1, 2, 3), floats(np.nan, 2, 3), version=ints(7, 8, 9), age_s=floats(1, 2, 3))
    assert record.lookup(ints(1, 2, 3)).age_s.tolist() == [np.inf, 2, 3]
    assert sorted(record.items().versions.tolist()) == [8, 9]


@pytest.mark.parametrize("current", [0, 5, 65_535, 40_000])
def test_losses_of_distant_versions_are_stale(current: int) -> None:
    """Up to two versions before or after the current one are known, around the wrap as well."""
    record, _ = old_record(max_version_lag=2)
    record.version = current
    distances = range(-4, 5)
    versions = np.array([current + distance for distance in distances])
    record.update(np.arange(9), np.ones(9, np.float32), version=versions)
    assert record.lookup(np.arange(9)).known.tolist() == [abs(d) <= 2 for d in distances]
    counts = record.counts
    assert (counts["hits"], counts["stale"], counts["stale_version"]) == (5, 4, 4)


def test_losses_too_old_are_not_counted_as_of_a_distant_version() -> None:
    """`stale` are all, `stale_version` those that only their version makes stale."""
    record, _ = old_record(max_age_s=10, max_version_lag=0)
    record.update(
        ints(1, 2, 3, 4), floats(1, 2, 3, 4), version=ints(0, 1, 0, 1), age_s=floats(0, 0, 11, 11)
    )
    assert record.lookup(ints(1, 2, 3, 4)).known.tolist() == [True, False, False, False]
    assert (record.counts["stale"], record.counts["stale_version"]) == (3, 1)


def test_an_update_takes_the_current_version() -> None:
    """Without a version of its own, a loss is of the record's; that wraps as they do."""
    record = LossRecord(10)
    assert record.version == 0
    record.version = 65_536 + 4
    record.update(ints(1), floats(1))
    assert (record.version, record.items().versions.tolist()) == (4, [4])
    resumed = LossRecord(10)
    resumed.load_state_dict(record.state_dict())
    assert resumed.version == 4
    with pytest.raises(TypeError):
        record.version = 1.5  # type: ignore[assignment]  # on purpose


def test_ages_of_evicted_losses_are_counted() -> None:
    """Each falls under the first bound that is not below it; a state takes them along."""
    record, clock = old_record(capacity=16)
    ids = same_bucket(16, buckets=2)
    ages_s = floats(0, 1, 2, 10, 11, 999, 0, 0)
    record.update(ints(*ids[:8]), np.ones(8, np.float32), age_s=ages_s)
    record.update(ints(*ids[8:]), np.ones(8, np.float32))
    ages = record.evicted_ages
    assert len(ages.counts) == len(EVICTED_AGE_BOUNDS_S) + 1
    assert ages.counts.tolist() == [4, 2, 1, 0, 1, 0, 0, 0, 0]
    assert ages.sum_s == 1 + 2 + 10 + 11 + 999
    clock.now_s += 10**6
    record.update(ints(ids[0]), floats(1))
    assert record.evicted_ages.counts[-1] == 1
    resumed = LossRecord(16, clock=clock)
    resumed.load_state_dict(record.state_dict())
    assert resumed.evicted_ages.counts.tolist() == record.evicted_ages.counts.tolist()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"age_s": floats(1)}, RecordError, r"age_s must be .* got float32 of shape \(1,\)"),
        ({"age_s": np.nan}, RecordError, "without NaN"),
        ({"age_s": floats(1, np.nan)}, RecordError, "without NaN"),
        ({"age_s": "7"}, RecordError, "age_s must be seconds"),
        ({"age_s": None}, RecordError, "age_s must be seconds"),
        ({"version": ints(1)}, RecordError, r"version must be .* got int64 of shape \(1,\)"),
        ({"version": floats(1, 2)}, RecordError, "version must be an integer or integers"),
        ({"version": "1"}, TypeError, "integer"),
    ],
)
def test_wrong_ages_and_versions_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message says what was expected and what came; nothing is recorded."""
    record = LossRecord(10)
    with pytest.raises(error, match=message):
        record.update(ints(1, 2), floats(1, 2), **arguments)
    assert len(record) == 0
