"""Candidates with company: the same for the related work's methods and for their reference."""

from dataclasses import replace

import numpy as np
import torch

from adasel_stream.last_layer import LastLayer, gradient_norms
from adasel_stream.loss_batch import LossBatch
from tests import reference
from tests.candidates import generator
from tests.related_reference import Company
from tests.strategies import Array


def company(losses: Array, dtype: torch.dtype, seed: int) -> LossBatch:
    """Candidates with all that a method may look at; a part of each column is unknown."""
    random, b = generator(seed), len(losses)
    unknown = torch.rand(2, b, generator=random) < 0.3
    columns = (torch.randn(2, b, generator=random) * 3).masked_fill(unknown, torch.nan)
    window = torch.randn(20, generator=random).mul(5).round()
    window[: int(torch.randint(21, (), generator=random))] = torch.nan
    last = LastLayer(*torch.randn(2, b, 3, generator=random).unbind())
    batch = LossBatch.of(torch.from_numpy(losses).to(dtype), gradient_norms=gradient_norms(last))
    assert batch.finite is not None
    return replace(
        batch,
        gradient_norms=gradient_norms(last).to(dtype),
        last_layer=last.masked(batch.finite),
        reference=columns[0],
        previous=columns[1],
        window=window.to(dtype),
    )


def told(batch: LossBatch) -> tuple[reference.Rows, Company]:
    """The rows that may be chosen, and what the reference is told of them."""
    assert batch.finite is not None
    assert batch.last_layer is not None
    rows = np.flatnonzero(batch.finite.numpy())
    ones = torch.ones(len(batch.losses), 1)
    features = torch.cat([batch.last_layer.features, ones], dim=1).double()
    gradients = torch.einsum("bc,bh->bch", batch.last_layer.residuals.double(), features)
    gradients *= (len(rows) / max(1, len(ones))) ** 0.5  # the package's mean counts masked rows
    columns = (batch.losses, batch.gradient_norms, batch.reference, batch.previous)
    losses, norms, reference_losses, previous = (
        column.double().numpy()[rows] for column in columns if column is not None
    )
    assert batch.window is not None
    window = batch.window.double().numpy()
    return rows, Company(losses, norms, gradients.numpy()[rows], reference_losses, previous, window)


def scale_of(batch: LossBatch) -> float:
    """The largest number that a value may be rounded by."""
    return max(10.0, float(batch.losses.abs().max()))
