import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream.staleness import AGE_BOUNDS_S, Staleness

FINITE = st.floats(-1e6, 1e6, width=32)


def ages(age_s: float, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Give one age to many rows."""
    return np.full(count, age_s, np.float32)


def taught(slope: float, shift: float, age_s: float, *, noise: float = 0.0) -> Staleness:
    """Show pairs of recorded and fresh losses that lie about a line in asinh."""
    random = np.random.default_rng(0)
    x = random.uniform(0, 2, 5000)
    y = shift + slope * x + noise * random.normal(size=5000)
    staleness = Staleness()
    for part in np.split(np.arange(5000), 50):
        staleness.learn(np.sinh(x[part]), ages(age_s, 100), np.sinh(y[part]))
    return staleness


@given(losses=st.lists(FINITE, max_size=20), age_s=st.floats(0, 1e7))
def test_without_evidence_losses_stand_to_the_last_bit(losses: list[float], age_s: float) -> None:
    """A record that nothing is known of is taken at its word."""
    recorded = np.array(losses, np.float32)
    corrected = Staleness().correct(recorded, ages(age_s, len(losses)))
    assert corrected.tobytes() == recorded.tobytes()


def test_the_line_that_fresh_losses_follow_is_found() -> None:
    """Half the slope and a shift are what the corrected losses show."""
    x = np.linspace(0.1, 1.9, 30)
    corrected = taught(0.5, 0.3, 30.0).correct(np.sinh(x), ages(30.0, 30))
    np.testing.assert_allclose(np.arcsinh(corrected), 0.3 + 0.5 * x, rtol=1e-5)


def test_losses_that_say_nothing_any_more_become_the_average() -> None:
    """Pure noise has no slope: nothing is preferred by it."""
    corrected = taught(0.0, 1.0, 30.0, noise=0.2).correct(np.array([0.1, 3.0]), ages(30.0, 2))
    assert abs(corrected[1] - corrected[0]) < 0.1


@pytest.mark.parametrize(("slope", "bounded"), [(-1.0, 0.0), (3.0, 1.0)])
def test_slopes_are_bounded(slope: float, bounded: float) -> None:
    """A record neither turns preferences around nor makes more of them than it was told."""
    staleness = taught(slope, 4.0, 30.0)
    low, high = np.arcsinh(staleness.correct(np.sinh([0.5, 1.5]), ages(30.0, 2)))
    assert high - low == pytest.approx(bounded, abs=1e-3)


def test_each_age_has_a_line_of_its_own() -> None:
    """What is learnt of hours says nothing of minutes."""
    staleness = taught(0.0, 0.0, 5000.0)
    recorded = np.array([1.5, 2.5])
    assert staleness.correct(recorded, ages(30.0, 2)).tolist() == recorded.tolist()
    assert staleness.correct(recorded, ages(5000.0, 2)).tolist() != recorded.tolist()
    reliability = staleness.reliability
    assert len(reliability) == len(AGE_BOUNDS_S) + 1
    assert [i for i, r in enumerate(reliability) if r is not None] == []


def test_reliability_is_the_correlation() -> None:
    """It is 1 where the record is as good as a fresh loss, and lower with noise."""
    reliability = taught(1.0, 0.0, 30.0, noise=0.5).reliability[2]
    spread = np.random.default_rng(0).uniform(0, 2, 5000).std()
    assert reliability == pytest.approx(spread / np.hypot(spread, 0.5), abs=0.03)
    assert taught(0.4, 0.1, 30.0).reliability[2] == pytest.approx(1.0)


def test_it_follows_what_changes() -> None:
    """Some ten thousand comparisons later the old ones have faded."""
    staleness = taught(1.0, 0.0, 30.0)
    x = np.linspace(0.1, 1.9, 1000)
    for _ in range(60):
        staleness.learn(np.sinh(x), ages(30.0, 1000), np.sinh(0.25 * x))
    slope = np.diff(np.arcsinh(staleness.correct(np.sinh([0.5, 1.5]), ages(30.0, 2))))
    assert slope[0] == pytest.approx(0.25, abs=0.02)


def test_rows_without_two_finite_losses_say_nothing() -> None:
    """NaN marks a row that was not recorded, and a diverged loss teaches nothing."""
    staleness = Staleness()
    recorded = np.tile(np.array([np.nan, 1.0, np.inf, 2.0]), 100)
    fresh = np.tile(np.array([1.0, np.nan, 1.0, np.inf]), 100)
    staleness.learn(recorded, ages(5.0, 400), fresh)
    assert staleness.state_dict() == Staleness().state_dict()


def test_a_huge_loss_does_not_spoil_it() -> None:
    """One outlier of 1e30 among thousands moves the line a little, and nothing overflows."""
    staleness = taught(1.0, 0.0, 30.0)
    staleness.learn(np.array([1e30]), ages(30.0, 1), np.array([1e30]))
    corrected = staleness.correct(np.array([0.5, 1.0, 3e38]), ages(30.0, 3))
    assert np.isfinite(corrected).all()
    np.testing.assert_allclose(corrected[:2], [0.5, 1.0], rtol=0.05)


def test_its_state_goes_on() -> None:
    """What one learnt the other knows."""
    one, other = taught(0.5, 0.2, 100.0, noise=0.1), Staleness()
    other.load_state_dict(one.state_dict())
    recorded = np.linspace(0, 3, 9, dtype=np.float32)
    first, second = (each.correct(recorded, ages(100.0, 9)) for each in (one, other))
    assert first.tobytes() == second.tobytes()
