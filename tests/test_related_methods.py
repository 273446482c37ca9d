"""Every method of the related work against plain numpy, and what all of them promise."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream import importances
from adasel_stream.errors import MethodError
from adasel_stream.importances import picks
from adasel_stream.last_layer import LastLayer
from adasel_stream.loss_batch import LossBatch, Preference
from adasel_stream.methods import METHODS, NEEDS, resolve_methods
from adasel_stream.related_methods import selective_backprop_with
from tests import reference, related_reference
from tests.candidates import DTYPES, preference_of, ranks_of, tolerance
from tests.related_candidates import company, scale_of, told
from tests.related_reference import Company
from tests.strategies import METHODS as PAPERS_METHODS
from tests.strategies import Array, any_losses, distinct_losses, finite_losses, seeds

RELATED = tuple(name for name in METHODS if name not in PAPERS_METHODS)
EVERY_METHOD = pytest.mark.parametrize("method", RELATED)
SIGNED = pytest.mark.parametrize("method", ["reducible_loss", "alignment"])


@DTYPES
@EVERY_METHOD
@given(losses=any_losses(1), seed=seeds())
def test_values_are_the_references(
    method: str, dtype: torch.dtype, losses: Array, seed: int
) -> None:
    """Every method gives what its source says, on the finite rows alone."""
    batch = company(losses, dtype, seed)
    rows, known = told(batch)
    preference = preference_of(method, batch)
    got = preference.values()
    assert got.dtype == dtype
    want = related_reference.values(method, known)
    atol = tolerance(dtype) * scale_of(batch)
    if method == "alignment":
        atol = 1e-4  # always float32
    if method == "soft_prune" and len(rows):  # a loss at the mean may fall to either side
        mean = related_reference.earlier_losses(known).mean()
        apart = np.abs(known.losses - mean) > atol
        rows, want = rows[apart], want[apart]
    if method in ("selective_backprop", "learnability"):
        atol = tolerance(dtype)
    np.testing.assert_allclose(got.double().numpy()[rows], want, rtol=0, atol=atol)


@DTYPES
@SIGNED
@given(losses=any_losses(1), seed=seeds())
def test_values_of_either_sign_are_ordered_below_zero_too(
    method: str, dtype: torch.dtype, losses: Array, seed: int
) -> None:
    """Order and ranks are those of the values before they are cut at 0."""
    batch = company(losses, dtype, seed)
    rows, known = told(batch)
    of = {"reducible_loss": related_reference.reducible, "alignment": related_reference.alignments}
    preference = preference_of(method, batch)
    assert preference.order is not None
    order = preference.order(1)
    got = order.double().numpy()[rows]
    atol = 1e-4 if method == "alignment" else tolerance(dtype) * scale_of(batch)
    np.testing.assert_allclose(got, of[method](known), rtol=0, atol=atol)
    ranks = ranks_of(preference, batch).double().numpy()[rows]
    np.testing.assert_array_equal(ranks, reference.average_ranks(got))
    np.testing.assert_array_equal(
        preference.values().numpy(), order.clamp(min=0).numpy(), "cut at 0"
    )


@DTYPES
@given(losses=any_losses(1), seed=seeds(), power=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
def test_selective_backprop_has_any_power(
    dtype: torch.dtype, losses: Array, seed: int, power: float
) -> None:
    """The CDF of the window to the power; without a window, of the candidates themselves."""
    batch = company(losses, dtype, seed)
    method = selective_backprop_with(power)
    for window in (batch.window, None, torch.full((5,), torch.nan)):
        one = replace(batch, window=window)
        rows, known = told(replace(batch, window=torch.tensor([]) if window is None else window))
        wanted = method(one)
        assert isinstance(wanted, Preference)
        got = wanted.values().double().numpy()[rows]
        np.testing.assert_allclose(got, related_reference.cdf(known, power), rtol=1e-6)
    assert list(resolve_methods([method])) == ["selective_backprop"]


def test_selective_backprop_needs_a_power() -> None:
    """Below 0 it would prefer small losses, and NaN would choose nothing."""
    for power in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="power must be at least 0, got"):
            selective_backprop_with(power)


@EVERY_METHOD
@given(losses=any_losses(1), seed=seeds(), share=st.floats(0, 1))
def test_rows_that_may_not_be_chosen_do_not_matter(
    method: str, losses: Array, seed: int, share: float
) -> None:
    """Whatever other columns hold in such a row, the rest is given what it is given alone."""
    batch = company(losses, torch.float64, seed)
    usable = batch.finite
    assert usable is not None
    assert batch.reference is not None
    assert batch.previous is not None
    moved = replace(
        batch,
        reference=torch.where(usable, batch.reference, 1e6),
        previous=torch.where(usable, batch.previous, 1e6),
    )
    k = max(1, round(share * len(losses)))
    told_of = [(preference_of(method, one), one) for one in (batch, moved)]
    before, after = (one.values()[usable] for one, _ in told_of)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)
    chosen, again = (picks([one], of, k)[0] for one, of in told_of)
    assert torch.equal(chosen, again)
    assert usable[chosen[: int(usable.sum())]].all()


@EVERY_METHOD
@given(losses=any_losses(1), seed=seeds())
def test_values_are_finite_and_inputs_left_alone(method: str, losses: Array, seed: int) -> None:
    """Nothing overflows in float32, chances are not negative, and nothing given is written to."""
    batch = company(losses, torch.float32, seed)
    parts = [
        value for one in fields(batch) if isinstance(value := getattr(batch, one.name), Tensor)
    ]
    before = [part.clone() for part in parts]
    preference = preference_of(method, batch)
    outputs = [preference.values(), ranks_of(preference, batch)]
    if preference.order is not None:
        outputs.append(preference.order(2))
    for output in outputs:
        assert output.shape == batch.losses.shape
        assert torch.isfinite(output[batch.finite]).all()
    assert preference.proportional is (method != "one_backward")
    if preference.proportional:
        assert (outputs[0][batch.finite] >= 0).all()
    for old, new in zip(before, parts, strict=True):
        assert torch.equal(old.nan_to_num(1e9), new.nan_to_num(1e9))


@EVERY_METHOD
@pytest.mark.parametrize("reading", ["softmax", "rank", "vote", "proportional", "chances"])
@given(losses=any_losses(1), seed=seeds(), share=st.floats(0, 1))
def test_every_reading_makes_importances_of_them(
    reading: str, method: str, losses: Array, seed: int, share: float
) -> None:
    """Nowhere negative, sum one unless no row may be chosen, nothing for masked rows."""
    batch = company(losses, torch.float32, seed)
    k = max(1, round(share * len(losses)))
    alpha = getattr(importances, reading)([preference_of(method, batch)], batch, k)[0]
    assert batch.finite is not None
    assert float(alpha.min()) >= 0
    assert float(alpha.sum()) == pytest.approx(float(batch.finite.any()), rel=1e-5)
    assert (alpha[~batch.finite] == 0).all()


@EVERY_METHOD
@given(losses=finite_losses(1), seed=seeds())
def test_values_go_with_the_rows(method: str, losses: Array, seed: int) -> None:
    """Shuffling the candidates shuffles what a method says of them, up to rounding of sums."""
    batch = company(losses, torch.float64, seed)
    moved = torch.from_numpy(np.random.default_rng(seed).permutation(len(losses)))
    assert batch.last_layer is not None
    columns = {
        name: getattr(batch, name)[moved]
        for name in ("losses", "finite", "gradient_norms", "reference", "previous")
    }
    last = LastLayer(batch.last_layer.residuals[moved], batch.last_layer.features[moved])
    shuffled = replace(batch, last_layer=last, **columns)
    want = preference_of(method, batch).values()[moved]
    got = preference_of(method, shuffled).values()
    if method == "soft_prune":  # a loss at the mean may fall to either side
        mean = related_reference.earlier_losses(told(shuffled)[1]).mean()
        apart = (shuffled.losses - mean).abs() > 1e-12 * scale_of(batch)
        want, got = want[apart], got[apart]
    atol = 1e-4 if method == "alignment" else 1e-12 * scale_of(batch)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=atol)


COLUMNS = {
    "last_layer": ("last_layer", "gradient_norms"),
    "last_layer_if_any": ("last_layer", "gradient_norms"),
    "reference": ("reference",),
    "previous": ("previous",),
    "window": ("window",),
}
"""The parts of a batch behind each need."""


def outcome(method: str, batch: LossBatch) -> list[float] | None:
    """What a method gives, or None where it cannot."""
    try:
        return preference_of(method, batch).values().tolist()
    except MethodError:
        return None


def without(batch: LossBatch, *columns: str) -> LossBatch:
    """The batch without some of its columns."""
    missing: dict[str, Any] = dict.fromkeys(columns)
    return replace(batch, **missing)


@pytest.mark.parametrize("method", METHODS)
def test_needs_are_what_a_method_looks_at(method: str) -> None:
    """Without another column it gives the same; without one that it needs, something else."""
    batch = company(np.random.default_rng(3).exponential(size=30), torch.float64, 3)
    batch = replace(batch, noise=batch.losses.cos())
    wanted = NEEDS[METHODS[method]]
    used = {column for need in wanted for column in COLUMNS[need]}
    for column in {column for group in COLUMNS.values() for column in group} - used:
        assert outcome(method, without(batch, column)) == outcome(method, batch)
    for need in wanted:
        assert outcome(method, without(batch, *COLUMNS[need])) != outcome(method, batch)


@EVERY_METHOD
def test_nothing_waits_for_the_device(method: str) -> None:
    """All of it runs where there are shapes but no values to wait for."""
    meta = [torch.ones(8, device="meta") for _ in range(5)]
    last = LastLayer(torch.ones(8, 3, device="meta"), torch.ones(8, 4, device="meta"))
    batch = LossBatch.of(meta[0], gradient_norms=meta[1])
    batch = replace(batch, last_layer=last, reference=meta[2], previous=meta[3], window=meta[4])
    preference = preference_of(method, batch)
    assert preference.values().shape == ranks_of(preference, batch).shape == (8,)
    assert picks([preference], batch, 3).shape == (1, 3)


@EVERY_METHOD
def test_an_empty_batch_has_no_values(method: str) -> None:
    """No row is no error, neither with all columns nor with losses alone."""
    batch = company(np.array([]), torch.float32, 0)
    preference = preference_of(method, batch)
    assert preference.values().shape == (0,)
    if preference.order is not None:
        assert preference.order(0).shape == (0,)


@pytest.mark.parametrize(
    ("method", "message"),
    [("alignment", r"alignment.*model="), ("reducible_loss", r"reducible_loss.*reference=")],
)
def test_what_is_missing_is_told(method: str, message: str) -> None:
    """The error names the method and the way out, before anything is computed."""
    with pytest.raises(MethodError, match=message):
        METHODS[method](LossBatch(torch.tensor([1.0])))


@given(losses=distinct_losses())
def test_without_company_losses_stand_in(losses: Array) -> None:
    """A record, a window and norms that are not there: a row's own loss, the batch, the loss."""
    losses = np.abs(losses)
    batch = LossBatch(torch.from_numpy(losses))
    empty = np.full(len(losses), np.nan)
    known = Company(losses, losses, empty, empty, empty, np.array([]))
    for method in ("gradient_size", "loss_history", "selective_backprop"):
        got = preference_of(method, batch).values().numpy()
        np.testing.assert_allclose(got, related_reference.values(method, known), rtol=1e-12)


def test_a_nearly_learnt_row_keeps_a_chance() -> None:
    """In float32 exp(-1e-8) is 1; its distance from 1 is not lost."""
    got = preference_of("learnability", LossBatch(torch.tensor([1e-8]))).values()
    assert float(got[0]) == pytest.approx(1e-8, rel=1e-6)


def test_huge_columns_are_clipped_as_losses_are() -> None:
    """Float64 columns beside float32 losses do not become infinite."""
    huge = torch.tensor([1e300, -1e300], dtype=torch.float64)
    batch = LossBatch(torch.tensor([1.0, 2.0]), reference=huge, previous=huge)
    for method in ("reducible_loss", "loss_history"):
        preference = preference_of(method, batch)
        assert preference.values().dtype == torch.float32
        assert torch.isfinite(preference.values()).all()
    assert preference_of("reducible_loss", batch).values().tolist() == [0.0, pytest.approx(1e30)]


def test_reference_losses_that_nobody_knows_count_as_zero() -> None:
    """The method then prefers large losses."""
    batch = LossBatch(torch.tensor([1.0, 2.0]), reference=torch.full((2,), torch.nan))
    assert preference_of("reducible_loss", batch).values().tolist() == [1.0, 2.0]
