from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream import policies
from adasel_stream.adaselection import step
from adasel_stream.last_layer import LastLayer, gradient_norms
from adasel_stream.loss_batch import LossBatch
from adasel_stream.methods import resolve_methods
from adasel_stream.selection import Selection, State
from tests.candidates import generator
from tests.strategies import Array, finite_losses, seeds

FAST = policies.auto()
PLAIN = replace(FAST, kernel=None)
METHODS = resolve_methods([*FAST.methods, "small_loss", "soft_prune", "selective_backprop"])


def offered(losses: Array, seed: int, *, last_layer: bool, even: bool = False) -> LossBatch:
    """Make candidates with a control arm, all of them where rows are drawn evenly."""
    random, b = generator(seed), len(losses)
    batch = LossBatch.of(torch.from_numpy(losses).float(), all_finite=True)
    control = torch.rand(b, generator=random) < 0.2
    batch = replace(
        batch, control=control | even, even=even, compared=True, window=batch.losses.clone()
    )
    if not last_layer:
        return batch
    last = LastLayer(torch.randn(b, 3, generator=random), torch.randn(b, 4, generator=random))
    return replace(batch, last_layer=last, gradient_norms=gradient_norms(last))


def both(batch: LossBatch, k: int, seed: int) -> list[tuple[State, Selection]]:
    """One step in numpy and one by the equations, with equal randomness."""
    state = replace(
        State.initial(len(METHODS)),
        log_weights=torch.randn(len(METHODS), generator=generator(seed)),
    )
    return [step(state, batch, k, METHODS, policy, generator(seed)) for policy in (FAST, PLAIN)]


@pytest.mark.parametrize("last_layer", [False, True])
@pytest.mark.parametrize("even", [False, True])
@given(losses=finite_losses(2), seed=seeds(), share=st.floats(0, 1))
def test_numpy_gives_what_the_equations_give(
    last_layer: bool, even: bool, losses: Array, seed: int, share: float
) -> None:
    """Rows, chances, weights, proposals, comparisons and the next state."""
    losses = np.abs(losses).clip(0, 1e6)
    k = max(1, round(share * len(losses)))
    (fast_state, fast), (plain_state, plain) = both(
        offered(losses, seed, last_layer=last_layer, even=even), k, seed
    )
    torch.testing.assert_close(
        fast_state.log_weights, plain_state.log_weights, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(fast.method_weights, plain.method_weights, rtol=1e-4, atol=1e-6)
    assert fast.indices.shape == plain.indices.shape == (k,)
    assert len(set(fast.indices.tolist())) == k
    assert float(fast.weights.max()) <= 5 * (1 + 1e-4)
    same = fast.indices == plain.indices  # a mark on a seam may fall to either neighbour
    assert same.float().mean() > 0.5 or k < 4
    for name in ("weights", "probabilities", "inclusions", "importances", "proposed"):
        got, want = getattr(fast, name)[same], getattr(plain, name)[same]
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-6, equal_nan=True)
    if bool(same.all()):
        torch.testing.assert_close(fast.variances, plain.variances, rtol=1e-2, atol=1e-3)


def test_a_method_of_a_user_is_called_once() -> None:
    """The equations call it; numpy leaves such a batch to them."""
    calls: list[int] = []

    def mine(batch: LossBatch) -> Tensor:
        calls.append(1)
        return batch.losses

    batch = offered(np.linspace(0.1, 1, 8), 0, last_layer=False)
    step(State.initial(1), batch, 4, {"mine": mine}, FAST, generator(0))
    assert len(calls) == 1
