"""Snapshots of the loss record: restored, copied and damaged."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord
from tests.record_model import Clock, assert_same_state, computing_with, floats, ints, same_bucket


@pytest.fixture(autouse=True, scope="module", params=["numpy", "numba"])
def every_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test of this module with both engines."""
    with computing_with(request.param):
        yield


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
        (lambda state: state.update(version="1"), "'version' must be int"),
        (lambda state: state.update(evicted_ages=[0] * 9), "must be 10 whole numbers"),
        (lambda state: state.update(evicted_ages=[0] * 9 + [-1]), "must be 10 whole numbers"),
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
