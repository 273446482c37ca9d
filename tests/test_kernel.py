from dataclasses import replace

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream import policies
from adasel_stream.adaselection import step
from adasel_stream.last_layer import LastLayer, gradient_norms
from adasel_stream.loss_batch import LossBatch
from adasel_stream.methods import DEFAULT_METHODS, resolve_methods
from adasel_stream.selection import Selection, State
from tests.candidates import DTYPES, generator, tolerance
from tests.strategies import Array, distinct_losses, finite_losses, seeds, tame_losses

METHODS = resolve_methods([*DEFAULT_METHODS, "adaboost"])
FAST = policies.unbiased()
PLAIN = replace(FAST, kernel=None)
ALIGNED = policies.aligned()
ALIGNED_METHODS = resolve_methods([*ALIGNED.methods, "adaboost"])


def selections(losses: Array, k: int, seed: int, dtype: torch.dtype) -> tuple[Selection, Selection]:
    """One step by table and one by the equations, with equal randomness."""
    batch = LossBatch.of(torch.from_numpy(losses).to(dtype), all_finite=True)
    blank = State.initial(len(METHODS), dtype=dtype)
    weights = torch.randn(len(METHODS), generator=generator(seed), dtype=dtype)
    state = replace(blank, log_weights=weights)
    fast, plain = (
        step(state, batch, k, METHODS, policy, generator(seed))[1] for policy in (FAST, PLAIN)
    )
    return fast, plain


@DTYPES
@given(losses=st.one_of(distinct_losses(), tame_losses(1)), seed=seeds())
def test_tables_give_what_the_equations_give(dtype: torch.dtype, losses: Array, seed: int) -> None:
    """Importances, chances, weights and losses of every row, ties included."""
    cubed = losses**3 + losses  # parts rows that are equally far from the mean but for rounding
    fast, plain = selections(cubed, len(losses), seed, dtype)
    by_row, as_row = fast.indices.argsort(), plain.indices.argsort()
    rtol = tolerance(dtype) * 10
    for name in ("importances", "probabilities", "inclusions", "weights"):
        got, want = getattr(fast, name)[by_row], getattr(plain, name)[as_row]
        torch.testing.assert_close(got, want, rtol=rtol, atol=rtol / 100)
    torch.testing.assert_close(fast.method_weights, plain.method_weights, rtol=rtol, atol=0)
    atol = rtol * float(np.abs(cubed).max())
    torch.testing.assert_close(fast.method_losses, plain.method_losses, rtol=rtol, atol=atol)


@given(losses=distinct_losses(), seed=seeds(), share=st.floats(0, 1))
def test_tables_draw_the_same_rows(losses: Array, seed: int, share: float) -> None:
    """Under the same seed the same rows leave in the same order."""
    k = max(1, round(share * len(losses)))
    fast, plain = selections(losses**3 + losses, k, seed, torch.float64)
    assert fast.indices.tolist() == plain.indices.tolist()


@DTYPES
@given(losses=finite_losses(1), seed=seeds(), share=st.floats(0, 1))
def test_tables_hold_for_any_finite_losses(
    dtype: torch.dtype, losses: Array, seed: int, share: float
) -> None:
    """Distinct rows, finite weights, importances that the caller cannot spoil for the next."""
    k = max(1, round(share * len(losses)))
    fast, _ = selections(losses, k, seed, dtype)
    assert len(set(fast.indices.tolist())) == k
    assert torch.isfinite(fast.weights).all()
    assert float(fast.weights.max()) <= 5 * (1 + 1e-5)
    kept = fast.importances.clone()
    fast.importances.zero_()
    assert torch.equal(selections(losses, k, seed, dtype)[0].importances, kept)


def aligned_steps(
    losses: Array, k: int, seed: int, dtype: torch.dtype, at: int
) -> tuple[tuple[State, Selection], ...]:
    """A step of `aligned` by table and one by the equations; alike rows have equal gradients."""
    b, random = len(losses), generator(seed)
    residuals = torch.randn(b, 3, generator=random, dtype=dtype)
    features = torch.randn(b, 5, generator=random, dtype=dtype).round()
    last = LastLayer(torch.cat([residuals[: b // 2]] * 2 + [residuals[-1:]])[:b], features)
    noise = torch.randn(b, generator=random, dtype=dtype)
    batch = LossBatch.of(
        torch.from_numpy(losses).to(dtype),
        all_finite=True,
        noise=noise,
        last_layer=last,
        gradient_norms=gradient_norms(last),
    )
    weights = torch.randn(len(ALIGNED_METHODS), generator=random, dtype=dtype)
    blank = State.initial(len(ALIGNED_METHODS), dtype=dtype)
    state = replace(blank, step=at, log_weights=weights)
    return tuple(
        step(state, batch, k, ALIGNED_METHODS, policy)
        for policy in (ALIGNED, replace(ALIGNED, kernel=None))
    )


@DTYPES
@given(losses=st.one_of(distinct_losses(), tame_losses(1)), seed=seeds(), at=st.integers(0, 8))
def test_aligned_by_table_is_what_the_equations_give(
    dtype: torch.dtype, losses: Array, seed: int, at: int
) -> None:
    """Importances and chances of every row, ties included, at updates of the weights too."""
    cubed = losses**3 + losses  # parts rows that are equally far from the mean but for rounding
    (moved, fast), (after, plain) = aligned_steps(cubed, len(losses), seed, dtype, at)
    by_row, as_row = fast.indices.argsort(), plain.indices.argsort()
    rtol = tolerance(dtype) * 10
    for name in ("importances", "probabilities", "inclusions", "weights"):
        got, want = getattr(fast, name)[by_row], getattr(plain, name)[as_row]
        torch.testing.assert_close(got, want, rtol=rtol, atol=rtol / 100)
    atol = rtol * max(1.0, float(np.abs(cubed).max()))
    for got, want in (
        (fast.method_weights, plain.method_weights),
        (moved.log_weights, after.log_weights),
        (moved.method_losses, after.method_losses),
    ):
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
    assert moved.step == after.step == at + 1


@given(losses=distinct_losses(), seed=seeds(), share=st.floats(0, 1))
def test_aligned_by_table_takes_the_same_rows(losses: Array, seed: int, share: float) -> None:
    """In the same order, highest score first."""
    k = max(1, round(share * len(losses)))
    (_, fast), (_, plain) = aligned_steps(losses**3 + losses, k, seed, torch.float64, 1)
    assert fast.indices.tolist() == plain.indices.tolist()
