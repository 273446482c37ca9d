"""Candidate methods of the paper's related work, beside its own seven in `methods`.

Some say how often to draw a row rather than which rows come first; those are marked `proportional`,
and a draw shares in proportion to what they give. What each needs beyond losses is listed in
`methods.NEEDS`.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from adasel_stream.errors import MethodError
from adasel_stream.types import LossBatch, Method, Preference

__all__ = [
    "alignment",
    "gradient_size",
    "learnability",
    "loss_history",
    "one_backward",
    "reducible_loss",
    "selective_backprop",
    "selective_backprop_with",
    "soft_prune",
]

HISTORY_SHARE = 0.2
"""Share β₁ of a row's history in `loss_history`, as in its source."""

PRUNED_SHARE = 0.5
"""Share r of well-learnt rows that `soft_prune` leaves out, as in its source."""


def selective_backprop(batch: LossBatch) -> Preference:
    """Draw a row as often as losses of the stream's last rows were not above its own.

    The power β is 1; `selective_backprop_with` takes others.

    Source: Jiang et al. 2019, section 3.1.

    >>> batch = LossBatch(torch.tensor([1.0, 3.0]), window=torch.tensor([0.0, 2.0, 2.5, 4.0]))
    >>> selective_backprop(batch).values()
    tensor([0.2500, 0.7500])
    """
    return Preference(lambda: _percentile(batch), ranks=lambda: batch.ranks, proportional=True)


def selective_backprop_with(power: float) -> Method:
    """Make `selective_backprop` with another power β, at least 0: the larger, the choosier.

    Raises:
        ValueError: a power below 0.

    >>> batch = LossBatch(torch.tensor([1.0, 3.0]), window=torch.tensor([0.0, 2.0, 2.5, 4.0]))
    >>> selective_backprop_with(2)(batch).values()
    tensor([0.0625, 0.5625])
    """
    if not power >= 0:
        raise ValueError(f"power must be at least 0, got {power}")

    def selective_backprop(batch: LossBatch) -> Preference:
        return Preference(
            lambda: _percentile(batch) ** power, ranks=lambda: batch.ranks, proportional=True
        )

    return selective_backprop


def reducible_loss(batch: LossBatch) -> Preference:
    """Prefer rows whose loss a reference model does not share: loss minus reference loss.

    A row whose reference loss is unknown is given the mean of the known ones. As a chance, what
    the reference model does worse at counts as 0.

    Raises:
        MethodError: the batch has no reference losses.

    Source: RHO-LOSS, Mindermann et al. 2022, Eq. (3); the paper's reference [4].

    >>> batch = LossBatch(torch.tensor([2.0, 2.0]), reference=torch.tensor([0.5, 2.5]))
    >>> reducible_loss(batch).order(1)
    tensor([ 1.5000, -0.5000])
    """
    reference = batch.reference
    if reference is None:
        raise MethodError(
            "method 'reducible_loss' needs losses of a reference model, the batch has none; give "
            "the loader reference=, a function like score or a LossRecord"
        )

    def reducible() -> Tensor:
        known = torch.isfinite(reference)
        mean = torch.where(known, reference, 0.0).sum() / known.sum().clamp(min=1)
        return batch.losses - torch.where(known, reference, mean).to(batch.losses.dtype)

    return _positive(batch, reducible)


def one_backward(batch: LossBatch) -> Preference:
    """Prefer k rows whose mean loss comes closest to that of all, spread over all losses.

    One row is taken of each k-th part of the sorted losses, which one is moved until the mean fits,
    and a row is exchanged for a better one: the mean is then off by at most half the largest gap
    between neighbouring losses, divided by k, and mostly by far less.

    Source: Dong et al. 2021, "One backward from ten forward", which solves for the subset by
    integer programming; the paper's reference [6].

    >>> one_backward(LossBatch(torch.tensor([0.0, 1.0, 3.0, 4.0]))).order(2)
    tensor([0., 1., 1., 0.])
    """
    return Preference(
        lambda: -(batch.losses - batch.losses.mean()).abs(), order=partial(_matching, batch)
    )


def alignment(batch: LossBatch) -> Preference:
    """Prefer rows whose gradient points along that of all candidates: ⟨e hᵀ, G⟩ = eᵀ G h.

    As a chance, rows that pull the other way count as 0.

    Raises:
        MethodError: the batch has no last-layer quantities.

    Source: design of this package; first order of how much a step on a row lowers the mean loss.
    """
    if batch.last_layer is None:
        raise MethodError(
            "method 'alignment' needs last-layer quantities, the batch has only losses; give the "
            "loader model= with a linear last layer, or let score return Scored(losses, "
            "residuals, features)"
        )
    return _positive(batch, lambda: batch.alignments)


def gradient_size(batch: LossBatch) -> Preference:
    """Draw in proportion to the gradient norm where it is known, to the loss elsewhere.

    The variance of an unbiased gradient estimate is least where chances follow gradient norms.

    Source: Katharopoulos and Fleuret 2018, Eq. (6).
    """
    return Preference(lambda: batch.magnitudes, proportional=True)


def loss_history(batch: LossBatch) -> Preference:
    """Draw in proportion to 0.2 times the loss that a row had before and 0.8 times that of now.

    Departs from its source in the history, there a moving average of all losses of the row: the
    last recorded loss stands for it. Unknown rows have no history but their loss.

    Source: evolved sampling, Cheng, Li and Bian 2025, with β₁ = 0.2.

    >>> batch = LossBatch(torch.tensor([1.0, 1.0]), previous=torch.tensor([2.0, torch.nan]))
    >>> loss_history(batch).values()
    tensor([1.2000, 1.0000])
    """

    def evolved() -> Tensor:
        if batch.previous is None:
            return batch.losses.clamp(min=0)
        known = torch.isfinite(batch.previous)
        before = torch.where(known, batch.previous, batch.losses).to(batch.losses.dtype)
        return (HISTORY_SHARE * before + (1 - HISTORY_SHARE) * batch.losses).clamp(min=0)

    return Preference(evolved, proportional=True)


def learnability(batch: LossBatch) -> Preference:
    """Draw in proportion to p(1 - p) with p = exp(-loss): most where the model is undecided.

    With negative log-likelihoods p is the likelihood of the right answer. Rows that are learnt and
    rows that look hopeless, such as those with wrong labels, are both left alone.

    Source: the variance of a success that has probability p; Rutherford et al. 2024 and Foster et
    al. 2025 choose tasks by it.

    >>> learnability(LossBatch(torch.tensor([0.0, 0.6931, 50.0]))).values().round(decimals=3)
    tensor([0.0000, 0.2500, 0.0000])
    """

    def undecided() -> Tensor:
        likelihood = (-batch.losses.clamp(min=0)).exp()
        return likelihood * (1 - likelihood)

    return Preference(undecided, proportional=True)


def soft_prune(batch: LossBatch) -> Preference:
    """Draw rows with a loss below the mean half as often as others.

    The mean is that of the stream's last rows. An unbiased draw weighs the rows that are left of
    the well-learnt ones the more, as the source does.

    Source: InfoBatch, Qin et al. 2024, Eq. (3), on a stream instead of an epoch, r = 0.5.

    >>> soft_prune(LossBatch(torch.tensor([1.0, 3.0]))).values()
    tensor([0.5000, 1.0000])
    """

    def kept() -> Tensor:
        window = batch.window
        mean = batch.losses.mean() if window is None else window.nanmean()
        mean = torch.where(mean.isnan(), batch.losses.mean(), mean)
        return torch.where(batch.losses < mean, 1 - PRUNED_SHARE, 1.0).to(batch.losses.dtype)

    return Preference(kept, proportional=True)


def _positive(batch: LossBatch, values: Callable[[], Tensor]) -> Preference:
    """Order rows by values of either sign; as chances, negative ones are 0."""

    def order(k: int) -> Tensor:
        del k  # the order is the same for all
        return values()

    return Preference(
        lambda: values().clamp(min=0), lambda: batch.rank(values()), order, proportional=True
    )


def _percentile(batch: LossBatch) -> Tensor:
    """Give the share of the window's losses that are not above each loss, shape (b,)."""
    losses, window = batch.losses, batch.window
    if window is None:
        return (batch.ranks + 1) / batch.losses.shape[0]
    known = ~window.isnan()
    ascending = torch.where(known, window, torch.inf).sort().values
    below = torch.searchsorted(ascending, losses.contiguous(), right=True)
    share = below / known.sum().clamp(min=1)
    return torch.where(known.any(), share, (batch.ranks + 1) / losses.shape[0]).to(losses.dtype)


def _matching(batch: LossBatch, k: int) -> Tensor:
    """Mark k rows whose mean loss is nearest to that of all, shape (b,), 1 and 0.

    The sorted losses fall into k strata of neighbours, from each of which one row is taken. That
    begins with the lowest of each; then one stratum after the other moves up by one row, all of
    them evenly, until the sum is nearest to what it shall be.
    """
    wide = torch.float32 if batch.losses.device.type == "mps" else torch.float64
    losses, count = batch.losses.to(wide), batch.count
    usable = torch.ones_like(losses, dtype=torch.bool) if batch.finite is None else batch.finite
    ascending, order = torch.where(usable, losses, torch.inf).sort()
    place = torch.arange(losses.shape[0], device=losses.device, dtype=wide)
    there = place < count
    at = place * (k / count)
    stratum = at.floor()
    opens = torch.ones_like(there)
    opens[1:] = stratum[1:] != stratum[:-1]
    step = ascending - torch.where(opens, 0.0, ascending.roll(1))
    turn = torch.where(opens, -1.0, at - stratum).masked_fill(~there, 2.0).argsort(stable=True)
    sums = torch.where(there, step, 0.0)[turn].cumsum(0)
    wanted = torch.where(there, ascending, 0.0).sum() * (k / count)
    complete = (place >= k - 1) & (place < count)
    nearest = (sums - wanted).abs().masked_fill(~complete, torch.inf).argmin()
    nearest = torch.where(complete.any(), nearest, losses.shape[0])  # too few: all of them
    moved = torch.empty_like(there).scatter_(0, turn, place <= nearest) & there
    passed = torch.zeros_like(moved)  # the next row of the same stratum was reached, too
    passed[:-1] = moved[1:] & ~opens[1:]
    chosen = _exchanged(ascending, moved & ~passed, there, wanted)
    return torch.empty_like(batch.losses).scatter_(0, order, chosen.to(batch.losses.dtype))


def _exchanged(ascending: Tensor, chosen: Tensor, there: Tensor, wanted: Tensor) -> Tensor:
    """Exchange one chosen row for another where that brings the sum nearer to `wanted`."""
    last = ascending.shape[0] - 1
    excess = torch.where(chosen, ascending, 0.0).sum() - wanted
    others, home = torch.where(there & ~chosen, ascending, torch.inf).sort()
    ideal = ascending - excess  # what would have to come in each chosen row's place
    above = torch.searchsorted(others, ideal).clamp(max=last)
    pairs = torch.stack([(above - 1).clamp(min=0), above])
    errors = (others[pairs] - ideal).abs().masked_fill(~chosen, torch.inf).nan_to_num(torch.inf)
    best = errors.flatten().argmin(keepdim=True)
    better = errors.flatten().gather(0, best) < excess.abs()
    out = best % (last + 1)
    into = home.gather(0, pairs.flatten().gather(0, best))
    exchanged = chosen.scatter(0, out, chosen.gather(0, out) & ~better)
    return exchanged.scatter(0, into, exchanged.gather(0, into) | better)
