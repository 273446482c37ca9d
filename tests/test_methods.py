from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream.errors import MethodError
from adasel_stream.importances import picks
from adasel_stream.loss_batch import LossBatch
from adasel_stream.methods import (
    DEFAULT_METHODS,
    METHODS,
    NEEDS,
    big_loss,
    gradient_norm,
    last_layer_for,
    needs,
    resolve_methods,
)
from tests import reference
from tests.candidates import (
    DTYPES,
    finite_part,
    offered,
    preference_of,
    ranks_of,
    tolerance,
)
from tests.strategies import METHODS as PAPERS_METHODS
from tests.strategies import (
    VECTORS,
    Array,
    any_losses,
    array,
    distinct_losses,
    finite_losses,
    ours,
    seeds,
)

EVERY_METHOD = pytest.mark.parametrize("method", PAPERS_METHODS)


def test_the_seven_methods_are_the_papers() -> None:
    """The registry begins with section 3.1's list; the default leaves out what needs more."""
    assert tuple(METHODS)[:7] == PAPERS_METHODS
    assert set(DEFAULT_METHODS) == set(PAPERS_METHODS) - {"gradient_norm", "adaboost"}


@DTYPES
@EVERY_METHOD
@given(losses=any_losses(1), seed=seeds())
def test_preferences_are_the_references(
    method: str, dtype: torch.dtype, losses: Array, seed: int
) -> None:
    """Every method prefers what the paper says, on the finite rows alone."""
    batch = offered(losses, dtype, seed)
    rows, known = finite_part(losses, batch)
    got = preference_of(method, batch).values().double().numpy()[rows]
    if method == "coresets_1":
        got, want = np.exp(got), reference.importances("softmax", method, known, 1)
        got = got / max(got.sum(), 1e-300)
    else:
        want = reference.preference(method, known)
    of = known.losses if method == "coresets_2" else want  # a mean rounds as its terms do
    scale = float(np.abs(of).max(initial=0.0))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance(dtype) * scale)


@DTYPES
@pytest.mark.parametrize("method", [*PAPERS_METHODS[:5], "coresets_2"])
@given(losses=any_losses(1), seed=seeds())
def test_ranks_are_average_ranks_of_the_preference(
    method: str, dtype: torch.dtype, losses: Array, seed: int
) -> None:
    """Equal rows share a rank, rows that are not finite take none; a shift of all is free."""
    batch = offered(losses, dtype, seed)
    rows, known = finite_part(losses, batch)
    preference = preference_of(method, batch)
    values = preference.values().double().numpy()[rows]
    want = reference.average_ranks(known.losses if method == "adaboost" else values)
    got = ranks_of(preference, batch).double().numpy()[rows]
    np.testing.assert_array_equal(got - got[:1], want - want[:1])


@DTYPES
@pytest.mark.parametrize("name", ["alpha_softmax", "alpha_vote", "alpha_rank"])
def test_each_method_picks_the_vectors_rows(name: str, dtype: torch.dtype) -> None:
    """A method's own top-k is the published one."""
    inputs, expect = VECTORS[name]["inputs"], VECTORS[name]["expect"]
    columns = [torch.tensor(inputs[key], dtype=dtype) for key in ("losses", "noise", "grad_norms")]
    batch = LossBatch.of(columns[0], noise=columns[1], gradient_norms=columns[2])
    for method in inputs["methods"]:
        chosen = picks([preference_of(ours(method), batch)], batch, expect["k"])
        assert sorted(chosen[0].tolist()) == expect["hard_pick"][method]


@DTYPES
def test_adaboost_follows_the_vector(dtype: torch.dtype) -> None:
    """Eq. (1) made safe, also where float32 cannot hold 1 - 1e-6."""
    case = VECTORS["eq1_max_normalised"]
    batch = LossBatch.of(torch.tensor(case["inputs"]["losses"], dtype=dtype))
    got = preference_of("adaboost", batch).values().double().numpy()
    np.testing.assert_allclose(got, case["expect"]["q"], rtol=tolerance(dtype))


@given(losses=any_losses(1), share=st.floats(0, 1))
def test_coresets_1_takes_both_ends_and_no_row_twice(losses: Array, share: float) -> None:
    """The ceil(k/2) largest and floor(k/2) smallest losses, whatever is tied or not finite."""
    batch = offered(losses, torch.float64)
    rows, known = finite_part(losses, batch)
    k = round(share * len(rows))
    chosen = picks([preference_of("coresets_1", batch)], batch, k)[0].numpy()
    assert len(set(chosen)) == k
    assert set(chosen) <= set(rows)
    want = known.losses[reference.picks("coresets_1", known, k)]
    np.testing.assert_array_equal(np.sort(batch.losses.numpy()[chosen]), np.sort(want))


@EVERY_METHOD
@given(losses=any_losses(1), seed=seeds())
def test_preferences_are_finite_and_leave_their_inputs_alone(
    method: str, losses: Array, seed: int
) -> None:
    """Nothing overflows in float32, and a method writes to nothing that it was given."""
    batch = offered(losses, torch.float32, seed)
    columns = [batch.losses, batch.noise, batch.gradient_norms, batch.finite]
    before = [column.clone() for column in columns if column is not None]
    preference = preference_of(method, batch)
    outputs = [preference.values(), ranks_of(preference, batch)]
    if preference.order is not None:
        outputs.append(preference.order(2))
    for output in outputs:
        assert output.shape == batch.losses.shape
        assert torch.isfinite(output[batch.finite]).all()
    after = [column for column in columns if column is not None]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@EVERY_METHOD
@given(losses=finite_losses(1), seed=seeds())
def test_preferences_go_with_the_rows(method: str, losses: Array, seed: int) -> None:
    """Shuffling the candidates shuffles what a method says of them, up to rounding of sums."""
    batch = offered(losses, torch.float64, seed)
    assert batch.noise is not None
    assert batch.gradient_norms is not None
    moved = torch.from_numpy(np.random.default_rng(seed).permutation(len(losses)))
    shuffled = LossBatch.of(
        batch.losses[moved], noise=batch.noise[moved], gradient_norms=batch.gradient_norms[moved]
    )
    want = preference_of(method, batch).values()[moved]
    got = preference_of(method, shuffled).values()
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12 * float(want.abs().max()))


@pytest.mark.parametrize("factor", [1e-3, 100.0])
@given(losses=distinct_losses())
def test_ranks_do_not_depend_on_the_scale_of_losses(factor: float, losses: Array) -> None:
    """Losses in other units lead to the same ranks."""
    for method in ("big_loss", "small_loss", "adaboost", "coresets_1"):
        batch, scaled = (offered(row, torch.float64) for row in (losses, losses * factor))
        ranks = ranks_of(preference_of(method, batch), batch)
        assert torch.equal(ranks, ranks_of(preference_of(method, scaled), scaled))


def test_huge_losses_are_clipped_and_not_finite_ones_masked() -> None:
    """What a method sees is finite and bounded, and it can tell which rows may be chosen."""
    batch = LossBatch.of(torch.tensor([1.0, torch.nan, -torch.inf, 3e38, 2.0]))
    assert batch.finite is not None
    assert batch.finite.tolist() == [True, False, False, True, True]
    assert torch.isfinite(batch.losses).all()
    assert float(batch.losses.max()) == pytest.approx(1e30)
    assert int(batch.count) == 3


def test_a_row_without_finite_gradient_norm_is_masked() -> None:
    """A broken column breaks the row, not the batch."""
    batch = LossBatch.of(torch.tensor([1.0, 2.0]), gradient_norms=torch.tensor([torch.nan, 5.0]))
    assert batch.finite is not None
    assert batch.finite.tolist() == [False, True]
    assert preference_of("gradient_norm", batch).values()[1] == 5.0


def test_gradient_norm_without_last_layer_says_what_to_do() -> None:
    """The error names the method and the way out."""
    with pytest.raises(MethodError, match=r"gradient_norm.*model="):
        METHODS["gradient_norm"](LossBatch(torch.tensor([1.0])))


def test_uniform_without_noise_prefers_no_row() -> None:
    """Where the draw is random, uniform is an even proposal."""
    batch = LossBatch.of(torch.tensor([1.0, torch.nan, 3.0, 5.0]))
    preference = preference_of("uniform", batch)
    assert preference.values().tolist() == [0.0] * 4
    assert len(set(ranks_of(preference, batch).tolist())) == 1


def near_one(batch: LossBatch) -> Tensor:
    """A user's method."""
    return -(batch.losses - 1).abs()


def test_methods_are_resolved_by_name_function_and_mapping() -> None:
    """Names, functions and a mapping may be given; order and names are kept."""
    named = resolve_methods(["uniform", big_loss, near_one])
    assert list(named) == ["uniform", "big_loss", "near_one"]
    assert named["near_one"] is near_one
    mapped: dict[str, Callable[[LossBatch], Tensor]] = {"mine": lambda batch: batch.losses}
    assert list(resolve_methods(mapped)) == ["mine"]


@pytest.mark.parametrize(
    ("methods", "kind", "message"),
    [
        (["big_los"], ValueError, "unknown method 'big_los'; known are uniform"),
        ([], ValueError, "at least one"),
        (["big_loss", big_loss], ValueError, "different names"),
        ("big_loss", TypeError, "list of names or functions"),
        ([3], TypeError, "name or a function, got int"),
        ([lambda batch: batch.losses], ValueError, "mapping"),
    ],
)
def test_wrong_methods_are_refused(methods: object, kind: type[Exception], message: str) -> None:
    """What was expected, what came, and what to do."""
    with pytest.raises(kind, match=message):
        resolve_methods(methods)  # type: ignore[arg-type]  # wrong on purpose


def test_needs_are_those_of_all_methods_together() -> None:
    """A user's function is unknown: it is given what costs no forward pass."""
    assert needs(resolve_methods(DEFAULT_METHODS)) == frozenset()
    assert needs(resolve_methods(["alignment", "reducible_loss"])) == {"last_layer", "reference"}
    assert needs(resolve_methods(["big_loss", near_one])) == {"window", "previous"}
    assert set(NEEDS) == set(METHODS.values())


def test_the_last_layer_is_captured_where_a_method_asks_for_it() -> None:
    """Always, where there is one, or not at all; a record spares the pass that it needs."""
    assert last_layer_for(needs({"mine": gradient_norm}), recorded=False) is True
    assert last_layer_for(needs(resolve_methods(["gradient_size"])), recorded=True) == "if any"
    assert last_layer_for(needs(resolve_methods(["loss_history"])), recorded=True) is False
    with pytest.raises(ValueError, match="last layer of the model for every row"):
        last_layer_for(frozenset({"last_layer"}), recorded=True)


def test_an_empty_batch_is_preferred_by_no_method() -> None:
    """No row is no error where a method can say so without one."""
    batch = LossBatch.of(torch.tensor(array([])))
    assert batch.losses.shape == (0,)
    assert preference_of("big_loss", batch).values().shape == (0,)
