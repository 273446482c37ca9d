from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream.spearman import jackknifed, rank_products, spearman

Floats = npt.NDArray[np.float64]

PAIRS = st.lists(
    st.tuples(st.integers(-3, 3), st.floats(-1e6, 1e6) | st.integers(0, 2), st.integers(1, 4)),
    min_size=1,
    max_size=20,
)


def plain(x: Floats, y: Floats) -> float:
    """Correlate average ranks, counted one by one; 0 where either is constant."""
    one, other = ([((v < u).sum() + ((v == u).sum() + 1) / 2) for u in v] for v in (x, y))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


@given(pairs=PAIRS)
def test_whole_weights_are_rows_that_come_again(pairs: list[tuple[float, float, int]]) -> None:
    """The same as the textbook's correlation of rows that are repeated, ties included."""
    x, y, weights = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    again = np.repeat(np.arange(len(x)), weights.astype(int))
    assert spearman(x, y, weights) == pytest.approx(plain(x[again], y[again]), abs=1e-9)


@given(pairs=PAIRS, unit=st.floats(1e-6, 1e6))
def test_only_ranks_and_shares_count(pairs: list[tuple[float, float, int]], unit: float) -> None:
    """Rising functions and the unit of the weights change nothing; a falling function turns it."""
    x, y, weights = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    before = spearman(x, y, weights)
    assert spearman(np.exp(x), np.cbrt(y), unit * weights) == pytest.approx(before, abs=1e-9)
    assert spearman(-x, y, weights) == pytest.approx(-before, abs=1e-9)
    assert spearman(y, x, weights) == pytest.approx(before, abs=1e-9)


@pytest.mark.parametrize("weights", [np.ones(40), np.linspace(0.1, 3.0, 40)])
def test_a_constant_says_nothing(weights: Floats) -> None:
    """A proxy that gives one value for all rows has a correlation of 0, not one of rounding."""
    x, y = np.full(40, 0.1), np.arange(40.0)
    assert spearman(x, y, weights) == 0
    assert jackknifed(np.array([rank_products(x, y, weights)] * 20)) == (0, 0, 0)


def population(seed: int, likeness: float) -> tuple[Floats, Floats]:
    """Make a proxy and losses of 20,000 rows, both skewed."""
    proxy, other = np.random.default_rng(seed).normal(size=(2, 20_000))
    return np.exp(proxy), np.exp(1.5 * (likeness * proxy + np.sqrt(1 - likeness**2) * other))


def by_proxy(proxy: Floats) -> Floats:
    """Prefer what the proxy says is large, and spread a fifth evenly."""
    chances: Floats = 0.8 * proxy / proxy.sum() + 0.2 / len(proxy)
    return chances


def by_rank(proxy: Floats) -> Floats:
    """Take little but the upper tenth."""
    top = proxy >= np.quantile(proxy, 0.9)
    chances: Floats = 0.8 * top / top.sum() + 0.2 / len(proxy)
    return chances


def drawn(proxy: Floats, chances: Floats, seed: int) -> tuple[npt.NDArray[np.bool_], Floats]:
    """Draw about 2,000 rows, each by its own lot; give which, and their 1/π."""
    pi = np.minimum(1.0, 2000 * chances)
    rows = np.random.default_rng(seed).random(len(proxy)) < pi
    return rows, 1 / pi[rows]


@pytest.mark.parametrize("likeness", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("prefer", [by_proxy, by_rank])
def test_weights_undo_what_selection_does(
    prefer: Callable[[Floats], Floats], likeness: float
) -> None:
    """The mean of 100 draws is that of all rows to within 0.01, and no draw is 0.2 away."""
    proxy, losses = population(0, likeness)
    truth = spearman(proxy, losses, np.ones(len(proxy)))
    found = []
    for seed in range(100):
        rows, weights = drawn(proxy, prefer(proxy), seed)
        found.append(spearman(proxy[rows], losses[rows], weights))
    assert np.mean(found) == pytest.approx(truth, abs=0.01)
    assert np.max(np.abs(np.array(found) - truth)) < 0.2


@pytest.mark.parametrize("prefer", [by_proxy, by_rank])
def test_without_weights_selection_shows_in_the_correlation(
    prefer: Callable[[Floats], Floats],
) -> None:
    """The plain correlation of the drawn rows is off by over 0.01, and far beyond its error."""
    proxy, losses = population(0, 0.7)
    truth = spearman(proxy, losses, np.ones(len(proxy)))
    plainly = []
    for seed in range(100):
        rows, _ = drawn(proxy, prefer(proxy), seed)
        plainly.append(spearman(proxy[rows], losses[rows], np.ones(rows.sum())))
    error = float(np.std(plainly)) / 10
    assert abs(float(np.mean(plainly)) - truth) > max(0.01, 5 * error)


@pytest.mark.parametrize(("rows", "bias"), [(16, 0.07), (64, 0.03), (256, 0.015)])
def test_batches_tell_the_correlation_within_them(rows: int, bias: float) -> None:
    """A little too low, the less so the larger they are; what batches differ in does not show."""
    proxy, losses = population(0, 0.7)
    chances, random = by_proxy(proxy), np.random.default_rng(0)
    sums = np.zeros((20, 3))
    for i in range(40_000 // rows):
        batch = random.choice(len(proxy), rows, p=chances)
        hour = random.normal() * 100
        sums[i % 20] += rank_products(proxy[batch] + hour, losses[batch] + hour, 1 / chances[batch])
    truth = spearman(proxy, losses, np.ones(len(proxy)))
    assert truth - bias < jackknifed(sums).value < truth + 0.01


@pytest.mark.parametrize("likeness", [0.0, 0.7])
@pytest.mark.parametrize("prefer", [by_proxy, by_rank])
def test_the_interval_holds_the_truth(prefer: Callable[[Floats], Floats], likeness: float) -> None:
    """In 85 % or more of 200 draws in 20 batches; it is not wider than it must be, either."""
    proxy, losses = population(1, likeness)
    truth = spearman(proxy, losses, np.ones(len(proxy)))
    held, widths, values = [], [], []
    for seed in range(200):
        rows, weights = drawn(proxy, prefer(proxy), seed)
        columns = (np.array_split(c, 20) for c in (proxy[rows], losses[rows], weights))
        products = [rank_products(*batch) for batch in zip(*columns, strict=True)]
        value, low, high = jackknifed(np.array(products))
        assert -1 <= low <= value <= high <= 1
        held.append(low <= truth <= high)
        widths.append(high - low)
        values.append(value)
    assert np.mean(held) >= 0.85
    assert np.mean(widths) < 1.3 * 4 * np.std(values)


def test_one_group_says_nothing() -> None:
    """Nobody knows how it would have been without it."""
    assert np.isnan(jackknifed(np.ones((1, 3)))).all()
    assert np.isnan(jackknifed(np.ones((0, 3)))).all()


def test_a_perfect_proxy_has_a_finite_interval() -> None:
    """Losses themselves: all three numbers are 1, to rounding."""
    losses = np.random.default_rng(0).gamma(1.0, size=(20, 50))
    products = np.array([rank_products(batch, batch, np.ones(50)) for batch in losses])
    assert jackknifed(products) == pytest.approx((1, 1, 1), abs=1e-6)
