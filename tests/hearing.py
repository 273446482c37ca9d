"""What is told of a backward pass over weighted losses."""

import torch
from torch import Tensor

from adasel_stream.backward import watch_norms
from adasel_stream.emitted import weighted_mean

__all__ = ["ROWS", "WEIGHTS", "heard"]

ROWS = 6
WEIGHTS = torch.tensor([0.5, 1.5, 1.0, 3.0, 0.25, 1.0])


def heard(
    losses: Tensor, *, weights: Tensor = WEIGHTS, scale: float = 1.0, passes: int = 1
) -> list[Tensor | None]:
    """Differentiate a multiple of the mean, and give what is told."""
    told: list[Tensor | None] = []
    mean = weighted_mean(losses, weights)
    assert watch_norms(losses, told.append)
    for _ in range(passes):
        (scale * mean).backward(retain_graph=passes > 1)  # type: ignore[no-untyped-call] # untyped in torch
    return told
