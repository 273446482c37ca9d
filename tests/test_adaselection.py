from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream import importances, policies
from adasel_stream.adaselection import Policy, curriculum, log_scores, step
from adasel_stream.draw import top
from adasel_stream.errors import MethodError
from adasel_stream.loss_batch import LossBatch
from adasel_stream.methods import resolve_methods
from adasel_stream.selection import Selection, State
from tests import reference
from tests.candidates import DTYPES, close, finite_part, generator, of_vector, offered
from tests.strategies import (
    METHODS,
    VECTORS,
    Array,
    any_losses,
    array,
    distinct_losses,
    rows_of,
    seeds,
    tame_losses,
)

PAPERS = resolve_methods(METHODS)

POLICIES = pytest.mark.parametrize("policy", [policies.paper(), policies.unbiased()])


def choose(
    losses: Tensor, policy: Policy, k: int, seed: int = 0, state: State | None = None
) -> tuple[State, Selection]:
    """One step with the methods that need losses only."""
    methods = resolve_methods(["uniform", "big_loss", "small_loss", "coresets_1", "coresets_2"])
    noise = torch.randn(losses.shape, generator=generator(seed), dtype=losses.dtype)
    batch = LossBatch.of(losses, noise=noise if policy.noisy else None)
    state = state or State.initial(len(methods), dtype=losses.dtype)
    return step(state, batch, k, methods, policy, generator(seed))


@DTYPES
@pytest.mark.parametrize("kind", ["literal", "prose"])
@pytest.mark.parametrize("t", [1, 10, 1000])
def test_rewards_and_log_scores_follow_the_vectors(kind: str, t: int, dtype: torch.dtype) -> None:
    """Eq. (4) under both exponents, mixed in by Eq. (5)."""
    case = VECTORS[f"cl_{kind}_t{t}"]
    inputs, expect = case["inputs"], case["expect"]
    batch, preferences = of_vector(inputs, dtype)
    log_reward = curriculum(inputs["cl_exponent"])(batch.losses, t)
    alphas = importances.softmax(preferences, batch, 2)
    scores = log_scores(alphas, torch.tensor(inputs["w"], dtype=dtype), log_reward, batch)
    close(log_reward, expect["log_reward"])
    close(scores, expect["log_score"])
    assert top(scores, batch, 2).indices.tolist() == expect["chosen"]


@DTYPES
def test_zero_losses_are_all_alike(dtype: torch.dtype) -> None:
    """Even importances, reward one, the lower index chosen."""
    inputs, expect = VECTORS["zero_losses"]["inputs"], VECTORS["zero_losses"]["expect"]
    batch, preferences = of_vector(inputs, dtype)
    alphas = importances.softmax(preferences, batch, 2)
    log_reward = curriculum(inputs["cl_exponent"])(batch.losses, inputs["t"])
    scores = log_scores(alphas, torch.full((4,), 0.25, dtype=dtype), log_reward, batch)
    close(alphas, [expect["alpha_row"]] * 4)
    close(scores.exp(), expect["score"])
    assert top(scores, batch, 2).indices.tolist() == expect["chosen"]
    assert log_reward.tolist() == [*VECTORS["cl_zero_losses"]["expect"]["log_reward"], 0.0]


@POLICIES
def test_a_batch_of_one_and_rate_one_are_chosen_whole(policy: Policy) -> None:
    """Every row, each with weight one."""
    for name, key in (("batch_of_one", "chosen"), ("rate_one", "chosen_sorted")):
        case = VECTORS[name]
        _, selection = choose(torch.tensor(case["inputs"]["losses"]), policy, case["expect"]["k"])
        assert sorted(selection.indices.tolist()) == case["expect"][key]
        assert selection.weights.tolist() == pytest.approx([1.0] * case["expect"]["k"])


@pytest.mark.slow
@given(
    batches=st.lists(distinct_losses(4), min_size=1, max_size=5),
    seed=seeds(),
    beta=st.sampled_from([-1.0, 0.5, 1.0]),
    exponent=st.sampled_from([None, -0.25, 0.25]),
)
def test_paper_steps_are_the_references(
    batches: list[Array], seed: int, beta: float, exponent: float | None
) -> None:
    """Weights, method losses and choices agree over several batches."""
    policy = policies.paper(beta=beta, curriculum_exponent=exponent)
    state = State.initial(len(PAPERS), dtype=torch.float64)
    log_weights, before = (
        np.full(len(PAPERS), -np.log(len(PAPERS))),
        np.full(len(PAPERS), np.nan),
    )
    for t, losses in enumerate(batches, start=1):
        batch = offered(losses, seed=seed + t)
        _, known = finite_part(losses, batch)
        k = reference.number_selected(len(losses), 0.3)
        state, selection = step(state, batch, k, PAPERS, policy)
        alphas = array([reference.importances("softmax", m, known, k) for m in PAPERS])
        now = array([losses[reference.picks(m, known, k)].mean() for m in PAPERS])
        log_weights, before = reference.eq3(log_weights, before, now, beta), now
        want = reference.eq5(reference.eq4(losses, t, exponent), np.exp(log_weights), alphas)
        close(selection.method_weights, np.exp(log_weights), 1e-7)
        close(selection.method_losses, now, 1e-9)
        best = np.sort(want)[::-1][:k]
        np.testing.assert_allclose(want[selection.indices], best, rtol=1e-7, atol=1e-9)
        assert state.step == t


@given(losses=distinct_losses(2), seed=seeds(), share=st.floats(0, 1))
def test_unbiased_steps_are_the_references(losses: Array, seed: int, share: float) -> None:
    """The chances of the chosen rows are those of the reference's mixture."""
    losses = losses**3 + losses  # parts rows that are equally far from the mean but for rounding
    k = max(1, round(share * len(losses)))
    batch = replace(offered(losses, seed=seed), noise=None)
    state = replace(State.initial(3, dtype=torch.float64), log_weights=torch.arange(3.0).double())
    names = ["big_loss", "small_loss", "coresets_2"]
    _, selection = step(
        state, batch, k, resolve_methods(names), policies.unbiased(), generator(seed)
    )
    known = reference.Candidates(losses, losses, losses)
    alphas = array([reference.importances("rank", name, known, k) for name in names])
    weights = reference.with_floor(array([0, 1, 2]), 0.02)
    p = reference.proposal(np.log(weights @ alphas), 0.2)
    rows = selection.indices.numpy()
    close(selection.method_weights, weights)
    close(selection.probabilities, p[rows], 1e-7)
    close(selection.weights, reference.importance_weights(reference.inclusion(p, k), rows), 1e-7)
    close(selection.importances, alphas.T[rows], 1e-7)
    np.testing.assert_allclose(selection.method_losses, alphas @ losses, rtol=1e-7, atol=1e-12)


@POLICIES
@DTYPES
@given(losses=any_losses(1), seed=seeds(), share=st.floats(0, 1))
def test_rows_that_are_not_finite_are_never_selected(
    policy: Policy, dtype: torch.dtype, losses: Array, seed: int, share: float
) -> None:
    """Whatever comes in, what is chosen is finite and distinct, and all weights stay finite."""
    k = max(1, round(share * len(losses)))
    state, selection = choose(torch.from_numpy(losses).to(dtype), policy, k, seed)
    rows = reference.finite_rows(losses)
    filled = selection.indices[: min(k, len(rows))].tolist()
    assert selection.indices.shape == (k,)
    assert len(set(filled)) == len(filled)
    assert set(filled) <= set(rows)
    assert selection.valid is not None
    assert selection.valid.tolist() == [slot < len(rows) for slot in range(k)]
    for values in (selection.weights, selection.method_weights, selection.method_losses):
        assert torch.isfinite(values).all()
    assert torch.isfinite(state.log_weights).all()


@POLICIES
def test_a_batch_without_a_finite_row_leaves_the_weights_as_they_were(
    policy: Policy,
) -> None:
    """All NaN: nothing is chosen, nothing is learnt, and the next batch goes on from before."""
    state, _ = choose(torch.tensor([1.0, 2.0, 3.0, 4.0]), policy, 2)
    after, selection = choose(torch.full((4,), torch.nan), policy, 2, state=state)
    assert selection.valid is not None
    assert not selection.valid.any()
    assert torch.equal(after.log_weights, state.log_weights)
    assert torch.equal(after.method_losses, state.method_losses)
    assert torch.equal(after.trend.nan_to_num(-1), state.trend.nan_to_num(-1))


@given(losses=distinct_losses(2), factor=st.sampled_from([1e-3, 7.0, 1e6]), seed=seeds())
def test_rank_selection_does_not_depend_on_the_scale_of_losses(
    losses: Array, factor: float, seed: int
) -> None:
    """The production policy chooses the same rows whatever the unit of the loss."""
    methods = resolve_methods(["uniform", "big_loss", "small_loss", "coresets_1"])
    chosen, k = [], (len(losses) + 2) // 3
    for row in (losses, losses * factor):
        batch, state = LossBatch(torch.from_numpy(row)), State.initial(4, dtype=torch.float64)
        _, selection = step(state, batch, k, methods, policies.unbiased(), generator(seed))
        chosen.append(selection.indices.tolist())
    assert chosen[0] == chosen[1]


@given(losses=distinct_losses(2), seed=seeds())
def test_the_papers_choice_goes_with_the_rows(losses: Array, seed: int) -> None:
    """Shuffled candidates are the same candidates."""
    moved = np.random.default_rng(seed).permutation(len(losses))
    methods, state = resolve_methods(["big_loss", "coresets_1"]), State.initial(2)
    k = (len(losses) + 2) // 3
    chosen = [
        step(state, LossBatch(torch.from_numpy(row)), k, methods, policies.paper())[1].indices
        for row in (losses, losses[moved])
    ]
    assert chosen[0].tolist() == moved[chosen[1].numpy()].tolist()


@given(losses=rows_of(st.floats(-1e30, 1e30), 1), t=st.integers(1, 10**9))
def test_rewards_are_finite_for_any_losses(losses: Array, t: int) -> None:
    """Tiny, huge and negative losses, early and late."""
    for exponent in (-1.0, -0.3, 0.3):
        for dtype in (torch.float32, torch.float64):
            reward = curriculum(exponent)(torch.from_numpy(losses).to(dtype), t)
            assert torch.isfinite(reward).all()


@POLICIES
@given(losses=tame_losses(1), seed=seeds())
def test_step_changes_none_of_its_inputs(policy: Policy, losses: Array, seed: int) -> None:
    """State and losses are as before, and the same call gives the same answer."""
    given_losses = torch.from_numpy(losses)
    kept, state = given_losses.clone(), State.initial(5, dtype=torch.float64)
    fields = [state.log_weights, state.method_losses, state.trend]
    before = [field.clone() for field in fields]
    first = choose(given_losses, policy, 1, seed, state)[1]
    again = choose(given_losses, policy, 1, seed, state)[1]
    assert torch.equal(given_losses, kept)
    for old, new in zip(before, fields, strict=True):
        assert torch.equal(old.nan_to_num(), new.nan_to_num())
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.weights, again.weights)


def near_one(batch: LossBatch) -> Tensor:
    """A user's method: the losses closest to one."""
    return -(batch.losses - 1).abs()


def test_a_method_of_ones_own_takes_three_lines() -> None:
    """A plain function that gives one preference per row is a method."""
    batch = LossBatch(torch.tensor([0.0, 5.0, 1.1, 0.8]))
    _, selection = step(State.initial(1), batch, 2, resolve_methods([near_one]), policies.paper())
    assert selection.indices.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        (lambda batch: batch.losses[1:], r"method 'mine' returned shape \(2,\), expected \(3,\)"),
        (lambda batch: batch.losses.mean(), r"returned shape \(\), expected \(3,\)"),
        (lambda batch: [1.0, 2.0, 3.0], "returned list, expected a tensor"),
    ],
)
def test_a_method_that_gives_no_preference_per_row_is_named(
    mine: Callable[[LossBatch], Tensor], message: str
) -> None:
    """The error says which method, what came and what was expected."""
    batch = LossBatch(torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(MethodError, match=message):
        step(State.initial(1), batch, 1, {"mine": mine}, policies.unbiased(), generator(0))


def test_preferences_that_are_not_finite_are_the_least_and_the_most() -> None:
    """A user's NaN does not poison the mixture."""
    batch = LossBatch(torch.tensor([1.0, 2.0, 3.0]))
    mine = {"mine": lambda batch: torch.tensor([torch.nan, 0.0, torch.inf])}
    _, selection = step(State.initial(1), batch, 2, mine, policies.paper())
    assert selection.indices.tolist() == [2, 0] or selection.indices.tolist() == [2, 1]


def test_policies_refuse_what_cannot_be() -> None:
    """Each argument out of its range is named with what came."""
    wrong: list[tuple[Callable[[], Policy], type[Exception], str]] = [
        (partial(policies.paper, beta=1.5), ValueError, r"beta must be in \[-1, 1\], got 1.5"),
        (partial(policies.unbiased, exploration=0.0), ValueError, "exploration"),
        (partial(policies.unbiased, floor=-0.1), ValueError, "floor"),
        (partial(policies.resolve_policy, "papre"), ValueError, "known are aligned, auto, paper"),
    ]
    for build, kind, message in wrong:
        with pytest.raises(kind, match=message):
            build()
