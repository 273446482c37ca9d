"""What a choice is held to: a cap on suspicious rows, least rates of named slices.

In a draw both change inclusion probabilities, never weights' formula, so that the estimate stays
unbiased: a row that is held back weighs the more when it is drawn. None goes below the least
probability that the bound of the weights asks for. In a top-k both change which rows come first.

All shapes are static, and nothing waits for a device.
"""

import torch
from torch import Tensor

from adasel_stream.filling import SMALLEST_REST, resized
from adasel_stream.loss_batch import Bounds

__all__ = ["bounded", "bounded_scores", "top_loss"]


def top_loss(ranks: Tensor, count: Tensor | float, tail: float) -> Tensor:
    """Flag the rows with the largest losses, a share `tail` of those that may be chosen, (b,).

    Wrong labels and poisoned sources are among them, and so are rows that are hard and right; hence
    a cap on their share and not a ban.

    Of equal losses at the edge of the tail none is flagged.

    >>> top_loss(torch.tensor([0.0, 3.0, 1.0, 2.0]), 4, 0.25)
    tensor([False,  True, False, False])
    """
    return ranks >= count * (1 - tail)


def bounded(pi: Tensor, bounds: Bounds, k: int, least: Tensor | float) -> Tensor:
    """Hold inclusion probabilities to bounds; their sum stays.

    Slices come before the cap: suspicious rows of a slice are let pass as far as its rate asks for
    them. A row of several slices belongs to the first. Demands that add up to
    more than k leaves beyond the least of every row are scaled down alike, and the cap gives way
    where the other rows cannot take what it frees.

    Args:
        pi: shape (b,), float64, sum k, 0 for rows that may not be chosen.
        bounds: what to hold them to.
        k: rows to draw.
        least: probability below which no row shall go, shape () or a number.

    >>> pi = torch.tensor([0.8, 0.1, 0.1]).double()
    >>> none, rare = torch.zeros(3, dtype=torch.bool), torch.tensor([[False, True, False]])
    >>> bounded(pi, Bounds(none, 1.0, rare, torch.tensor([0.5])), 1, 0.1)
    tensor([0.4000, 0.5000, 0.1000], dtype=torch.float64)
    """
    there = pi > 0
    pi = _capped(pi, bounds.flagged & there, bounds.cap, k, least, there)
    return _lifted(pi, bounds, k, least, there) if bounds.slices.shape[0] else pi


def bounded_scores(log_scores: Tensor, bounds: Bounds, k: int) -> Tensor:
    """Change log scores, shape (b,), so that their top k keep to bounds.

    >>> none, rare = torch.zeros(3, dtype=torch.bool), torch.tensor([[False, False, True]])
    >>> scores = bounded_scores(torch.zeros(3), Bounds(none, 1.0, rare, torch.tensor([1.0])), 1)
    >>> int(scores.argmax())
    2
    """
    there = ~torch.isneginf(log_scores)
    rows = log_scores.shape[0]
    # by places: scores may be so far apart that nothing added to them would keep their order
    scores = -_places(log_scores, torch.ones_like(there)).to(log_scores.dtype)
    held = bounds.flagged & (_places(log_scores, bounds.flagged) + 1 > bounds.cap * k)
    scores = torch.where(held, scores - rows, scores)
    for members, rate in zip(_exclusive(bounds.slices), bounds.rates.unbind(0), strict=True):
        own = members & there
        first = own & (_places(log_scores, own) < rate * own.sum())
        scores = torch.where(first, scores + 2 * rows, scores)
    return torch.where(there, scores, -torch.inf)


def _lifted(pi: Tensor, bounds: Bounds, k: int, least: Tensor | float, there: Tensor) -> Tensor:
    members = torch.stack([own & there for own in _exclusive(bounds.slices)])
    rest = there & ~members.any(0)
    counts = members.sum(1).to(pi.dtype)
    # all of it beyond the least, which every row keeps
    spare = k - there.sum().to(pi.dtype) * least
    amounts = torch.where(members, pi - least, 0.0).sum(1)
    demands = (counts * (bounds.rates.to(pi.dtype) - least)).clamp(min=0)
    demands = demands * (spare / demands.sum().clamp(min=SMALLEST_REST)).clamp(max=1)
    remains = torch.where(rest, pi - least, 0.0).sum()
    # slices that have less than they ask for get it; what they get all others give, in proportion
    level = torch.ones_like(remains)
    for _ in range(len(bounds.slices) + 1):
        short = amounts * level < demands
        free = spare - torch.where(short, demands, 0.0).sum()
        others = remains + torch.where(short, 0.0, amounts).sum()
        level = (free / others.clamp(min=SMALLEST_REST)).clamp(0, 1)
    totals = counts * least + torch.maximum(amounts * level, demands)
    parts = [
        resized(pi, own, total, k, least)
        for own, total in zip(members.unbind(0), totals.unbind(0), strict=True)
    ]
    return torch.stack([*parts, resized(pi, rest, k - totals.sum(), k, least)]).sum(0)


def _capped(
    pi: Tensor, flagged: Tensor, cap: float, k: int, least: Tensor | float, there: Tensor
) -> Tensor:
    others = there & ~flagged
    amount = torch.where(flagged, pi, 0.0).sum()
    allowed = (flagged.sum().to(pi.dtype) * least).clamp(min=cap * k)
    total = torch.minimum(amount, torch.maximum(allowed, pi.sum() - others.sum()))
    mine = resized(pi, flagged, total, k, least)
    return mine + resized(pi, others, pi.sum() - total, k, least)


def _exclusive(slices: Tensor) -> list[Tensor]:
    """Give each row to the first slice that it is in."""
    before = slices.long().cumsum(0) - slices.long()
    return list((slices & (before == 0)).unbind(0))


def _places(log_scores: Tensor, members: Tensor) -> Tensor:
    """Rank members among themselves by score, 0 the highest, shape (b,)."""
    order = torch.sort(log_scores, descending=True, stable=True).indices
    along = members[order].long()
    return torch.empty_like(order).scatter_(0, order, along.cumsum(0) - along)
