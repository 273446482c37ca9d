"""From scores to rows: the paper's top-k and an unbiased draw.

The unbiased draw keeps every row's chance in hand: inclusion probabilities sum to k, none is
above 1, and a row that was drawn weighs k/(b π). The mean of weight times loss over the drawn
rows then estimates the candidate batch's mean loss without bias, whatever the scores.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from adasel_stream.ranking import top_k
from adasel_stream.types import LossBatch

__all__ = ["Choose", "Drawn", "inclusions", "systematic", "top", "unbiased"]


class Drawn(NamedTuple):
    """Chosen rows with the chances they had.

    Attributes:
        indices: shape (k,), int64.
        weights: importance weights, shape (k,).
        probabilities: the distribution p of the chosen rows, shape (k,).
        inclusions: π of the chosen rows, shape (k,).
    """

    indices: Tensor
    weights: Tensor
    probabilities: Tensor
    inclusions: Tensor


Choose: TypeAlias = Callable[[Tensor, LossBatch, int, torch.Generator | None], Drawn]
"""Eq. (6): from log scores (b,), -inf where a row may not be chosen, the batch, k and a generator
on its device to k rows. Where fewer than k rows may be chosen, the last slots are void."""


def top(
    log_scores: Tensor, batch: LossBatch, k: int, generator: torch.Generator | None = None
) -> Drawn:
    """Choose the k highest scores, each with weight 1.

    Source: Eq. (6); "top highest" of Algorithm 2, the lower index winning ties.

    >>> batch = LossBatch(torch.tensor([3.0, 1.0, 2.0]))
    >>> top(torch.tensor([0.1, 0.7, 0.2]), batch, 2).indices
    tensor([1, 2])
    """
    del batch, generator  # nothing is drawn
    indices = top_k(log_scores, k)
    ones = torch.ones_like(log_scores[:k])
    return Drawn(indices, ones, log_scores.softmax(0)[indices], ones)


def unbiased(
    log_scores: Tensor,
    batch: LossBatch,
    k: int,
    generator: torch.Generator | None = None,
    *,
    exploration: float = 0.2,
) -> Drawn:
    """Draw k rows with chances that follow the scores, and weigh them by 1/chance.

    Args:
        log_scores: shape (b,), finite; -inf for rows that may not be chosen.
        batch: the candidates, n of which may be chosen.
        k: rows to draw, in [1, b].
        generator: source of the permutation and the offset, on the device of `log_scores`.
        exploration: share e of the chance that is spread evenly, in (0, 1]; it bounds the
            weights by 1/e.

    Returns:
        `Drawn` with weights k/(n π).
    """
    p = log_scores.softmax(0) * (1 - exploration) + exploration / batch.count
    if batch.finite is not None:
        p = torch.where(batch.finite, p, 0.0)
    pi = inclusions(p, k)
    permutation = torch.randperm(p.shape[0], generator=generator, device=p.device)
    offset = torch.rand((), generator=generator, device=p.device)
    indices = systematic(pi, k, permutation, offset)
    chosen = pi[indices]
    drawn = torch.clamp(batch.count, max=k) if isinstance(batch.count, Tensor) else k
    return Drawn(indices, drawn / (batch.count * chosen), p[indices], chosen)


def inclusions(p: Tensor, k: int) -> Tensor:
    """Fill water: π = min(1, c·p) with the c that makes Σπ = k.

    At most k rows can reach 1, so only the k largest are sorted.

    Args:
        p: a distribution over rows, shape (b,), sums to 1.
        k: in [1, b].

    Returns:
        inclusion probabilities, shape (b,), in [0, 1], with sum min(k, rows with p > 0).

    >>> inclusions(torch.tensor([0.7, 0.2, 0.1]), 2)
    tensor([1.0000, 0.6667, 0.3333])
    """
    largest = p.topk(k).values.double()
    filled = torch.arange(k, device=p.device)
    rest = p.sum(dtype=torch.float64) - (largest.cumsum(0) - largest)
    # c, were the `filled` largest rows already at 1
    c = (k - filled) / rest.clamp(min=torch.finfo(torch.float64).tiny)
    at_one = (largest * c >= 1).sum().clamp(max=k - 1)
    return (p * c.gather(0, at_one[None]).to(p.dtype)).clamp(max=1)


def systematic(pi: Tensor, k: int, permutation: Tensor, offset: Tensor) -> Tensor:
    """Lay the rows end to end in random order, π long each, and take one every 1.

    Args:
        pi: inclusion probabilities, shape (b,), sum k.
        k: rows to take.
        permutation: order to lay them in, shape (b,), int64.
        offset: where to start, shape (), in [0, 1).

    Returns:
        indices in the order they were met, shape (k,), int64; distinct.

    >>> pi = torch.tensor([1.0, 0.5, 0.25, 0.25])
    >>> systematic(pi, 2, torch.arange(4), torch.tensor(0.7))
    tensor([0, 2])
    """
    ends = pi[permutation].cumsum(0, dtype=torch.float64)
    # Σπ is a whole number up to rounding; scaled to it, no mark lies behind the last row
    scale = ends[-1] / ends[-1].round().clamp(min=1)
    marks = (torch.arange(k, device=pi.device) + offset.double()) * scale
    place = torch.searchsorted(ends, marks, right=True).clamp(max=pi.shape[0] - 1)
    return permutation[place]
