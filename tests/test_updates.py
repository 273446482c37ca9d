from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream.last_layer import LastLayer, gradient_norms
from adasel_stream.loss_batch import LossBatch, Preference
from adasel_stream.selection import Feedback, State
from adasel_stream.updates import (
    EVERY,
    Learn,
    Update,
    alignment,
    foreseen_variance,
    loss_ratio,
    mixed,
    progress,
    variance,
)
from tests import reference
from tests.candidates import DTYPES, close
from tests.strategies import VECTORS, Array, array, method_losses, rows_of, seeds

EQ3 = ("eq3_beta_1.0", "eq3_beta_-0.5", "eq3_beta_0.0", "eq3_literal_batch_loss")
UPDATES = pytest.mark.parametrize("update", [loss_ratio, progress])


def state_of(log_weights: Array, before: Array, dtype: torch.dtype = torch.float64) -> State:
    """A state with these log weights and method losses."""
    blank = State.initial(len(log_weights), dtype=dtype)
    weights, losses = (torch.from_numpy(column).to(dtype) for column in (log_weights, before))
    return replace(blank, log_weights=weights, method_losses=losses)


def feedback_of(
    fresh: Array, alphas: Array, p: Array, pi: Array, dtype: torch.dtype, valid: Array | None = None
) -> Feedback:
    """Fresh losses of rows with the chances they had; alphas of shape (B, M)."""
    losses, importances, probabilities, inclusions = (
        torch.from_numpy(column).to(dtype) for column in (fresh, alphas, p, pi)
    )
    counts = torch.ones(len(fresh), dtype=torch.bool) if valid is None else torch.tensor(valid > 0)
    return Feedback(losses, importances, probabilities, inclusions, counts)


@DTYPES
@pytest.mark.parametrize("name", EQ3)
def test_loss_ratio_follows_the_vectors(name: str, dtype: torch.dtype) -> None:
    """Eq. (3) on log weights, renormalised."""
    inputs, expect = VECTORS[name]["inputs"], VECTORS[name]["expect"]
    state = state_of(np.log(array(inputs["w_prev"])), array(inputs["prev"]), dtype)
    after = loss_ratio(state, torch.tensor(inputs["now"], dtype=dtype), beta=inputs["beta"])
    close(after.log_weights.exp(), expect["w_normalised"])


@DTYPES
def test_variance_follows_the_vector(dtype: torch.dtype) -> None:
    """The gain of fresh squared gradients; the floor enters only the weights in use."""
    case = VECTORS["variance_feedback_update"]
    inputs, expect, rows = case["inputs"], case["expect"], case["inputs"]["selected"]
    state = state_of(array(inputs["w_log"]), array([1, 1, 1]), dtype)
    alphas = array(inputs["alpha"]).T[rows]
    fresh, p, pi = np.sqrt(inputs["fresh_sq"]), array(expect["p"])[rows], array(expect["pi"])[rows]
    after = variance(state, feedback_of(fresh, alphas, p, pi, dtype))
    close(after.log_weights, expect["w_log"])
    close(mixed(after.log_weights, inputs["params"]["floor"]), expect["w"])


@DTYPES
def test_floor_is_hedges_fixed_share(dtype: torch.dtype) -> None:
    """The published mixing of a share of 1/M each."""
    inputs, expect = VECTORS["hedge_fixed_share"]["inputs"], VECTORS["hedge_fixed_share"]["expect"]
    log_weights = np.log(inputs["w_prev"]) + inputs["eta"] * array(inputs["rewards"])
    close(mixed(torch.from_numpy(log_weights).to(dtype), inputs["share"] / 4), expect["w"])


@given(
    steps=st.lists(method_losses(3), min_size=1, max_size=8),
    beta=st.sampled_from([-1.0, -0.3, 0.5, 1.0]),
)
def test_loss_ratio_is_the_references(steps: list[Array], beta: float) -> None:
    """Over several steps, from the first, with losses near zero, negative and huge."""
    state, log_weights = State.initial(3, dtype=torch.float64), np.full(3, -np.log(3))
    before = np.full(3, np.nan)
    for now in steps:
        state = loss_ratio(state, torch.from_numpy(now), beta=beta)
        state = replace(state, method_losses=torch.from_numpy(now))
        log_weights, before = reference.eq3(log_weights, before, now, beta), now
        np.testing.assert_allclose(state.log_weights, log_weights, rtol=1e-9, atol=1e-9)


@given(steps=st.lists(rows_of(st.floats(-10, 10), 3, 3), min_size=1, max_size=8))
def test_progress_is_the_references(steps: list[Array]) -> None:
    """Over several steps, from the first, on which no weight moves."""
    state, log_weights = State.initial(3, dtype=torch.float64), np.full(3, -np.log(3))
    average, square = np.full(3, np.nan), np.zeros(3)
    for now in steps:
        state = progress(state, torch.from_numpy(now))
        log_weights, average, square = reference.progress_update(log_weights, average, square, now)
        np.testing.assert_allclose(state.log_weights, log_weights, rtol=1e-8, atol=1e-8)


@given(fresh=rows_of(st.floats(-5, 5, width=16), 1, 20), seed=seeds())
def test_variance_is_the_references(fresh: Array, seed: int) -> None:
    """For any rows with any chances; without a gradient the weights only forget."""
    random = np.random.default_rng(seed)
    alphas, p = random.random((4, len(fresh))), random.uniform(0.01, 0.2, len(fresh))
    pi, log_weights = random.uniform(0.05, 1, len(fresh)), random.normal(size=4)
    gain = reference.variance_gain(alphas, p, pi, np.arange(len(fresh)), fresh**2)
    told = feedback_of(fresh, alphas.T, p, pi, torch.float64)
    after = variance(state_of(log_weights, log_weights), told)
    want = reference.variance_update(log_weights, gain)
    np.testing.assert_allclose(after.log_weights, want, rtol=1e-8, atol=1e-10)


def test_rows_that_do_not_count_teach_nothing() -> None:
    """A void row's loss, chances and importances may be anything."""
    alphas, ones = array([[0.7, 0.3], [0.2, 0.8], [0.9, 0.1]]), np.ones(3)
    fresh, p = array([1, 2, np.nan]), array([0.3, 0.5, 0.0])
    state = State.initial(2, dtype=torch.float64)
    want = variance(state, feedback_of(fresh[:2], alphas[:2], p[:2], ones[:2], torch.float64))
    told = feedback_of(fresh, alphas, p, 0 * ones + [1, 1, 0], torch.float64, array([1, 1, 0]))
    torch.testing.assert_close(variance(state, told).log_weights, want.log_weights)
    void = feedback_of(fresh, alphas, p, ones, torch.float64, np.zeros(3))
    torch.testing.assert_close(variance(state, void).log_weights, 0.995 * state.log_weights)


@UPDATES
def test_the_first_batch_moves_no_weight(update: Update) -> None:
    """There is nothing to compare it with."""
    after = update(State.initial(3), torch.tensor([1.0, 50.0, -3.0]))
    assert mixed(after.log_weights, 0.0).tolist() == pytest.approx([1 / 3] * 3)


@UPDATES
@given(steps=st.lists(method_losses(2), min_size=1, max_size=10))
def test_huge_losses_leave_finite_weights_that_still_learn(
    update: Update, steps: list[Array]
) -> None:
    """After losses of 1e30 in float32 the weights move again as losses do."""
    state = State.initial(2)
    for now in (*steps, array([1e30, 1.0]), array([1.0, 1.0])):
        state = update(state, torch.from_numpy(now).float())
        state = replace(state, method_losses=torch.from_numpy(now).float())
        assert torch.isfinite(state.log_weights).all()
    if update is progress:
        assert torch.isfinite(state.trend).all()


@given(steps=st.lists(method_losses(3), min_size=1, max_size=6))
def test_no_method_falls_below_the_floor(steps: list[Array]) -> None:
    """However one-sided the losses are, each method keeps its share."""
    state = State.initial(3)
    for now in steps:
        state = loss_ratio(state, torch.from_numpy(now).float(), beta=1.0)
        state = replace(state, method_losses=torch.from_numpy(now).float())
        weights = mixed(state.log_weights, 0.02)
        assert float(weights.min()) >= 0.02 * (1 - 1e-5)
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_progress_does_not_drift_on_a_stationary_stream() -> None:
    """Noise of any size pushes no weight for ever, where Eq. (3) goes one-hot."""
    random = np.random.default_rng(3)
    steady, ratio = State.initial(2), State.initial(2)
    for _ in range(3000):
        now = torch.from_numpy(random.exponential(size=2) * [0.1, 1.0] + [1.0, 0.5]).float()
        steady = progress(steady, now)
        ratio = replace(loss_ratio(ratio, now), method_losses=now)
    assert float(mixed(steady.log_weights, 0.0).min()) > 0.2
    assert float(mixed(ratio.log_weights, 0.0).min()) < 1e-6


def noisy_feedback(seed: int) -> Feedback:
    """Fresh losses of sixteen rows, heavy-tailed."""
    random = np.random.default_rng(seed)
    fresh, p = random.standard_cauchy(16), random.uniform(0.01, 0.2, 16)
    return feedback_of(fresh, random.random((16, 3)), p, np.minimum(1, 8 * p), torch.float32)


def noisy_losses(seed: int) -> torch.Tensor:
    """Method losses of one batch, heavy-tailed."""
    return torch.from_numpy(np.random.default_rng(seed).lognormal(size=3)).float()


FEEDBACKS = [noisy_feedback(seed) for seed in range(64)]
LOSSES = [noisy_losses(seed) for seed in range(997)]


def by_losses(state: State, t: int, update: Update) -> State:
    """One update from losses with a heavy tail."""
    now = LOSSES[t % len(LOSSES)]
    return replace(update(state, now), method_losses=now)


def by_feedback(state: State, t: int, learn: Learn) -> State:
    """One update from fresh losses."""
    return learn(state, FEEDBACKS[t % len(FEEDBACKS)])


ENDLESS = pytest.mark.parametrize(
    "update",
    [
        partial(by_losses, update=partial(loss_ratio, beta=1.0)),
        partial(by_losses, update=progress),
        partial(by_feedback, learn=variance),
    ],
    ids=["loss_ratio", "progress", "variance"],
)


def stays_sound(steps: int, update: Callable[[State, int], State]) -> None:
    """Log weights stay finite, weights sum to one, none is lost under a floor."""
    state = State.initial(3)
    for t in range(steps):
        state = update(state, t)
    assert torch.isfinite(state.log_weights).all()
    assert float(mixed(state.log_weights, 0.0).sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(mixed(state.log_weights, 0.02).min()) >= 0.02 * (1 - 1e-5)


@ENDLESS
@pytest.mark.slow
def test_log_weights_are_sound_after_ten_thousand_steps(
    update: Callable[[State, int], State],
) -> None:
    """The printed product would have underflowed long before."""
    stays_sound(10_000, update)


@ENDLESS
@pytest.mark.verify
def test_log_weights_are_sound_after_a_hundred_thousand_steps(
    update: Callable[[State, int], State],
) -> None:
    """The same promise ten times as long."""
    stays_sound(100_000, update)


def seen_batch(seed: int, b: int = 12) -> tuple[LossBatch, list[Preference], torch.Tensor]:
    """Candidates with their last layer, preferences of three methods, and importances."""
    random = torch.Generator().manual_seed(seed)
    last = LastLayer(*(torch.randn(b, n, generator=random).double() for n in (3, 4)))
    losses = torch.rand(b, generator=random).double()
    batch = LossBatch(losses, last_layer=last, gradient_norms=gradient_norms(last).double())
    values = torch.rand(3, b, generator=random).double()
    wanted = [Preference(lambda own=own: own) for own in values]  # type: ignore[misc] # bound now
    return batch, wanted, values / values.sum(1, keepdim=True)


@pytest.mark.parametrize("seed", range(5))
def test_foreseen_variance_follows_the_slope_of_the_variance(seed: int) -> None:
    """Against the derivative of b Σ g²/p in the mixture's weights, by differences; none between."""
    batch, wanted, importances = seen_batch(seed)
    exploration, floor = 0.2, 0.02
    state = replace(
        State.initial(3, dtype=torch.float64),
        log_weights=torch.tensor([0.3, -0.5, 0.1]).double(),
    )
    after = foreseen_variance(
        state, importances, wanted, batch, 4, exploration=exploration, floor=floor
    )
    assert batch.gradient_norms is not None
    g2, alphas = batch.gradient_norms.numpy() ** 2, importances.numpy()
    w = np.exp(state.log_weights.numpy())
    w = w / w.sum() * (1 - 3 * floor) + floor
    even = exploration / len(g2)

    def noise(weights: Array) -> float:
        return float((g2 / ((1 - exploration) * weights @ alphas + even)).sum())

    slopes = [-(noise(w + step) - noise(w - step)) / 2e-6 for step in 1e-6 * np.eye(3)]
    # the slope along a method over the variance itself, as if all of the draw were its own
    gains = np.array(slopes) / (1 - exploration) / noise(w)
    expected = (1 - EVERY * 0.005) * state.log_weights.numpy() + EVERY * 0.1 * (
        gains.clip(0, 5) - 1
    )
    np.testing.assert_allclose(after.log_weights.numpy(), expected, rtol=1e-4)
    for step in range(1, EVERY):
        later = replace(state, step=step)
        between = foreseen_variance(
            later, importances, wanted, batch, 4, exploration=exploration, floor=floor
        )
        assert between is later


@pytest.mark.parametrize("seed", range(5))
def test_alignment_adds_the_cosine_of_what_a_method_would_choose(seed: int) -> None:
    """Against gradients of every row, e [h, 1]ᵀ, written out; none between two updates."""
    batch, wanted, importances = seen_batch(seed)
    state = replace(
        State.initial(3, dtype=torch.float64), log_weights=torch.tensor([0.3, -0.5, 0.1]).double()
    )
    after = alignment(state, importances, wanted, batch, 4)
    assert batch.last_layer is not None
    e, h = (part.numpy() for part in (batch.last_layer.residuals, batch.last_layer.features))
    gradients = np.einsum("bc,bh->bch", e, np.concatenate([h, np.ones((len(h), 1))], 1))
    whole = gradients.mean(0)
    cosines = []
    for own in wanted:
        rows = np.argsort(-own.values().numpy())[:4]
        mine = gradients[rows].mean(0)
        cosines.append((mine * whole).sum() / np.linalg.norm(mine) / np.linalg.norm(whole))
    expected = 0.95 * state.log_weights.numpy() + 0.5 * np.array(cosines)
    np.testing.assert_allclose(after.log_weights.numpy(), expected, rtol=1e-4, atol=1e-6)
    later = replace(state, step=3)
    assert alignment(later, importances, wanted, batch, 4) is later
