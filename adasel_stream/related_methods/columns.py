"""What methods read of a batch beside its losses: which rows count, and what a column knows."""

import torch
from torch import Tensor

from adasel_stream.loss_batch import LARGEST_LOSS, LossBatch

__all__ = ["told_by", "usable_rows"]


def told_by(batch: LossBatch, column: Tensor) -> tuple[Tensor, Tensor]:
    """Give a column's losses, clipped as the batch's are, and which rows it knows.

    Args:
        batch: candidates, b of them.
        column: losses, shape (b,), any floating point, NaN where unknown.

    Returns:
        losses in [-1e30, 1e30], NaN where unknown, in the batch's dtype; and bool; both (b,).

    >>> told_by(LossBatch(torch.zeros(2)), torch.tensor([1e39, torch.nan], dtype=torch.float64))
    (tensor([1.0000e+30,        nan]), tensor([ True, False]))
    """
    clipped = column.clamp(-LARGEST_LOSS, LARGEST_LOSS).to(batch.losses.dtype)
    return clipped, torch.isfinite(column)


def usable_rows(batch: LossBatch) -> Tensor:
    """Say which rows may be chosen, shape (b,), bool.

    >>> usable_rows(LossBatch(torch.zeros(2)))
    tensor([True, True])
    """
    if batch.finite is not None:
        return batch.finite
    return torch.ones_like(batch.losses, dtype=torch.bool)
