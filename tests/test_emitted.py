import gc
from typing import Any

import numpy as np
import pytest
import torch

from adasel_stream.emitted import Emissions, Emitted
from adasel_stream.errors import AdaselError


def rows(weight: float) -> Emitted:
    """Make what is remembered of two rows."""
    two = torch.full((2,), weight)
    return Emitted(two, two, two, two[:, None])


def emitted(count: int) -> tuple[Emissions, list[Any]]:
    """Emit batches that weigh 0, 1, 2 and so on."""
    emissions, batches = Emissions(), list[Any]()
    for weight in range(count):
        batches.append({"x": torch.zeros(2), "n": np.zeros(2), "t": ["a", "b"]})
        emissions.add(batches[-1], rows(weight))
    return emissions, batches


def test_a_batch_is_known_by_any_of_its_leaves() -> None:
    """In whatever structure they come back; a copy is another batch."""
    emissions, batches = emitted(3)
    for weight, batch in enumerate(batches):
        for given in (batch, [batch["x"]], {"other": (batch["n"], None)}):
            assert emissions.of(given).rows.weights[0] == weight
    with pytest.raises(AdaselError, match="none of the last 3 that were emitted, or it was copied"):
        emissions.of({"x": batches[0]["x"].clone()})


def test_the_last_few_batches_are_remembered_and_none_is_held() -> None:
    """A trainer that lets go of a batch frees it."""
    emissions, batches = emitted(20)
    assert emissions.of(batches[-8]).rows.weights[0] == 12
    with pytest.raises(AdaselError, match="none of the last 8"):
        emissions.of(batches[-9])
    watched = emissions.last.leaves[0]
    del batches
    gc.collect()
    assert watched() is None


def test_without_the_batch_the_last_one_is_meant_unless_several_are_open() -> None:
    """From one call of mean to the next."""
    emissions, _ = emitted(2)
    with pytest.raises(AdaselError, match="2 batches were emitted since the last call of mean"):
        emissions.of(None)
    emissions.start()
    assert emissions.of(None).rows.weights[0] == 1
    assert emissions.teach(emissions.of(None))
    assert not emissions.teach(emissions.of(None))


def test_what_is_forgotten_is_asked_for_in_vain() -> None:
    """Before the first batch, and after another state was loaded."""
    emissions, batches = emitted(1)
    emissions.clear()
    for given in (None, batches[0]):
        with pytest.raises(AdaselError):
            emissions.of(given)
    with pytest.raises(
        AdaselError, match="no batch was emitted yet; iterate over the loader first"
    ):
        _ = emissions.last
