"""The same candidates for the implementation and for the reference, and how to compare the two."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from adasel_stream.loss_batch import LossBatch, Preference
from adasel_stream.methods import METHODS
from tests import reference
from tests.strategies import RTOL, Array, Case, ours

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


def generator(seed: int) -> torch.Generator:
    """Randomness from a seed."""
    return torch.Generator().manual_seed(seed)


def tolerance(dtype: torch.dtype) -> float:
    """The vectors' relative tolerance for results of this dtype."""
    return RTOL[str(dtype).removeprefix("torch.")]


def close(got: Tensor, want: npt.ArrayLike, rtol: float | None = None) -> None:
    """Equal to the vectors' tolerance for the dtype; what underflows float32 may be 0."""
    rtol = tolerance(got.dtype) if rtol is None else rtol
    np.testing.assert_allclose(got.double().numpy(), np.asarray(want), rtol=rtol, atol=1e-37)


def offered(losses: Array, dtype: torch.dtype = torch.float64, seed: int = 0) -> LossBatch:
    """The candidates with noise and gradient norms made from a seed."""
    random = np.random.default_rng(seed)
    noise, norms = random.normal(size=len(losses)), random.exponential(size=len(losses))
    columns = [torch.from_numpy(column).to(dtype) for column in (losses, noise, norms)]
    return LossBatch.of(columns[0], noise=columns[1], gradient_norms=columns[2])


def finite_part(losses: Array, batch: LossBatch) -> tuple[reference.Rows, reference.Candidates]:
    """The rows of an offered batch that may be chosen, and what the reference is told of them."""
    assert batch.noise is not None
    assert batch.gradient_norms is not None
    rows = reference.finite_rows(losses)
    columns = (batch.losses, batch.gradient_norms, batch.noise)
    return rows, reference.Candidates(*(column.double().numpy()[rows] for column in columns))


def preference_of(method: str, batch: LossBatch) -> Preference:
    """What a built-in method says, which is always a `Preference`."""
    preference = METHODS[method](batch)
    assert isinstance(preference, Preference)
    return preference


def ranks_of(preference: Preference, batch: LossBatch) -> Tensor:
    """A method's ranks, sorted out here where it does not bring its own."""
    return preference.ranks() if preference.ranks else batch.rank(preference.values())


def of_vector(inputs: Case, dtype: torch.dtype) -> tuple[LossBatch, list[Preference]]:
    """A published batch and what its methods prefer."""
    nothing = [0.0] * len(inputs["losses"])
    losses, noise, norms = (
        torch.tensor(inputs.get(name, nothing), dtype=dtype)
        for name in ("losses", "noise", "grad_norms")
    )
    batch = LossBatch.of(losses, noise=noise, gradient_norms=norms)
    return batch, [preference_of(ours(name), batch) for name in inputs["methods"]]
