import math

import numpy as np
import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adasel_stream.metrics import LOSS_BOUNDS, Histogram


@given(
    arrays(
        np.float32,
        st.integers(0, 100),
        elements=st.one_of(
            st.floats(-10, 1000, width=32),
            st.sampled_from([float(np.float32(bound)) for bound in LOSS_BOUNDS]),
        ),
    )
)
@settings(deadline=None)
def test_bucket_counts_equal_those_of_the_client_library(losses: np.ndarray) -> None:
    """The vectorised count is the client's own, value for value, on every bucket."""
    theirs = prometheus_client.Histogram("loss", "-", buckets=LOSS_BOUNDS, registry=None)
    ours = Histogram(LOSS_BOUNDS)

    for loss in losses.tolist():
        theirs.observe(loss)
    ours.add(losses)

    family = next(iter(theirs.collect()))
    expected = [one.value for one in family.samples if one.name == "loss_bucket"]
    assert ours.state[0].tolist() == expected
    assert ours.state[1] == pytest.approx(math.fsum(losses.tolist()), rel=1e-9, abs=1e-6)


@given(arrays(np.float64, st.integers(0, 40), elements=st.floats(allow_subnormal=True)))
@settings(deadline=None)
def test_no_value_can_poison_a_sum(values: np.ndarray) -> None:
    """NaN, infinities and values beyond float32 are left out, counted and nowhere else."""
    histogram = Histogram([0.1, 1.0])

    rejected = histogram.add(values)

    assert math.isfinite(histogram.state[1])
    assert histogram.count + rejected == len(values)
    assert rejected == int(np.sum(~(np.abs(values) <= np.finfo(np.float32).max)))


def test_one_observation_counts_like_an_array_of_one() -> None:
    """`observe` and `add` fill the same buckets, bounds included, and both leave NaN out."""
    one_by_one, together = Histogram([0.1, 1.0]), Histogram([0.1, 1.0])
    values = [0.05, 0.1, 0.5, 1.0, 2.0, math.nan, math.inf]

    for one in values:
        one_by_one.observe(one)
    together.add(np.array(values))

    assert one_by_one.state_dict() == together.state_dict()


@pytest.mark.parametrize("bounds", [[], [1.0, 1.0], [2.0, 1.0], [math.nan], list(range(33))])
def test_bounds_that_are_none_are_refused(bounds: list[float]) -> None:
    """Bounds must rise, be finite and few."""
    with pytest.raises(ValueError, match="strictly increasing"):
        Histogram(bounds)
