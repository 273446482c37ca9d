"""Water filling: inclusion probabilities that follow a proposal and sum to what they shall."""

import math

import torch
from torch import Tensor

__all__ = ["SMALLEST_REST", "inclusions", "resized"]

SMALLEST_REST = 1e-300
"""Bound of a divisor; where it holds, all rows left are at 1 whatever they are divided by."""


def inclusions(p: Tensor, k: int, total: Tensor | float | None = None) -> Tensor:
    """Fill water: π = min(1, c·p) with the c that makes Σπ = k, or the total where one is given.

    At most k rows can reach 1, so only the k largest are sorted.

    Args:
        p: a distribution over rows, shape (b,), up to a factor.
        k: in [1, b].
        total: what the probabilities shall sum to, in [0, k], or None for k.

    Returns:
        inclusion probabilities, shape (b,), float64 whatever p is, in [0, 1], with sum
        min(total, rows with p > 0): the draw counts in them, so that they must add up.

    >>> inclusions(torch.tensor([0.75, 0.125, 0.125]), 2)
    tensor([1.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    p = p.to(torch.float32 if p.device.type == "mps" else torch.float64)  # which MPS lacks
    p = p / p.sum().clamp(min=SMALLEST_REST)
    total = k if total is None else total
    if p.device.type == "cpu":  # where it costs nothing to look
        amount = total.numpy() if isinstance(total, Tensor) else total
        if amount * p.numpy().max() <= 1:  # no row overflows
            return p * total
    largest, rows = p.topk(k)
    filled = torch.arange(k, device=p.device)
    # what the other rows hold, were the `filled` largest at 1 already; summed, never subtracted
    rest = p.scatter(0, rows, 0.0).sum() + largest.flip(0).cumsum(0).flip(0)
    c = (total - filled) / rest.clamp(min=SMALLEST_REST)
    # not so many that nothing would be left to share out
    most = total.ceil() - 1 if isinstance(total, Tensor) else math.ceil(total) - 1
    at_one = (largest * c >= 1).sum().clamp(max=most).clamp(min=0).long()
    return torch.where(p > 0, (p * c.gather(0, at_one[None])).clamp(max=1), 0.0)


def resized(pi: Tensor, mask: Tensor, total: Tensor, k: int, least: Tensor | float) -> Tensor:
    """Change the probabilities of some rows so that they sum to `total`; 0 elsewhere.

    Growing fills water; shrinking draws them towards `least`, below which none goes.

    Args:
        pi: probabilities, shape (b,), each at least `least`.
        mask: the rows, shape (b,), bool.
        total: what they shall sum to, shape (), at most their number.
        k: in [1, b], at least `total`.
        least: smallest probability, shape () or a number.

    >>> pi = torch.tensor([0.5, 0.25, 0.25]).double()
    >>> mask = torch.tensor([True, True, False])
    >>> resized(pi, mask, torch.tensor(0.5).double(), 1, 0.1)
    tensor([0.3182, 0.1818, 0.0000], dtype=torch.float64)
    """
    own = torch.where(mask, pi, 0.0)
    floor = mask.sum().to(pi.dtype) * least
    room = (own.sum() - floor).clamp(min=SMALLEST_REST)
    shrunk = least + (own - least) * ((total - floor) / room).clamp(0, 1)
    return torch.where(total > own.sum(), inclusions(own, k, total), torch.where(mask, shrunk, 0.0))
