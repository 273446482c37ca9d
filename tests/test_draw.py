import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream import draw
from adasel_stream.filling import inclusions
from adasel_stream.loss_batch import LossBatch
from tests import reference
from tests.candidates import DTYPES, generator, tolerance
from tests.strategies import VECTORS, Array, proposals, rows_of, seeds, tame_losses

EXPLORATION = 0.2
LAST_OFFSET = 1 - 2**-24
"""The largest number below 1 that a float32 generator gives."""


def drawn_from(log_scores: Tensor, finite: Tensor | None, k: int, seed: int) -> draw.Drawn:
    """One unbiased draw."""
    batch = LossBatch(torch.zeros_like(log_scores), finite=finite)
    return draw.unbiased(log_scores, batch, k, generator(seed), exploration=EXPLORATION)


@DTYPES
def test_inclusions_walk_and_weights_follow_the_vector(dtype: torch.dtype) -> None:
    """The published draw, with its permutation and offset."""
    inputs, expect = (
        VECTORS["unbiased_inclusion"]["inputs"],
        VECTORS["unbiased_inclusion"]["expect"],
    )
    pi = inclusions(torch.tensor(expect["p_mixed"], dtype=dtype), inputs["k"])
    chosen = draw.systematic(
        pi, inputs["k"], torch.tensor(inputs["perm"]), torch.tensor(inputs["u"], dtype=dtype)
    )
    np.testing.assert_allclose(pi.double().numpy(), expect["pi"], rtol=tolerance(dtype))
    assert chosen.tolist() == expect["chosen_in_draw_order"]
    weights = inputs["k"] / (len(pi) * pi[chosen].double())
    np.testing.assert_allclose(weights, expect["importance_weights"], rtol=tolerance(dtype))


@DTYPES
@given(scores=proposals(), seed=seeds(), data=st.data())
def test_a_draw_reports_the_references_chances_and_weights(
    dtype: torch.dtype, scores: Array, seed: int, data: st.DataObject
) -> None:
    """Exploration, water filling and k/(b pi), whichever rows are met."""
    k = data.draw(st.integers(1, len(scores)))
    drawn = drawn_from(torch.from_numpy(scores).to(dtype).log(), None, k, seed)
    p = reference.proposal(np.log(scores), EXPLORATION)
    pi = reference.inclusion(p, k)
    rows = drawn.indices.numpy()
    want = (p[rows], pi[rows], reference.importance_weights(pi, rows))
    got = (drawn.probabilities, drawn.inclusions, drawn.weights)
    assert len(set(rows)) == k
    for left, right in zip(got, want, strict=True):
        np.testing.assert_allclose(left.double().numpy(), right, rtol=tolerance(dtype))


@DTYPES
@given(p=proposals(), data=st.data())
def test_inclusions_sum_to_k_and_exceed_no_one(
    dtype: torch.dtype, p: Array, data: st.DataObject
) -> None:
    """Water filling is exact, for proposals as skewed as a million to one."""
    k = data.draw(st.integers(1, len(p)))
    pi = inclusions(torch.from_numpy(p).to(dtype), k).double().numpy()
    rtol = 1e-9 if dtype == torch.float64 else 2e-4  # float32 holds a rest of 1e-6 that exactly
    assert pi.max() <= 1
    np.testing.assert_allclose(pi.sum(), k, rtol=rtol)
    np.testing.assert_allclose(pi, reference.inclusion(p, k), rtol=rtol)


@DTYPES
@given(p=proposals(), void=st.integers(1, 12), data=st.data())
def test_rows_without_chance_are_never_included(
    dtype: torch.dtype, p: Array, void: int, data: st.DataObject
) -> None:
    """With fewer rows than k, every row that may be chosen is, and no other."""
    k = data.draw(st.integers(1, len(p) + void))
    places = np.random.default_rng(void).permutation(len(p) + void)
    padded = np.append(p, np.zeros(void))[places]
    pi = inclusions(torch.from_numpy(padded).to(dtype), k).double().numpy()
    assert (pi[padded == 0] == 0).all()
    np.testing.assert_allclose(pi.sum(), min(k, len(p)), rtol=2e-4)


@given(p=proposals(), seed=seeds(), place=st.integers(0, 996), data=st.data())
def test_the_walk_is_the_references(p: Array, seed: int, place: int, data: st.DataObject) -> None:
    """Same rows in the same order, for any permutation and offset off the rows' edges."""
    k = data.draw(st.integers(1, len(p)))
    pi = reference.inclusion(reference.proposal(np.log(p), EXPLORATION), k)
    permutation = np.random.default_rng(seed).permutation(len(p))
    offset = (place + 0.1234567891) / 997  # no simple fraction, so no tick meets an edge
    walked = draw.systematic(
        torch.from_numpy(pi),
        k,
        torch.from_numpy(permutation),
        torch.tensor(offset, dtype=torch.float64),
    )
    assert walked.tolist() == reference.systematic(pi, permutation, offset).tolist()


@DTYPES
@pytest.mark.parametrize("offset", [0.0, 2**-24, 0.5, LAST_OFFSET])
@given(p=proposals(), seed=seeds(), data=st.data())
def test_no_row_is_drawn_twice(
    dtype: torch.dtype, offset: float, p: Array, seed: int, data: st.DataObject
) -> None:
    """Not even where a tick meets the edge of a row that is sure to be drawn."""
    k = data.draw(st.integers(1, len(p)))
    mixed = reference.proposal(np.log(p), EXPLORATION)
    pi = inclusions(torch.from_numpy(mixed).to(dtype), k)
    permutation = torch.from_numpy(np.random.default_rng(seed).permutation(len(p)))
    walked = draw.systematic(pi, k, permutation, torch.tensor(offset, dtype=dtype))
    assert len(set(walked.tolist())) == k


@pytest.mark.parametrize("k", [1, 3, 7])
def test_each_row_is_drawn_as_often_as_its_inclusion_says(k: int) -> None:
    """Over evenly spread offsets the frequency of every row is its inclusion probability."""
    random = np.random.default_rng(k)
    p = reference.proposal(random.normal(size=11) * 2, EXPLORATION)
    pi = inclusions(torch.from_numpy(p), k)
    permutation = torch.from_numpy(random.permutation(11))
    offsets = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    met = torch.cat([draw.systematic(pi, k, permutation, offset) for offset in offsets])
    np.testing.assert_allclose(met.bincount(minlength=11) / 1000, pi, atol=2e-3)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_weighted_mean_is_unbiased(seed: int) -> None:
    """Averaged over draws it is the candidates' mean, within four standard errors."""
    random = np.random.default_rng(seed)
    losses = random.exponential(size=24)
    scores = torch.from_numpy(random.normal(size=24) + losses)
    batch, source = LossBatch(torch.from_numpy(losses)), generator(seed)
    estimates = []
    for _ in range(1000):
        drawn = draw.unbiased(scores, batch, 6, source, exploration=EXPLORATION)
        estimates.append(float((drawn.weights * batch.losses[drawn.indices]).mean()))
    error = np.std(estimates) / len(estimates) ** 0.5
    assert abs(np.mean(estimates) - losses.mean()) < 4 * error
    assert error < 0.03


@given(scores=rows_of(st.floats(-80, 80), 1), seed=seeds(), data=st.data())
def test_weights_are_bounded_by_exploration(scores: Array, seed: int, data: st.DataObject) -> None:
    """No score, however one-sided, makes a row weigh more than 1/e."""
    k = data.draw(st.integers(1, len(scores)))
    drawn = drawn_from(torch.from_numpy(scores).float(), None, k, seed)
    assert float(drawn.weights.max()) <= 1 / EXPLORATION * (1 + 1e-5)
    assert float(drawn.weights.min()) >= k / len(scores) * (1 - 1e-5)


@DTYPES
@given(scores=tame_losses(1), seed=seeds(), share=st.floats(0, 1), part=st.floats(0, 1))
def test_masked_rows_are_never_drawn_and_weights_stay_finite(
    dtype: torch.dtype, scores: Array, seed: int, share: float, part: float
) -> None:
    """The first slots hold distinct rows that may be chosen, weighed among themselves."""
    b = len(scores)
    k = max(1, round(share * b))
    finite = torch.from_numpy(np.random.default_rng(seed).random(b) < part)
    masked = torch.from_numpy(scores).to(dtype).masked_fill(~finite, -torch.inf)
    drawn = drawn_from(masked, finite, k, seed)
    filled = min(k, int(finite.sum()))
    rows = drawn.indices[:filled]
    assert drawn.indices.shape == drawn.weights.shape == (k,)
    assert 0 <= int(drawn.indices.min()) <= int(drawn.indices.max()) < b
    assert len(set(rows.tolist())) == filled
    assert finite[rows].all()
    assert torch.isfinite(drawn.weights).all()
    if filled:
        alone = reference.proposal(scores[finite.numpy()], EXPLORATION)
        pi = np.zeros(b)
        pi[finite.numpy()] = reference.inclusion(alone, filled)
        want = filled / (int(finite.sum()) * pi[rows.numpy()])
        np.testing.assert_allclose(drawn.weights[:filled].double(), want, rtol=tolerance(dtype))


def test_rate_one_draws_every_row_with_weight_one() -> None:
    """The published case: nothing is left out, so nothing is weighed up."""
    inputs, expect = VECTORS["rate_one"]["inputs"], VECTORS["rate_one"]["expect"]
    drawn = drawn_from(torch.tensor(inputs["losses"]), None, expect["k"], 5)
    assert sorted(drawn.indices.tolist()) == expect["chosen_sorted"]
    assert drawn.weights.tolist() == pytest.approx(expect["importance_weights"])


def test_a_draw_repeats_under_its_seed_and_changes_nothing_it_was_given() -> None:
    """The generator is the only source of chance, the global one is not touched."""
    scores = torch.linspace(-1, 1, 30)
    given_scores, state = scores.clone(), torch.random.get_rng_state()
    first, again, other = (drawn_from(scores, None, 9, seed).indices.tolist() for seed in (4, 4, 5))
    assert first == again != other
    assert torch.equal(scores, given_scores)
    assert torch.equal(torch.random.get_rng_state(), state)


@DTYPES
@given(scores=tame_losses(1), data=st.data())
def test_top_is_a_stable_top_k(dtype: torch.dtype, scores: Array, data: st.DataObject) -> None:
    """Best first, the lower index wins ties, weight one for every row."""
    k = data.draw(st.integers(1, len(scores)))
    cast = torch.from_numpy(scores).to(dtype)
    drawn = draw.top(cast, LossBatch(cast), k)
    assert drawn.indices.tolist() == reference.top_k(cast.double().numpy(), k).tolist()
    assert drawn.weights.tolist() == [1.0] * k
    assert drawn.inclusions.tolist() == [1.0] * k


def test_top_takes_masked_rows_last() -> None:
    """They fill slots only when nothing else is left."""
    scores = torch.tensor([-torch.inf, 2.0, -torch.inf, 3.0])
    drawn = draw.top(scores, LossBatch(scores, finite=scores > 0), 3)
    assert drawn.indices.tolist()[:2] == [3, 1]


@given(k=st.integers(1, 300), data=st.data())
def test_rows_are_dealt_so_that_each_run_is_spread(k: int, data: st.DataObject) -> None:
    """A permutation of which n in a row leave no gap of more than twice k/n rows."""
    order = draw.dealt(k, data.draw(st.integers(0, k - 1)))
    assert order.sort().values.tolist() == list(range(k))
    n = data.draw(st.integers(1, k))
    at = data.draw(st.integers(0, k - n))
    run = order[at : at + n].sort().values
    gaps = run.diff(append=run[:1] + k)
    assert int(gaps.max()) <= 2 * k / n + 1


def test_each_row_comes_at_each_place_for_one_start() -> None:
    """So that a batch that is cut out of the rows estimates what all of them do."""
    places = torch.stack([draw.dealt(12, start) for start in range(12)])
    assert places.sort(0).values.tolist() == [[row] * 12 for row in range(12)]
