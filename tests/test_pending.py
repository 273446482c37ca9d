"""Predictions that wait for their labels, and what becomes of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord, PendingLabels
from adasel_stream.record.entries import VALUE, Entries
from tests.record_model import Clock, assert_same_state, floats, ints, same_bucket


def distance(predictions: npt.NDArray[np.float32], labels: Any) -> npt.NDArray[np.float32]:
    """Return how far labels are from predictions."""
    return np.abs(predictions - np.asarray(labels, np.float32))


def waiting(
    capacity: int = 80, ttl_s: float | None = None, **arguments: Any
) -> tuple[LossRecord, PendingLabels, Clock]:
    """Return a record, its pending labels and its clock."""
    clock, pending = Clock(), PendingLabels(capacity, distance, ttl_s=ttl_s)
    return LossRecord(1_000, clock=clock, pending=pending, **arguments), pending, clock


def assert_counts(pending: PendingLabels, **expected: int) -> None:
    """Compare counts; those that are not named are 0."""
    assert {name: count for name, count in pending.counts.items() if count} == expected


def test_a_label_turns_its_prediction_into_a_loss() -> None:
    """The loss is recorded once, as old as the prediction and of its version."""
    record, pending, clock = waiting()
    record.expect(ints(1, 2), floats(0.5, 3), version=7)
    clock.now_s += 40
    assert record.join(ints(2, 9), floats(1, 1)).tolist() == [True, False]
    items = record.items()
    assert (items.ids.tolist(), items.losses.tolist()) == ([2], [2])
    assert (items.age_s.tolist(), items.versions.tolist()) == ([40], [7])
    assert record.join(ints(2), floats(1)).tolist() == [False]
    assert len(pending) == 1
    assert_counts(pending, expected=2, joined=1, unmatched=2)


def test_predictions_have_versions_and_ages_of_their_own() -> None:
    """Each row's age and version go with its prediction; else the record's version does."""
    record, _, clock = waiting()
    clock.now_s += 100
    record.version = 4
    record.expect(ints(1, 2), floats(0, 0), version=ints(8, 9), age_s=floats(3, 5))
    record.expect(ints(3), floats(0))
    assert record.join(ints(1, 2, 3), floats(1, 1, 1)).all()
    items = record.items()
    rows = zip(items.ids.tolist(), items.versions.tolist(), items.age_s.tolist(), strict=True)
    assert sorted(rows) == [(1, 8, 3), (2, 9, 5), (3, 4, 0)]


def test_a_second_prediction_replaces_the_first() -> None:
    """The last one counts, in a batch and over batches, unless it is older."""
    record, pending, clock = waiting()
    clock.now_s += 10
    record.expect(ints(1, 2, 1), floats(5, 5, 6))
    record.expect(ints(2), floats(7))
    record.expect(ints(2), floats(9), age_s=1)
    record.join(ints(1, 2), floats(0, 0))
    assert record.lookup(ints(1, 2)).losses.tolist() == [6, 7]
    assert_counts(pending, expected=5, joined=2)


def test_all_labels_of_a_batch_join_the_one_prediction() -> None:
    """Two labels of an id are two losses, and the prediction waits no longer."""
    record, pending, _ = waiting()
    record.expect(ints(1), floats(1))
    assert record.join(ints(1, 1, 1), floats(1, 2, 6)).tolist() == [True] * 3
    items = record.items()
    assert (items.losses.tolist(), items.counts.tolist(), len(pending)) == ([2], [3], 0)
    assert_counts(pending, expected=1, joined=3)


def test_a_prediction_is_given_up_after_its_time() -> None:
    """At `ttl_s` it still joins, a second later it has expired and its label finds none."""
    record, pending, clock = waiting(ttl_s=10)
    record.expect(ints(1, 2), floats(1, 1))
    clock.now_s += 10
    assert record.join(ints(1), floats(0)).tolist() == [True]
    clock.now_s += 1
    assert record.join(ints(2, 2), floats(0, 0)).tolist() == [False, False]
    assert_counts(pending, expected=2, joined=1, unmatched=2, expired=1)


def test_expired_predictions_make_room_before_others_do() -> None:
    """New predictions of their bucket free their slots, and no other is evicted."""
    record, pending, clock = waiting(ttl_s=10)
    ids = same_bucket(12, buckets=10)
    record.expect(ints(*ids[:6]), np.zeros(6, np.float32))
    clock.now_s += 8
    record.expect(ints(*ids[6:8]), floats(0, 0))
    clock.now_s += 3
    record.expect(ints(ids[8]), floats(0))
    assert len(pending) == 3
    assert_counts(pending, expected=9, expired=6)


def test_the_oldest_prediction_of_a_full_bucket_makes_room() -> None:
    """First in, first out; looking for labels makes nothing younger."""
    record, pending, clock = waiting()
    ids = same_bucket(10, buckets=10)
    for id_ in ids:
        clock.now_s += 1
        record.expect(ints(id_), floats(0))
    found = record.join(ints(*ids), np.ones(10, np.float32))
    assert found.tolist() == [False, False] + [True] * 8
    assert_counts(pending, expected=10, joined=8, unmatched=2, evicted=2)


def test_predictions_that_are_not_finite_are_rejected() -> None:
    """They are counted and never wait; what is beyond float32 counts as infinite."""
    record, pending, _ = waiting()
    record.expect(ints(1, 2, 3), np.array([np.nan, 1e300, 4.0]))
    assert record.join(ints(1, 2, 3), floats(0, 0, 0)).tolist() == [False, False, True]
    assert_counts(pending, expected=1, rejected=2, joined=1, unmatched=2)


def test_losses_that_are_not_finite_are_rejected_by_the_record() -> None:
    """The prediction met its label all the same."""
    record, pending, _ = waiting()
    record.expect(ints(1), floats(1))
    assert record.join(ints(1), floats(np.nan)).tolist() == [True]
    assert (record.counts["rejected"], len(record), len(pending)) == (1, 0, 0)


def test_strings_and_labels_of_any_shape_are_taken() -> None:
    """The loss is given the labels' rows as they came."""
    pending = PendingLabels(16, lambda p, y: p * y["weight"].sum(axis=1), ttl_s=None)
    record = LossRecord(16, pending=pending)
    record.expect(["a", "b"], floats(2, 3))
    labels = np.zeros(2, [("weight", "f4", (3,))])
    labels["weight"] = [[1, 1, 1], [2, 2, 2]]
    assert record.join(["b", "c"], labels).tolist() == [True, False]
    assert record.lookup(["b"]).losses.tolist() == [9]


def test_empty_batches_are_fine() -> None:
    """No rows change nothing, and the loss is not called without rows."""
    record, pending, _ = waiting()
    record.expect(ints(), floats())
    assert record.join(ints(), floats()).tolist() == []
    assert record.join([], np.zeros((0, 3))).tolist() == []
    assert_counts(pending)


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(
            st.booleans(),
            st.lists(st.tuples(st.integers(0, 40), st.integers(-9, 9)), max_size=20),
            st.integers(0, 4),
        ),
        max_size=20,
    )
)
def test_agrees_with_a_dict(steps: list[tuple[bool, list[tuple[int, int]], int]]) -> None:
    """With room for all, predictions and labels meet as in a dict with times."""
    record, pending, clock = waiting(capacity=4_000, ttl_s=6, decay=0.0)
    held: dict[int, tuple[int, float]] = {}
    for comes, rows, pause_s in steps:
        clock.now_s += pause_s
        ids, numbers = ints(*(row[0] for row in rows)), floats(*(row[1] for row in rows))
        if comes:
            record.expect(ids, numbers)
            held |= {id_: (number, clock.now_s) for id_, number in rows}
            continue
        fresh = {id_: row for id_, row in held.items() if clock.now_s - row[1] <= 6}
        assert record.join(ids, numbers).tolist() == [id_ in fresh for id_, _ in rows]
        for id_ in {id_ for id_, _ in rows if id_ in fresh}:
            losses = [abs(fresh[id_][0] - label) for row, label in rows if row == id_]
            known = record.lookup(ints(id_))
            assert known.losses[0] == np.float32(np.mean(losses))
            assert known.age_s[0] == clock.now_s - fresh[id_][1]
        held = {id_: row for id_, row in held.items() if id_ not in ids.tolist()}
    counts = pending.counts
    assert counts["evicted"] == 0
    assert len(pending) <= len(held) <= counts["expected"]


def test_memory_is_taken_at_construction() -> None:
    """24 bytes a slot, however many predictions come."""
    record, pending, _ = waiting(capacity=800)
    for start in range(0, 20_000, 1_000):
        record.expect(np.arange(start, start + 1_000), np.ones(1_000, np.float32))
    assert pending.record_bytes == 24 * pending.capacity == 24 * 800
    assert len(pending) <= 800
    assert pending.counts["expected"] == 20_000 == len(pending) + pending.counts["evicted"]


def test_waiting_predictions_are_part_of_the_state() -> None:
    """A restored record joins, expires and counts as the first would have."""
    record, _, clock = waiting(ttl_s=50)
    record.expect(ints(*range(40)), np.arange(40, dtype=np.float32), version=3)
    record.join(ints(3, 99), floats(0, 0))
    resumed, pending, other = waiting(ttl_s=50)
    other.now_s = clock.now_s
    resumed.expect(ints(77), floats(1))
    resumed.load_state_dict(record.state_dict())
    assert_same_state(record, resumed)
    for each in (record, resumed):
        each.join(ints(5, 77, 4), floats(0, 0, 0))
    assert_same_state(record, resumed)
    assert_counts(pending, expected=40, joined=3, unmatched=2)


def test_a_state_without_predictions_leaves_none_waiting() -> None:
    """A record that gets pending labels later begins with none."""
    record, pending, _ = waiting()
    record.expect(ints(1), floats(1))
    record.load_state_dict(LossRecord(1_000).state_dict())
    assert len(pending) == 0
    assert_counts(pending)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state["pending"].update(capacity=88), "capacity 88, these have 80"),
        (lambda state: state["pending"].pop("table"), "'table' must be dict"),
        (lambda state: state["pending_counts"].pop("joined"), "'joined' must be int"),
        (lambda state: state.update(pending=7), "'pending' must be dict, got int"),
    ],
)
def test_a_damaged_state_is_refused(damage: Callable[[dict[str, Any]], Any], message: str) -> None:
    """The message names what is wrong, and the record is as before."""
    record, _, _ = waiting()
    record.expect(ints(1), floats(1))
    before = record.state_dict()
    other, _, _ = waiting()
    other.expect(ints(5, 6), floats(1, 2))
    state = other.state_dict()
    damage(state)
    with pytest.raises(RecordError, match=message):
        record.load_state_dict(state)
    untouched, _, _ = waiting()
    untouched.load_state_dict(before)
    assert_same_state(record, untouched)


def test_a_state_with_predictions_needs_pending_labels() -> None:
    """They are not dropped silently."""
    record, _, _ = waiting()
    with pytest.raises(RecordError, match="construct this record with pending=PendingLabels"):
        LossRecord(1_000).load_state_dict(record.state_dict())


def test_rows_move_to_pending_labels_of_another_size() -> None:
    """Snapshots copy them slice by slice, with their ages and versions."""
    record, pending, clock = waiting()
    record.expect(ints(*range(30)), np.arange(30, dtype=np.float32), version=3)
    clock.now_s += 5
    larger, other, _ = waiting(capacity=400)
    larger.load_position(record.position())
    slices = [pending.entries(start, start + 16) for start in range(0, pending.capacity, 16)]
    assert sum(other.place(part) for part in slices) == 30 == len(other)
    assert other.counts == pending.counts
    assert larger.join(ints(*range(30)), np.zeros(30, np.float32)).all()
    assert larger.lookup(ints(7)).losses.tolist() == [7]
    assert set(larger.items().versions.tolist()) == {3}


def test_damaged_rows_are_refused() -> None:
    """A prediction that is not finite is placed by nobody."""
    _, pending, _ = waiting()
    values = np.array([(np.nan, 1.0, 1, 1, 0)], VALUE)
    with pytest.raises(RecordError, match="an average is not finite"):
        pending.place(Entries(np.zeros(1, np.uint64), values))
    assert len(pending) == 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p, y: p[:1], r"loss returned have shape \(1,\), expected \(2,\)"),
        (lambda p, y: p.tolist(), "loss returned must be a floating-point numpy array, got list"),
        (lambda p, y: (p > y).astype(int), "got int64"),
        (lambda p, y: (p - y).mean(), "one number for 2 labels, expected one loss for each label"),
        (lambda p, y: float(p[0]), "do not average"),
    ],
)
def test_a_wrong_loss_records_nothing(loss: Any, message: str) -> None:
    """The predictions go on waiting for a loss that is right."""
    pending = PendingLabels(80, loss, ttl_s=None)
    record = LossRecord(100, pending=pending)
    record.expect(ints(1, 2), floats(1, 2))
    with pytest.raises(RecordError, match=message):
        record.join(ints(1, 2), floats(1, 2))
    assert (len(record), len(pending)) == (0, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (floats(1), r"labels must be an array of shape \(2, ...\), one for each id, got \(1,\)"),
        ([1.0, 2.0], "got list"),
        (np.float32(1), "got float32"),
    ],
)
def test_wrong_labels_are_refused(labels: Any, message: str) -> None:
    """The message says what was expected and what came."""
    record, _, _ = waiting()
    with pytest.raises(RecordError, match=message):
        record.join(ints(1, 2), labels)


def test_a_record_without_pending_labels_says_so() -> None:
    """Neither predictions nor labels are dropped silently."""
    record = LossRecord(100)
    assert record.pending is None
    with pytest.raises(ValueError, match=r"construct it with pending=PendingLabels"):
        record.expect(ints(1), floats(1))
    with pytest.raises(ValueError, match=r"construct it with pending=PendingLabels"):
        record.join(ints(1), floats(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"capacity": 0}, ValueError, r"capacity must be in \[1, 17179869184\], got 0"),
        ({"capacity": 1.5}, TypeError, "capacity must be an integer, got float"),
        ({"loss": 3}, TypeError, "loss must be a function, got int"),
        ({"ttl_s": 0}, ValueError, "ttl_s must be a positive number of seconds, got 0"),
        ({"ttl_s": "1"}, TypeError, "ttl_s must be a number, got str"),
    ],
)
def test_wrong_arguments_fail_at_construction(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message names the argument, its range and what came."""
    with pytest.raises(error, match=message):
        PendingLabels(**{"capacity": 80, "loss": distance, "ttl_s": None, **arguments})
