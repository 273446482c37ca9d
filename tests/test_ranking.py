import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream.ranking import ascending, average_ranks, top_k
from tests import reference
from tests.candidates import DTYPES
from tests.strategies import Array, finite_losses


@DTYPES
@given(values=finite_losses(1))
def test_average_ranks_are_the_references(dtype: torch.dtype, values: Array) -> None:
    """Equal values share the mean of their ranks."""
    given_values = torch.from_numpy(values).to(dtype)
    got = average_ranks(given_values)
    want = reference.average_ranks(given_values.double().numpy())
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, want)


@given(values=finite_losses(1), place=st.floats(-10, 10))
def test_an_order_is_ascending_with_and_without_a_near_one(values: Array, place: float) -> None:
    """A known order of other values makes sorting faster, never wrong."""
    losses = torch.from_numpy(values)
    order = ascending(losses)
    assert (losses[order].diff() >= 0).all()
    distance = -(losses - place).abs()
    again = ascending(distance, near=order)
    assert sorted(again.tolist()) == list(range(len(values)))
    assert (distance[again].diff() >= 0).all()


@DTYPES
@given(values=finite_losses(1), share=st.floats(0, 1))
def test_top_k_is_stable(dtype: torch.dtype, values: Array, share: float) -> None:
    """Largest first, the lower index wins ties, in every row of a matrix alike."""
    rows = torch.from_numpy(values).to(dtype)
    k = round(share * len(values))
    want = reference.top_k(rows.double().numpy(), k).tolist()
    assert top_k(rows, k).tolist() == want
    assert top_k(torch.stack([rows, rows]), k).tolist() == [want, want]
