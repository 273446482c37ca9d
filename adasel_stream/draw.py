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


SMALLEST_REST = 1e-300
"""Bound of a divisor; where it holds, all rows left are at 1 whatever they are divided by."""

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
    count = batch.count
    if isinstance(count, Tensor):
        count = count.clamp(min=1)
    p = log_scores.softmax(0) * (1 - exploration) + exploration / count
    if batch.finite is not None:
        p = torch.where(batch.finite, p, 0.0)
    pi = inclusions(p, k)
    permutation = torch.randperm(p.shape[0], generator=generator, device=p.device)
    offset = torch.rand((), generator=generator, device=p.device)
    indices = systematic(pi, k, permutation, offset)
    chosen = pi.index_select(0, indices).to(p.dtype)
    drawn = count.clamp(max=k) if isinstance(count, Tensor) else k
    weights = (drawn / count) / (
        chosen if batch.finite is None else torch.where(chosen > 0, chosen, 1.0)
    )
    return Drawn(indices, weights, p.index_select(0, indices), chosen)


def inclusions(p: Tensor, k: int) -> Tensor:
    """Fill water: π = min(1, c·p) with the c that makes Σπ = k.

    At most k rows can reach 1, so only the k largest are sorted.

    Args:
        p: a distribution over rows, shape (b,), sums to 1.
        k: in [1, b].

    Returns:
        inclusion probabilities, shape (b,), float64 whatever p is, in [0, 1], with sum
        min(k, rows with p > 0): the draw counts in them, so that they must add up.

    >>> inclusions(torch.tensor([0.75, 0.125, 0.125]), 2)
    tensor([1.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    p = p.to(torch.float32 if p.device.type == "mps" else torch.float64)  # which MPS lacks
    p = p / p.sum()
    if p.device.type == "cpu" and k * p.numpy().max() <= 1:
        return p * k  # no row overflows; on a CPU it costs nothing to look
    largest, rows = p.topk(k)
    filled = torch.arange(k, device=p.device)
    # what the other rows hold, were the `filled` largest at 1 already; summed, never subtracted
    rest = p.scatter(0, rows, 0.0).sum() + largest.flip(0).cumsum(0).flip(0)
    c = (k - filled) / rest.clamp(min=SMALLEST_REST)
    at_one = (largest * c >= 1).sum().clamp(max=k - 1)
    return torch.where(p > 0, (p * c.gather(0, at_one[None])).clamp(max=1), 0.0)


def systematic(pi: Tensor, k: int, permutation: Tensor, offset: Tensor) -> Tensor:
    """Lay the rows end to end in random order, π long each, and take one every 1.

    Args:
        pi: inclusion probabilities, shape (b,), float64, sum k.
        k: rows to take.
        permutation: order to lay them in, shape (b,), int64.
        offset: where to start, shape (), in [0, 1).

    Returns:
        indices in the order they were met, shape (k,), int64; distinct.

    >>> pi = torch.tensor([1.0, 0.5, 0.25, 0.25]).double()
    >>> systematic(pi, 2, torch.arange(4), torch.tensor(0.7))
    tensor([0, 2])
    """
    ends = pi.index_select(0, permutation).cumsum(0)
    # an offset of float32 stays so far below 1 that the last mark lies before the last row's end
    marks = torch.arange(k, dtype=pi.dtype, device=pi.device) + offset
    place = torch.searchsorted(ends, marks, right=True).clamp(max=pi.shape[0] - 1)
    return permutation.index_select(0, place)
