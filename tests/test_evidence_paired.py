"""Statistics of the evidence, beside values that were worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.evidence.paired import (
    Difference,
    mean_of,
    paired,
    ranks,
    share_closed,
    value_at,
)


def test_mean_and_error_are_those_of_a_hand() -> None:
    """Of 2, 4, 4, 6 the mean is 4, the variance 8/3, the error its root over 2."""
    mean = mean_of([2.0, 4.0, 4.0, 6.0])
    assert mean.value == 4
    assert mean.error == pytest.approx(math.sqrt(8 / 3) / 2)


def test_one_run_has_no_error() -> None:
    """A single seed gives a mean and no claim about how sure it is."""
    assert mean_of([3.0]).value == 3
    assert math.isnan(mean_of([3.0]).error)


def test_a_diverged_run_is_not_averaged_away() -> None:
    """One NaN among good values leaves no mean that looks good."""
    assert math.isnan(mean_of([1.0, math.nan, 1.0]).value)


def test_paired_difference_is_that_of_a_hand() -> None:
    """Differences of 1, 2 and 6 have mean 3, variance 7 and error √(7/3)."""
    difference = paired({0: 5, 1: 7, 2: 9}, {0: 4, 1: 5, 2: 3}, higher=True)
    assert difference.value == 3
    assert difference.error == pytest.approx(math.sqrt(7 / 3))
    assert difference.in_errors == pytest.approx(3 / math.sqrt(7 / 3))


def test_pairing_takes_out_what_seeds_share() -> None:
    """Seeds that differ a lot, and a contestant that is always a little better: it is seen."""
    other = {0: 10.0, 1: 50.0, 2: 90.0}
    one = {0: 11.0, 1: 51.5, 2: 90.5}
    assert paired(one, other, higher=True).in_errors > 3
    assert mean_of(one.values()).error > 20


def test_lower_is_better_turns_the_sign() -> None:
    """A loss that is lower by 1 is a difference of plus 1."""
    assert paired({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0}, higher=False).value == 1


def test_only_common_seeds_count() -> None:
    """A seed that is missing on one side is not compared."""
    difference = paired({0: 2.0, 5: 4.0, 9: 100.0}, {0: 1.0, 1: 1.0, 5: 3.0}, higher=True)
    assert difference == Difference(1.0, 0.0, 2)


@pytest.mark.parametrize("higher", [True, False])
def test_who_diverges_loses(higher: bool) -> None:
    """A diverged run makes its contestant infinitely worse, whichever way is better."""
    bad, good = {0: math.nan, 1: 1.0}, {0: 1.0, 1: 1.0}
    assert paired(bad, good, higher=higher).in_errors == -math.inf
    assert paired(good, bad, higher=higher).in_errors == math.inf
    assert not paired(bad, good, higher=higher).at_least(-2)


def test_nothing_is_claimed_of_one_seed() -> None:
    """One seed proves neither better nor not worse."""
    difference = paired({0: 2.0}, {0: 1.0}, higher=True)
    assert not difference.at_least(2)
    assert not difference.at_least(-2)


def test_the_same_difference_everywhere_is_sure() -> None:
    """Without any spread a difference is as sure as can be; without a difference it is none."""
    same = {0: 1.0, 1: 2.0}
    assert paired({0: 2.0, 1: 3.0}, same, higher=True).in_errors == math.inf
    assert paired(same, same, higher=True).in_errors == 0


def test_ranks_are_those_of_a_hand() -> None:
    """Ties share their ranks' average, and a diverged contestant comes last."""
    values = {"a": 0.3, "b": 0.1, "c": 0.3, "d": math.inf, "e": 0.2}
    assert ranks(values, higher=False) == {"a": 3.5, "b": 1, "c": 3.5, "d": 5, "e": 2}


@given(
    st.dictionaries(st.text(max_size=3), st.integers(-3, 3).map(float), min_size=1), st.booleans()
)
def test_ranks_share_out_all_places(values: dict[str, float], higher: bool) -> None:
    """The ranks of n contestants sum to n(n+1)/2, and a better value never ranks lower."""
    places = ranks(values, higher=higher)
    count = len(values)
    assert sum(places.values()) == count * (count + 1) / 2
    for one in values:
        for other in values:
            better = values[one] > values[other] if higher else values[one] < values[other]
            assert (places[one] < places[other]) == better


def test_gap_closed_reads_either_way() -> None:
    """Half-way from uniform to full is a half, for accuracies and for losses."""
    assert share_closed(85, uniform=80, full=90) == 0.5
    assert share_closed(0.3, uniform=0.4, full=0.2) == pytest.approx(0.5)
    assert share_closed(0.5, uniform=0.4, full=0.2) == pytest.approx(-0.5)
    assert math.isnan(share_closed(1, uniform=2, full=2))


def test_values_are_read_off_between_points_only() -> None:
    """Between two times the line over the logarithm counts, outside the nearest point."""
    points = [(8.0, 3.0), (1.0, 0.0), (2.0, 1.0)]
    assert value_at(points, 4.0) == pytest.approx(2)
    assert value_at(points, 0.5) == 0
    assert value_at(points, 100) == 3
