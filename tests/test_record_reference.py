"""The loss record against a model in plain Python, and batches in any order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_stream.keys import ids_of_keys
from adasel_stream.record import LossRecord
from tests.record_model import (
    LIMITS,
    Clock,
    Model,
    assert_is_model,
    assert_same_state,
    computing_with,
    floats,
    ints,
)


@pytest.fixture(autouse=True, scope="module", params=["numpy", "numba"])
def every_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test of this module with both engines."""
    with computing_with(request.param):
        yield


_ids = st.one_of(
    st.integers(0, 60), st.sampled_from([LIMITS.min, LIMITS.max, -1]), st.integers(-(2**63), 99)
)
_losses = st.one_of(
    st.integers(-80, 80).map(lambda eighths: eighths / 8),
    st.sampled_from([np.nan, np.inf, -np.inf, 1e39]),
)
_rows = st.tuples(_ids, _losses, st.integers(0, 70_000), st.integers(-1, 12))
_batches = st.lists(
    st.tuples(st.lists(_rows, max_size=40), st.integers(0, 3), st.booleans(), st.booleans()),
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
    batches: list[tuple[list[tuple[int, float, int, int]], int, bool, bool]],
    buckets: int,
    decay: float,
    seed: int,
) -> None:
    """Every slot, count and answer equals that of a model in plain Python.

    Rows have versions and ages of their own, or those of the batch's first row.
    """
    clock = Clock()
    record = LossRecord(buckets * 8, decay=decay, seed=seed, clock=clock)
    model = Model(buckets, decay, seed)
    for rows, pause_s, own_versions, own_ages in batches:
        clock.now_s += pause_s
        model.tick += pause_s
        ids, losses = [row[0] for row in rows], [row[1] for row in rows]
        versions: Any = [row[2] for row in rows] if own_versions else rows[0][2] if rows else 0
        ages_s: Any = [row[3] for row in rows] if own_ages else rows[0][3] if rows else 0
        record.update(
            ints(*ids),
            np.array(losses, np.float64),
            version=ints(*versions) if own_versions else versions,
            age_s=floats(*ages_s) if own_ages else ages_s,
        )
        model.update(ids, losses, versions, ages_s)

    assert_is_model(record, model)
    assert sorted(record.ids().tolist()) == sorted(
        ids_of_keys(np.array(model.columns()["keys"], np.uint64), seed).tolist()
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_a_dict_of_buckets_when_crowded(seed: int) -> None:
    """The same under many evictions, duplicates, drops, and batches of very different sizes."""
    random, clock = np.random.default_rng(seed), Clock()
    record, model = LossRecord(64, decay=0.5, clock=clock), Model(8, 0.5, 0)
    for size in random.choice([1, 2, 9, 64, 300], 60).tolist():
        pause_s = int(random.integers(0, 2))
        clock.now_s += pause_s
        model.tick += pause_s
        ids = random.integers(0, 10 ** random.integers(1, 6), size)
        losses = random.integers(-99, 99, size) / 8
        ages_s = random.integers(0, 4, size)
        record.update(ids, losses, age_s=ages_s)
        model.update(ids.tolist(), losses.tolist(), ages_s=ages_s.tolist())
    assert_is_model(record, model)
    assert min(len(model.evicted_ages_s), model.dropped) > 100


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 200),
            st.floats(-1e6, 1e6, width=32),
            st.integers(0, 3),
            st.integers(0, 3),
        ),
        max_size=300,
    ),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_order_of_rows_does_not_matter(
    rows: list[tuple[int, float, int, int]], shuffle: Any
) -> None:
    """A batch in another order gives the same record, bit for bit, drops and all."""
    clock = Clock()
    one, other = LossRecord(48, clock=clock), LossRecord(48, clock=clock)
    for record in (one, other):
        record.update(ints(*range(30)), np.ones(30, np.float32))
    shuffled = list(rows)
    shuffle.shuffle(shuffled)
    for record, batch in ((one, rows), (other, shuffled)):
        ids, losses = ints(*(row[0] for row in batch)), floats(*(row[1] for row in batch))
        versions, ages_s = ints(*(row[2] for row in batch)), floats(*(row[3] for row in batch))
        record.update(ids, losses, version=versions, age_s=ages_s)
    assert_same_state(one, other)


def test_the_mean_of_duplicates_does_not_depend_on_their_order() -> None:
    """Losses whose floating-point sum depends on the order still give one mean."""
    clock = Clock()
    one, other = LossRecord(10, clock=clock), LossRecord(10, clock=clock)
    one.update(ints(1, 1, 1), floats(1e30, 1, -1e30))
    other.update(ints(1, 1, 1), floats(1, 1e30, -1e30))
    assert_same_state(one, other)
