"""The subset of `one_backward` against an exact solver, and the bound that it promises."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_stream.importances import picks
from adasel_stream.loss_batch import LossBatch
from tests import reference, related_reference
from tests.candidates import DTYPES, offered, preference_of
from tests.strategies import Array, any_losses, rows_of


def mask_of(batch: LossBatch, k: int) -> torch.Tensor:
    """The rows of the subset, shape (b,), bool."""
    order = preference_of("one_backward", batch).order
    assert order is not None
    return order(k) == 1


def error_of(losses: Array, k: int) -> float:
    """How far the subset's mean is from that of all."""
    chosen = mask_of(LossBatch(torch.from_numpy(losses)), k).numpy()
    assert chosen.sum() == k
    return abs(float(losses[chosen].mean() - losses.mean()))


def bound_of(losses: Array, k: int) -> float:
    """Half the largest gap between neighbouring losses, divided by k."""
    return float(np.diff(np.sort(losses)).max(initial=0.0)) / 2 / k


LATTICE = st.lists(st.integers(0, 60), min_size=1, max_size=14)
SHARES = st.floats(0, 1)


@settings(max_examples=200)
@given(losses=LATTICE, share=SHARES)
def test_the_subset_is_within_the_bound_of_the_best(losses: list[int], share: float) -> None:
    """Compared with all subsets; the solver is exact, so nothing is better than it says."""
    k = max(1, round(share * len(losses)))
    got, best = error_of(np.array(losses, dtype=float), k), related_reference.best_match(losses, k)
    assert got >= best - 1e-9
    assert got <= best + bound_of(np.array(losses, dtype=float), k) + 1e-9


@settings(max_examples=100)
@given(losses=LATTICE)
def test_the_subset_is_the_best_at_both_ends(losses: list[int]) -> None:
    """One row, all but one, and all of them."""
    for k in {1, len(losses) - 1, len(losses)} - {0}:
        want = related_reference.best_match(losses, k)
        assert error_of(np.array(losses, dtype=float), k) == pytest.approx(want, abs=1e-9)


@settings(max_examples=300)
@given(gaps=rows_of(st.sampled_from([0.0, 0.1, 1.0, 7.0]), 1, 60), share=SHARES)
def test_the_bound_holds_for_any_losses(gaps: Array, share: float) -> None:
    """Also where k does not divide the number of rows, and where almost all are chosen."""
    losses, k = gaps.cumsum(), max(1, round(share * len(gaps)))
    assert error_of(losses, k) <= bound_of(losses, k) + 1e-9


def test_the_bound_holds_where_parts_begin_within_a_row() -> None:
    """Taking the first whole row of each part has too large a sum to begin with, off by 0.875."""
    losses = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 4, 1, 4, 1, 4])
    assert error_of(losses, 13) <= bound_of(losses, 13)


@DTYPES
@given(losses=any_losses(1), share=SHARES)
def test_k_rows_are_chosen_of_those_that_may_be(
    dtype: torch.dtype, losses: Array, share: float
) -> None:
    """Of the others none, and the mean is that of the rows that may be chosen, within the bound."""
    batch, k = offered(losses, dtype), max(1, round(share * len(losses)))
    usable = batch.finite
    assert usable is not None
    rows = int(usable.sum())
    chosen = mask_of(batch, k)
    assert int(chosen.sum()) == min(k, rows)
    assert not (chosen & ~usable).any()
    if rows:
        known = batch.losses[usable].double().numpy()
        error = abs(float(batch.losses[chosen].double().mean()) - known.mean())
        assert error <= bound_of(known, min(k, rows)) + 1e-12 * np.abs(known).max()
    first = picks([preference_of("one_backward", batch)], batch, k)[0][: min(k, rows)]
    assert set(first.tolist()) == set(chosen.nonzero()[:, 0].tolist())


@given(losses=any_losses(1), seed=st.integers(0, 99), share=SHARES)
def test_shuffled_rows_have_as_good_a_subset(losses: Array, seed: int, share: float) -> None:
    """The same losses are chosen, in whatever rows they stand."""
    losses = losses[np.isfinite(losses)].clip(-100, 100).round(2)
    k = round(share * len(losses))
    moved = np.random.default_rng(seed).permutation(len(losses))
    one, other = (
        np.sort(rows[mask_of(LossBatch(torch.from_numpy(rows)), k).numpy()])
        for rows in (losses, losses[moved])
    )
    np.testing.assert_array_equal(one, other)


def test_the_subset_is_spread_over_all_losses() -> None:
    """Each tenth of the sorted losses gives one row, but for the one that is exchanged."""
    losses = np.random.default_rng(0).exponential(size=200)
    chosen = mask_of(LossBatch(torch.from_numpy(losses)), 20).numpy()
    tenths = reference.average_ranks(losses)[chosen] // 10
    assert len(set(tenths)) >= 19


def test_as_importances_it_is_the_closeness_to_the_mean() -> None:
    """Without a k to match, rows near the mean weigh most, as in `coresets_2`."""
    batch = LossBatch(torch.tensor([0.0, 1.0, 5.0]))
    ours, theirs = (preference_of(name, batch) for name in ("one_backward", "coresets_2"))
    assert torch.equal(ours.values(), theirs.values())
    assert ours.ranks is not None
    assert ours.ranks().tolist() == [1.0, 2.0, 0.0]
