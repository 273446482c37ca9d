import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream import importances
from adasel_stream.adaselection import expected_losses, log_scores, picked_losses
from adasel_stream.draw import top
from adasel_stream.loss_batch import LossBatch
from adasel_stream.methods import DEFAULT_METHODS
from tests import reference
from tests.candidates import (
    DTYPES,
    close,
    finite_part,
    of_vector,
    offered,
    preference_of,
    tolerance,
)
from tests.strategies import (
    METHODS,
    VECTORS,
    Array,
    any_losses,
    array,
    distinct_losses,
    ours,
    seeds,
    tame_losses,
)

READINGS: dict[str, importances.Importances] = {
    "softmax": importances.softmax,
    "vote": importances.vote,
    "rank": importances.rank,
    "proportional": importances.proportional,
}
EVERY_READING = pytest.mark.parametrize("reading", list(READINGS))


@DTYPES
@pytest.mark.parametrize("reading", ["softmax", "vote", "rank"])
def test_importances_losses_and_scores_follow_the_vectors(reading: str, dtype: torch.dtype) -> None:
    """Eq. (2), (5), (6) and both readings of a method's loss."""
    inputs, expect = VECTORS[f"alpha_{reading}"]["inputs"], VECTORS[f"alpha_{reading}"]["expect"]
    batch, preferences = of_vector(inputs, dtype)
    k, names = expect["k"], inputs["methods"]
    alphas = READINGS[reading](preferences, batch, k)
    close(alphas, [expect["alpha"][name] for name in names])
    picked = picked_losses(alphas, preferences, batch, k)
    close(picked, [expect["method_loss_subset"][name] for name in names])
    weighted = expected_losses(alphas, preferences, batch, k)
    close(weighted, [expect["method_loss_alpha"][name] for name in names])
    even = torch.full((len(names),), 1 / len(names), dtype=dtype)
    scores = log_scores(alphas, even, None, batch)
    best = array(expect["score"])[top(scores, batch, k).indices]  # equal scores may change places
    np.testing.assert_allclose(best, array(expect["score"])[expect["chosen"]], rtol=1e-9)
    if reading != "vote":  # rows without a vote have a score that only stands for 0
        close(scores.exp(), expect["score"])


@DTYPES
def test_huge_losses_follow_the_vector(dtype: torch.dtype) -> None:
    """The maximum is subtracted before the exponential."""
    case = VECTORS["huge_losses"]
    batch, preferences = of_vector(case["inputs"], dtype)
    alphas = importances.softmax(preferences, batch, 2)
    close(alphas, [case["expect"]["alpha"][name] for name in case["inputs"]["methods"]])
    scores = log_scores(alphas, torch.full((2,), 0.5, dtype=dtype), None, batch)
    assert top(scores, batch, 2).indices.tolist() == case["expect"]["chosen"]


@DTYPES
def test_rank_is_free_of_scale_and_softmax_is_not(dtype: torch.dtype) -> None:
    """The published case of losses a hundred times as large."""
    case = VECTORS["scale_behaviour"]
    for factor, suffix in ((1.0, ""), (case["inputs"]["scale"], "_scaled")):
        batch = LossBatch(torch.tensor(case["inputs"]["losses"], dtype=dtype) * factor)
        said = [preference_of("big_loss", batch)]
        for reading in ("rank", "softmax"):
            close(READINGS[reading](said, batch, 2)[0], case["expect"][f"{reading}_alpha{suffix}"])


@DTYPES
def test_proportional_follows_the_vector(dtype: torch.dtype) -> None:
    """Negative losses are shifted, all-zero losses share alike."""
    case = VECTORS["alpha_proportional"]
    for losses, alpha in zip(case["inputs"]["losses"], case["expect"]["alpha"], strict=True):
        batch = LossBatch(torch.tensor(losses, dtype=dtype))
        close(importances.proportional([preference_of("big_loss", batch)], batch, 1)[0], alpha)


@DTYPES
@EVERY_READING
@given(losses=tame_losses(1), seed=seeds(), share=st.floats(0, 1))
def test_importances_are_the_references(
    reading: str, dtype: torch.dtype, losses: Array, seed: int, share: float
) -> None:
    """Every reading of what each method prefers, ties included."""
    batch = offered(losses, dtype, seed)
    k = max(1, round(share * len(losses)))
    for method in METHODS[:-2] + METHODS[-1:]:  # coresets_1 stands alone below
        preference = preference_of(method, batch)
        values = preference.values().double().numpy()
        got = READINGS[reading]([preference], batch, k)[0]
        told = reference.Candidates(values, values, values)
        want = reference.importances(reading, "big_loss", told, k)
        if method == "adaboost" and reading == "rank":  # it ranks the losses before any rounding
            want = reference.rank_softmax(batch.losses.double().numpy())
        close(got, want, tolerance(dtype) * 10)


@DTYPES
@pytest.mark.parametrize("reading", ["softmax", "rank"])
@given(losses=distinct_losses())
def test_coresets_1_importances_are_the_references(
    reading: str, dtype: torch.dtype, losses: Array
) -> None:
    """Both ends weigh alike, where losses differ."""
    batch = offered(losses, dtype)
    _, known = finite_part(losses, batch)
    got = READINGS[reading]([preference_of("coresets_1", batch)], batch, 1)[0]
    close(got, reference.importances(reading, "coresets_1", known, 1), tolerance(dtype) * 10)


@DTYPES
@given(losses=tame_losses(2))
def test_coresets_1_ranks_hold_with_ties(dtype: torch.dtype, losses: Array) -> None:
    """Rows as far from the middle rank share the average of their ranks."""
    batch = offered(losses, dtype)
    _, known = finite_part(losses, batch)
    got = importances.rank([preference_of("coresets_1", batch)], batch, 1)[0]
    close(got, reference.importances("rank", "coresets_1", known, 1), 1e-4)


@DTYPES
@EVERY_READING
@given(losses=any_losses(1), seed=seeds(), share=st.floats(0, 1))
def test_rows_that_are_not_finite_are_in_no_statistic(
    reading: str, dtype: torch.dtype, losses: Array, seed: int, share: float
) -> None:
    """They weigh nothing, and the others weigh what they would without them."""
    batch = offered(losses, dtype, seed)
    rows = torch.from_numpy(reference.finite_rows(losses))
    assert batch.noise is not None
    assert batch.gradient_norms is not None
    alone = LossBatch(batch.losses[rows], batch.noise[rows], batch.gradient_norms[rows])
    k = max(1, round(share * len(losses)))
    for method in METHODS:
        got = READINGS[reading]([preference_of(method, batch)], batch, k)[0]
        assert torch.isfinite(got).all()
        assert batch.finite is not None
        assert (got[~batch.finite] == 0).all()
        if method == "coresets_2" and reading in ("rank", "vote"):
            continue  # rounding of the mean parts or joins equal distances
        if len(rows):
            said = [preference_of(method, alone)]
            want = READINGS[reading](said, alone, min(k, len(rows)))[0]
            largest = max(1.0, float(batch.losses.abs().max()))
            atol = 1e-6 if dtype == torch.float32 else 1e-13
            if largest > 1e4 and reading in ("softmax", "proportional"):
                continue  # rounding of a loss then shows in its exponential
            torch.testing.assert_close(got[rows], want, rtol=1e-4, atol=atol * largest)


@DTYPES
@EVERY_READING
@given(losses=any_losses(1), seed=seeds(), share=st.floats(0, 1))
def test_importances_are_distributions(
    reading: str, dtype: torch.dtype, losses: Array, seed: int, share: float
) -> None:
    """From huge to subnormal: nowhere negative, sum one unless no row may be chosen."""
    batch = offered(losses, dtype, seed)
    k = max(1, round(share * len(losses)))
    some = float(len(reference.finite_rows(losses)) > 0)
    for method in METHODS:
        alpha = READINGS[reading]([preference_of(method, batch)], batch, k)[0]
        assert float(alpha.min()) >= 0
        assert float(alpha.sum()) == pytest.approx(some, rel=1e-5)


@DTYPES
@given(losses=any_losses(1), seed=seeds(), share=st.floats(0, 1))
def test_picked_losses_are_the_means_of_the_references_picks(
    dtype: torch.dtype, losses: Array, seed: int, share: float
) -> None:
    """Each method's loss is that of the k rows it alone would choose, ties however broken."""
    batch = offered(losses, dtype, seed)
    rows, known = finite_part(losses, batch)
    k = max(1, round(share * len(losses)))
    names = [name for name in METHODS if name not in ("adaboost", "coresets_2")]  # they round
    said = [preference_of(ours(name), batch) for name in names]
    got = picked_losses(batch.losses[None], said, batch, k).double().numpy()
    filled = min(k, len(rows))
    want = [
        reference.method_loss_of_picks(known.losses, reference.picks(name, known, filled))
        for name in names
    ]
    scale = float(np.abs(known.losses).max(initial=0.0))
    np.testing.assert_allclose(got, want, rtol=0, atol=scale * 1e-6)


@DTYPES
@given(losses=any_losses(1), seed=seeds())
def test_chances_are_proportional_to_what_gives_chances(
    dtype: torch.dtype, losses: Array, seed: int
) -> None:
    """Each method is read as its preference says, in whatever company; the others by rank."""
    batch = offered(losses, dtype, seed)
    names = ["big_loss", "learnability", "coresets_1", "gradient_size"]
    said = [preference_of(name, batch) for name in names]
    assert [one.proportional for one in said] == [False, True, False, True]
    got = importances.chances(said, batch, 1)
    by_rank = importances.rank(said, batch, 1)
    in_proportion = importances.proportional(said, batch, 1)
    assert torch.equal(got[[0, 2]], by_rank[[0, 2]])
    torch.testing.assert_close(got[[1, 3]], in_proportion[[1, 3]])


@given(losses=any_losses(1), seed=seeds())
def test_chances_of_the_default_methods_are_ranks(losses: Array, seed: int) -> None:
    """The default of the policy `unbiased` is bit for bit what it was before there were any."""
    batch = offered(losses, torch.float32, seed)
    said = [preference_of(name, batch) for name in DEFAULT_METHODS]
    assert torch.equal(importances.chances(said, batch, 1), importances.rank(said, batch, 1))
