"""Four readings of Eq. (2): from what a method prefers to importances that sum to 1.

The paper says only that "softmax can be applied". A softmax of raw losses depends on their
scale, so other readings stand beside it. Each takes the M methods' preferences, the batch and
k, and returns α, shape (M, b), rows non-negative with sum 1; rows that may not be chosen get 0.
`chances` takes the one or the other of them, by what a method gives.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from adasel_stream.loss_batch import LossBatch, Preference
from adasel_stream.ranking import top_k

__all__ = ["Importances", "chances", "picks", "proportional", "rank", "softmax", "vote"]

RANK_SHARPNESS = 3.0
"""Rank importances are softmax(3u): the first rank weighs e⁶, about 400 times, the last."""

Importances: TypeAlias = Callable[[Sequence[Preference], LossBatch, int], Tensor]
"""A reading of Eq. (2)."""


def softmax(preferences: Sequence[Preference], batch: LossBatch, k: int) -> Tensor:
    """Apply softmax at temperature 1; the policy `paper`'s reading.

    >>> batch = LossBatch(torch.tensor([0.0, 1.0]))
    >>> softmax([Preference(lambda: batch.losses)], batch, 1)
    tensor([[0.2689, 0.7311]])
    """
    del k
    return _masked_softmax(torch.stack([p.values() for p in preferences]), batch)


def rank(preferences: Sequence[Preference], batch: LossBatch, k: int) -> Tensor:
    """Apply softmax to 3u, u the average rank scaled to [-1, 1]; free of the losses' scale.

    >>> batch = LossBatch(torch.tensor([0.0, 1.0, 50.0]))
    >>> rank([Preference(lambda: batch.losses)], batch, 1)
    tensor([[0.0024, 0.0473, 0.9503]])
    """
    del k
    ranks = torch.stack(
        [p.ranks() if p.ranks is not None else batch.rank(p.values()) for p in preferences]
    )
    last = batch.count - 1
    last = last.clamp(min=1) if isinstance(last, Tensor) else max(1, last)
    # softmax ignores a shift, so 3u = 3(2 rank/last - 1) needs no "- 1"
    return _masked_softmax(ranks * (2 * RANK_SHARPNESS / last), batch)


def vote(preferences: Sequence[Preference], batch: LossBatch, k: int) -> Tensor:
    """Give 1/k to each of the k rows that the method alone would choose.

    >>> batch = LossBatch(torch.tensor([0.0, 1.0, 2.0]))
    >>> vote([Preference(lambda: batch.losses)], batch, 2)
    tensor([[0.0000, 0.5000, 0.5000]])
    """
    chosen = picks(preferences, batch, k)
    votes = batch.losses.new_zeros(len(preferences), batch.losses.shape[0])
    votes = votes.scatter(1, chosen, 1.0)
    if batch.finite is not None:
        votes = votes * batch.finite
    return votes / votes.sum(1, keepdim=True).clamp(min=1)


def proportional(preferences: Sequence[Preference], batch: LossBatch, k: int) -> Tensor:
    """Share in proportion to the value above the smallest, if that is negative, else above 0.

    >>> batch = LossBatch(torch.tensor([0.5, 0.0, 1.5]))
    >>> proportional([Preference(lambda: batch.losses)], batch, 1)
    tensor([[0.2500, 0.0000, 0.7500]])
    """
    del k
    values = torch.stack([p.values() for p in preferences])
    if batch.finite is not None:
        smallest = values.masked_fill(~batch.finite, torch.inf).amin(1, keepdim=True)
        values = torch.where(batch.finite, values, smallest)
    values = values - values.amin(1, keepdim=True).clamp(max=0)
    largest = values.amax(1, keepdim=True)
    values = torch.where(largest > 0, values / largest, 1.0)  # all alike: even
    if batch.finite is not None:
        values = values.nan_to_num(0.0) * batch.finite
    return values / values.sum(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def chances(preferences: Sequence[Preference], batch: LossBatch, k: int) -> Tensor:
    """Share in proportion where a method gives chances, by rank where it gives an order.

    >>> batch = LossBatch(torch.tensor([1.0, 3.0]))
    >>> chance = Preference(lambda: batch.losses, proportional=True)
    >>> chances([chance._replace(proportional=False), chance], batch, 1)
    tensor([[0.0025, 0.9975],
            [0.2500, 0.7500]])
    """
    if not any(one.proportional for one in preferences):
        return rank(preferences, batch, k)
    readings = [proportional if one.proportional else rank for one in preferences]
    return torch.cat([own([one], batch, k) for own, one in zip(readings, preferences, strict=True)])


def picks(preferences: Sequence[Preference], batch: LossBatch, k: int) -> Tensor:
    """Find the k rows that each method alone would choose, shape (M, k), int64.

    The lower index wins ties; rows that may not be chosen come last.
    """
    order = torch.stack([p.values() if p.order is None else p.order(k) for p in preferences])
    return top_k(batch.masked(order), k)


def _masked_softmax(logits: Tensor, batch: LossBatch) -> Tensor:
    if batch.finite is None:
        return logits.softmax(dim=1)
    # where every row is masked softmax is 0/0; such a batch then weighs nothing
    return batch.masked(logits).softmax(dim=1).nan_to_num(0.0)
