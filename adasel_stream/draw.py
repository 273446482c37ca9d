"""From scores to rows: the paper's top-k and an unbiased draw.

The unbiased draw keeps every row's chance in hand: inclusion probabilities sum to k, none is
above 1, and a row that was drawn weighs k/(b π). The mean of weight times loss over the drawn
rows then estimates the candidate batch's mean loss without bias, whatever the scores, and in
whatever order the rows are laid out for the draw. Laid out so that neighbours pull the model the
same way, they represent each other, and the estimate varies less than any independent draw's.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from adasel_stream.filling import inclusions, resized
from adasel_stream.guards import bounded, bounded_scores
from adasel_stream.last_layer import mean_gradient
from adasel_stream.loss_batch import LossBatch
from adasel_stream.ranking import ascending, top_k

__all__ = [
    "Choose",
    "Drawn",
    "by_pull",
    "compared",
    "dealt",
    "systematic",
    "top",
    "unbiased",
]


_ONE = 2**32
_GOLDEN = 2_654_435_769
"""The golden section of `_ONE`, to the nearest odd number, so that no multiple comes twice."""


class Drawn(NamedTuple):
    """Chosen rows with the chances they had.

    Attributes:
        indices: shape (k,), int64.
        weights: importance weights, shape (k,).
        probabilities: the distribution p of the chosen rows, shape (k,).
        inclusions: π of the chosen rows, shape (k,).
        proposed: as in `Selection`, or None.
        variances: as in `Selection`, or None.
    """

    indices: Tensor
    weights: Tensor
    probabilities: Tensor
    inclusions: Tensor
    proposed: Tensor | None = None
    variances: Tensor | None = None


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
    del generator  # nothing is drawn
    if batch.bounds is not None:
        log_scores = bounded_scores(log_scores, batch.bounds, k)
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
    order: Callable[[LossBatch], Tensor] | None = None,
) -> Drawn:
    """Draw k rows with chances that follow the scores, and weigh them by 1/chance.

    Rows of the control arm are drawn evenly; of the others, the scores decide.

    Args:
        log_scores: shape (b,), finite; -inf for rows that may not be chosen.
        batch: the candidates, n of which may be chosen.
        k: rows to draw, in [1, b].
        generator: source of the permutation and the offset, on the device of `log_scores`.
        exploration: share e of the chance that is spread evenly, in (0, 1]; it bounds the
            weights by 1/e.
        order: gives what rows are laid out by for the draw, shape (b,); None for at random.

    Returns:
        `Drawn` with weights k/(n π).
    """
    count = batch.count
    if isinstance(count, Tensor):
        count = count.clamp(min=1)
    p = log_scores.softmax(0) * (1 - exploration) + exploration / count
    if batch.finite is not None:
        p = torch.where(batch.finite, p, 0.0)
    pi = proposed = inclusions(p, k)
    drawn = count.clamp(max=k) if isinstance(count, Tensor) else k
    least = exploration * drawn / count
    if batch.control is not None:
        pi = _with_control(proposed, batch, k, drawn, least)
    if batch.bounds is not None:
        pi = bounded(pi, batch.bounds, k, least)
    by_score = _at_random(p, generator) if order is None else ascending(order(batch))
    layout = _at_random(p, generator) if batch.even else by_score
    offset = torch.rand((), generator=generator, device=p.device)
    indices = systematic(pi, k, layout, offset)
    chosen = pi.index_select(0, indices).to(p.dtype)
    weights = (drawn / count) / (
        chosen if batch.finite is None else torch.where(chosen > 0, chosen, 1.0)
    )
    there = (indices, weights, p.index_select(0, indices), chosen)
    if batch.control is None:
        return Drawn(*there)
    proposal = torch.where(batch.control, proposed.to(p.dtype), torch.nan).index_select(0, indices)
    if not batch.compared or batch.last_layer is None:
        return Drawn(*there, proposal)
    variances = compared(batch, k, indices, proposed, pi, by_score, offset, generator)
    return Drawn(*there, proposal, variances.to(p.dtype))


def compared(
    batch: LossBatch,
    k: int,
    rows: Tensor,
    proposed: Tensor,
    pi: Tensor,
    layout: Tensor,
    offset: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Say how far the gradient is off, drawn by the scores and drawn evenly, shape (2,).

    These are squared distances from the last-layer gradient of all candidates: of the rows that
    were drawn, and of a second draw, the way that they were not drawn this time.

    Args:
        batch: the candidates, n of which may be chosen.
        k: rows that were drawn.
        rows: which, shape (k,).
        proposed: π that the scores gave, shape (b,).
        pi: π that the rows were drawn with, shape (b,).
        layout: order in which a draw by the scores lays rows out, shape (b,).
        offset: where the draw began, shape ().
        generator: randomness of the second draw.
    """
    count = batch.count
    if isinstance(count, Tensor):
        count = count.clamp(min=1)
    even = (count.clamp(max=k) if isinstance(count, Tensor) else k) / count
    assert batch.last_layer is not None, "who asks has looked"
    other = proposed if batch.even else torch.where(proposed > 0, even, 0.0).to(pi.dtype)
    others = systematic(other, k, layout if batch.even else _at_random(pi, generator), offset)
    chances = torch.stack([other, pi] if batch.even else [pi, other])
    drawn = torch.stack([others, rows] if batch.even else [rows, others])
    own = chances.gather(1, drawn)
    weights = torch.where(own > 0, 1 / torch.where(own > 0, own, 1.0), 0.0)
    # what all rows weigh, less what those that were drawn do
    excess = (chances > 0).to(pi.dtype).scatter_add(1, drawn, -weights) / count
    return mean_gradient(batch.last_layer, excess).square().sum((-2, -1))


def by_pull(batch: LossBatch) -> Tensor:
    """Lay rows out by where they pull the model, shape (b,), float64 or that of the losses.

    Rows are told apart by the output that their gradient lowers most, the one that it raises most
    and its size: in a classification by label, likeliest wrong class and residual; in a regression
    by the residual. Without a last layer they are laid out by their losses.

    Source: systematic sampling from an ordered list, Madow 1949; Cochran 1977, chapter 8.

    >>> by_pull(LossBatch(torch.tensor([2.0, 0.5])))
    tensor([2.0000, 0.5000])
    """
    if batch.last_layer is None:
        return batch.losses
    residuals = batch.last_layer.residuals.float()
    if residuals.ndim > 2:
        residuals = residuals.flatten(1, -2).sum(1)  # tokens of a sequence pull together
    outputs = residuals.shape[1]
    if outputs == 1:
        return residuals[:, 0]
    size = batch.magnitudes
    if residuals.device.type == "cpu":  # where numpy takes a third of the time
        array, sizes = residuals.numpy(), size.numpy()
        places = array.argmin(1) * outputs + array.argmax(1)
        return torch.from_numpy(places + sizes / (float(sizes.max()) * (1 + 1e-6) or 1.0))
    wide = torch.float32 if size.device.type == "mps" else torch.float64  # which MPS lacks
    within = size / (size.max() * (1 + 1e-6)).clamp(min=torch.finfo(size.dtype).tiny)
    keys: Tensor = residuals.argmin(1) * outputs + residuals.argmax(1) + within.to(wide)
    return keys


def dealt(k: int, start: int, device: torch.device | None = None) -> Tensor:
    """Give an order of k rows in which each run of them is spread over all, shape (k,), int64.

    Rows leave a draw as they were laid out, neighbours alike. Cut into batches as they come, each
    batch would hold one kind of rows. So they come in the order of multiples of the golden section,
    modulo 1, of which any run in a row is spread evenly; turned round by a number of rows that is
    random, in [0, k), so that each row is as likely to come at one place as at another.

    Source: the three-distance theorem, Sós 1957.

    >>> dealt(8, start=4)
    tensor([4, 1, 6, 3, 0, 5, 2, 7])
    """
    multiples = torch.arange(k, device=device) * _GOLDEN % _ONE
    return (multiples.argsort().argsort() + start) % k


def systematic(pi: Tensor, k: int, permutation: Tensor, offset: Tensor) -> Tensor:
    """Lay the rows end to end, π long each, and take one every 1.

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


def _at_random(p: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randperm(p.shape[0], generator=generator, device=p.device)


def _with_control(
    proposed: Tensor, batch: LossBatch, k: int, drawn: Tensor | float, least: Tensor | float
) -> Tensor:
    """Give rows of the control arm the even chance, and change those of the others to fit."""
    control = batch.control
    assert control is not None
    there = proposed > 0
    control = control & there
    evenly = control * (drawn / batch.count)
    total = (drawn - evenly.sum()).clamp(min=0).to(proposed.dtype)
    rest = resized(proposed, there & ~control, total, k, least)
    return torch.where(control, evenly.to(rest.dtype), rest)
