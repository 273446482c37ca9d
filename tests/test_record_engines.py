"""Both engines give the same record, bit for bit, and numba is only imported where it computes."""

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_stream.record import LossRecord
from tests.record_model import Clock, assert_same_state, floats, ints

_Batch = tuple[npt.NDArray[np.int64], npt.NDArray[Any], Any, Any]


def pair(capacity: int, clock: Clock, **arguments: Any) -> tuple[LossRecord, LossRecord]:
    """Return a record of each engine."""
    return (
        LossRecord(capacity, clock=clock, engine="numpy", **arguments),
        LossRecord(capacity, clock=clock, engine="numba", **arguments),
    )


def random_batch(random: np.random.Generator, ids: int) -> _Batch:
    """Return ids with duplicates, losses of all sizes and kinds, versions and ages."""
    rows = int(random.choice([0, 1, 2, 7, 64, 400]))
    losses = random.standard_normal(rows) * 10.0 ** random.integers(-30, 39, rows)
    losses[random.random(rows) < 0.05] = random.choice([np.nan, np.inf, -np.inf])
    dtype = str(random.choice(["f2", "f4", "f8"]))
    with np.errstate(over="ignore"):
        losses = losses.astype(dtype)
    version: Any = int(random.integers(0, 70_000))
    age_s: Any = float(random.integers(0, 2))
    if random.random() < 0.5:
        version = random.integers(0, 70_000, rows)
    if random.random() < 0.5:
        age_s = random.exponential(9, rows)
    return random.integers(0, ids, rows), losses, version, age_s


def assert_same_answers(one: LossRecord, other: LossRecord, ids: npt.NDArray[np.int64]) -> None:
    """Look the same ids up in both."""
    for mine, theirs in zip(one.lookup(ids), other.lookup(ids), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def run_both(seed: int, batches: int, slots: int) -> LossRecord:
    """Give both engines the same random life and compare them throughout."""
    random, clock = np.random.default_rng(seed), Clock()
    decay = float(random.choice([0.0, 0.5, 0.9, 0.999]))
    one, other = pair(slots, clock, decay=decay, max_age_s=20, max_version_lag=9_000, seed=seed)
    for _ in range(batches):
        clock.now_s += float(random.integers(0, 3))
        ids, losses, version, age_s = random_batch(random, 10 ** int(random.integers(1, 7)))
        current = int(random.integers(0, 3)) * 1_000
        for record in (one, other):
            record.version = current
            record.update(ids, losses, version=version, age_s=age_s)
        assert_same_answers(one, other, random.integers(0, 2 * slots, 50))
    assert_same_state(one, other)
    return one


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), batches=st.integers(0, 12), slots=st.integers(1, 90))
def test_both_engines_give_the_same_record(seed: int, batches: int, slots: int) -> None:
    """Slots, ages, versions, counts, evictions and averages are equal, to the last bit."""
    run_both(seed, batches, slots)


def test_both_engines_agree_over_a_long_life() -> None:
    """The same after a thousand batches with thousands of evictions, drops and stale rows."""
    counts = run_both(seed=3, batches=1_000, slots=500).counts
    assert min(counts["evicted"], counts["dropped"], counts["rejected"]) > 1_000
    assert min(counts["hits"], counts["stale_version"], counts["misses"]) > 100
    assert counts["stale"] > counts["stale_version"]


@pytest.mark.verify
def test_both_engines_agree_over_millions_of_rows() -> None:
    """The same over many lives with tables from two buckets to thousands."""
    for seed in range(60):
        run_both(seed, batches=1_500, slots=16 << seed % 12)


@pytest.mark.parametrize("rows", [2, 3, 17, 5_000])
def test_both_engines_add_duplicates_in_the_same_order(rows: int) -> None:
    """A mean whose last digits depend on the order of the sum is equal, in any order of rows."""
    random = np.random.default_rng(rows)
    losses = (random.standard_normal(rows) * 10.0 ** random.integers(-20, 38, rows)).astype("f4")
    records = [*pair(16, Clock()), *pair(16, Clock())]
    for record, order in zip(records, (1, 1, -1, -1), strict=True):
        record.update(np.zeros(rows, np.int64), losses[::order])
    for record in records[1:]:
        assert_same_state(records[0], record)


def test_a_state_moves_between_engines() -> None:
    """What one engine recorded the other restores."""
    one, other = pair(100, Clock())
    one.update(np.arange(50), np.linspace(0, 1, 50))
    other.load_state_dict(one.state_dict())
    assert_same_state(one, other)
    assert_same_answers(one, other, np.arange(60))


def test_the_engine_is_numba_where_it_is_installed() -> None:
    """Numba is part of the tests' installation, so "auto" means it."""
    assert LossRecord(10).engine == "numba"
    assert LossRecord(10, engine="numpy").engine == "numpy"


def test_without_numba_the_engine_is_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then "auto" goes without; asking for numba says how to get it."""
    monkeypatch.delitem(sys.modules, "adasel_stream.record.numba_engine", raising=False)
    monkeypatch.delitem(sys.modules, "adasel_stream.record.kernels", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    record = LossRecord(10)
    record.update(ints(1), floats(0.5))
    assert (record.engine, record.lookup(ints(1)).losses.tolist()) == ("numpy", [0.5])
    with pytest.raises(ValueError, match=r"needs numba.* pip install 'adasel-stream\[fast\]'"):
        LossRecord(10, engine="numba")


@pytest.mark.slow
def test_numba_is_imported_by_a_record_that_computes_with_it_only() -> None:
    """Neither the package nor a record with the numpy engine imports it."""
    lines = (
        "import sys, adasel_stream; assert 'numba' not in sys.modules",
        "adasel_stream.LossRecord(10, engine='numpy'); assert 'numba' not in sys.modules",
        "adasel_stream.LossRecord(10); assert 'numba' in sys.modules",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
