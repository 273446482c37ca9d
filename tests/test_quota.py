from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream.quota import Quota, half_up
from tests import reference
from tests.strategies import VECTORS, rates


def test_half_up_follows_the_vector() -> None:
    """Neither banker's rounding nor flooring, at least one row of any batch that has some."""
    case = VECTORS["k_half_up"]
    got = [half_up(rows, rate) for rows, rate in case["inputs"]["pairs"]]
    assert got == case["expect"]["k"]
    assert half_up(0, 0.5) == VECTORS["empty_batch"]["expect"]["k"]


@given(rows=st.integers(0, 10_000), rate=rates())
def test_half_up_is_the_references(rows: int, rate: float) -> None:
    """The paper's rounding for any batch and rate."""
    assert half_up(rows, rate) == reference.number_selected(rows, rate)
    assert Quota(rate, whole_batches=True).take(rows) == reference.number_selected(rows, rate)


@given(batches=st.lists(st.integers(0, 300), max_size=200), rate=rates())
def test_the_long_run_rate_is_exact_to_one_sample(batches: list[int], rate: float) -> None:
    """After every batch of whatever size, and never more rows than a batch has."""
    quota, seen, taken = Quota(rate), 0, 0
    for rows in batches:
        grant = quota.take(rows)
        assert 0 <= grant <= rows
        due = reference.number_due(rate, seen, taken, rows)
        seen, taken = seen + rows, taken + grant
        assert abs(grant - due) <= (due != grant)  # at most a rounding of rate times seen apart
        assert abs(taken - rate * seen) < 1 + 1e-6


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.7, 0.29])
def test_a_decimal_rate_is_exact_after_a_million_batches(rate: float) -> None:
    """Rounding of a product of floats does not lose a sample, however long the stream."""
    quota = Quota(rate)
    quota.load_state_dict({"seen": 10**8, "granted": round(rate * 10**8)})
    taken = sum(quota.take(100) for _ in range(1000))
    assert taken == round(rate * 100_000)


@given(batches=st.lists(st.integers(0, 50), max_size=40), rate=rates(), cut=st.integers(0, 40))
def test_a_restored_quota_goes_on_as_if_undisturbed(
    batches: list[int], rate: float, cut: int
) -> None:
    """The state is all that the future depends on."""
    whole, first, second = Quota(rate), Quota(rate), Quota(rate)
    want = [whole.take(rows) for rows in batches]
    before = [first.take(rows) for rows in batches[:cut]]
    second.load_state_dict(first.state_dict())
    assert before + [second.take(rows) for rows in batches[cut:]] == want


@given(rate=rates(), start=st.integers(0, 10**15), batches=st.lists(st.integers(0, 10**6)))
def test_the_rate_is_exact_however_long_the_stream(
    rate: float, start: int, batches: list[int]
) -> None:
    """Whole numbers are counted, so no rounding grows with the samples seen."""
    share = Fraction(rate).limit_denominator(10**12)
    quota = Quota(rate)
    quota.load_state_dict({"seen": start, "granted": int(start * share)})
    taken = int(start * share) + sum(quota.take(rows) for rows in batches)
    assert 0 <= (start + sum(batches)) * share - taken < 1


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan"), float("inf")])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    """The message says what is allowed and what came."""
    with pytest.raises(ValueError, match=r"sampling_rate must be in \(0, 1\], got "):
        Quota(rate)


def test_a_rate_that_is_no_number_is_refused() -> None:
    """The message names its type."""
    rate: Any = "0.3"
    with pytest.raises(TypeError, match="sampling_rate must be a number, got str"):
        Quota(rate)
