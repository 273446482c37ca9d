import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream.trend import error_of, student, trend_of

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=40)


@given(values=VALUES)
def test_the_line_is_that_of_least_squares(values: list[float]) -> None:
    """Level and fall are those of numpy's fit of a polynomial."""
    rise, start = np.polyfit(np.arange(len(values)), values, 1)
    trend = trend_of(values)
    scale = max(1.0, *map(abs, values))
    assert trend.fall == pytest.approx(-rise, abs=1e-9 * scale)
    assert trend.level == pytest.approx(start + rise * (len(values) - 1) / 2, abs=1e-9 * scale)


@given(values=VALUES, factor=st.floats(0.1, 100), shift=st.floats(-100, 100))
def test_units_do_not_matter(values: list[float], factor: float, shift: float) -> None:
    """Scaled values have a scaled trend, and a shift moves the level alone."""
    trend, other = trend_of(values), trend_of([factor * value + shift for value in values])
    close = 1e-6 * factor * max(1.0, *map(abs, values)) + 1e-9
    assert other.fall == pytest.approx(factor * trend.fall, abs=close)
    assert other.level == pytest.approx(factor * trend.level + shift, abs=close)


@pytest.mark.parametrize(("correlation", "least"), [(0.0, 0.95), (0.4, 0.91), (0.7, 0.87)])
def test_two_errors_hold_the_true_fall(correlation: float, least: float) -> None:
    """In 95 % of series of 32 values, and in not much fewer where neighbours are alike."""
    random = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        noise = random.normal(size=32)
        for i in range(1, 32):
            noise[i] = correlation * noise[i - 1] + np.sqrt(1 - correlation**2) * noise[i]
        trend = trend_of((7 - 0.2 * np.arange(32) + noise).tolist())
        held.append(abs(trend.fall - 0.2) <= 2 * trend.error)
    assert np.mean(held) >= least


def test_without_correlation_the_error_is_the_textbook_one() -> None:
    """Leftovers that alternate leave it at s / √Σ(x - mean x)², with n - 2 degrees of freedom."""
    values = [3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0]
    x = np.arange(9) - 4.0
    s = np.sqrt(np.sum((np.array(values) - np.mean(values)) ** 2) / 7)  # the line is flat
    trend = trend_of(values)
    assert trend.fall == 0.0
    assert trend.error == pytest.approx(s / np.sqrt(x @ x))
    assert trend.error == pytest.approx(error_of(trend.noise, 9))


@pytest.mark.parametrize(
    ("t", "freedom", "probability"),
    [(1.345, 14, 0.90), (1.761, 14, 0.95), (2.624, 14, 0.99), (1.310, 30, 0.90), (2.457, 30, 0.99)],
)
def test_student_agrees_with_the_tables(t: float, freedom: int, probability: float) -> None:
    """Quantiles as printed, to within 0.001, and symmetric."""
    assert student(t, 1.0, freedom) == pytest.approx(probability, abs=1e-3)
    assert student(-2 * t, 2.0, freedom) == pytest.approx(1 - probability, abs=1e-3)


def test_without_an_error_there_is_no_doubt() -> None:
    """A margin of either sign is sure; none at all is no margin."""
    assert [student(margin, 0.0, 30) for margin in (-1e-9, 0.0, 1e-9)] == [0.0, 0.0, 1.0]
