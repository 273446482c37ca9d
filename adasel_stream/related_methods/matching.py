"""A subset whose mean loss is that of the batch."""

from functools import partial

import torch
from torch import Tensor

from adasel_stream.loss_batch import LossBatch, Preference
from adasel_stream.related_methods.columns import usable_rows

__all__ = ["one_backward"]


def one_backward(batch: LossBatch) -> Preference:
    """Prefer k rows whose mean loss comes closest to that of all, spread over all losses.

    One row is taken of each k-th part of the sorted losses, which one is moved until the mean fits,
    and a row is exchanged for a better one. The mean is then off by at most half the largest gap
    between neighbouring losses, divided by k; no k rows fit better where k is 1 or all but one.
    As importances, which know no k, it is `coresets_2`.

    Source: Dong et al. 2021, "One backward from ten forward", which solves for the subset by
    integer programming; the paper's reference [6].

    >>> one_backward(LossBatch(torch.tensor([0.0, 1.0, 3.0, 4.0]))).order(2)
    tensor([0., 1., 1., 0.])
    """

    def closeness() -> Tensor:
        return -(batch.losses - batch.losses.mean()).abs()

    return Preference(
        closeness,
        ranks=lambda: batch.rank(closeness(), follows_losses=True),
        order=partial(_matching, batch),
    )


def _matching(batch: LossBatch, k: int) -> Tensor:
    """Mark k rows whose mean loss is nearest to that of all, shape (b,), 1 and 0.

    The sorted losses, a row taking up the space k/b, are laid along a line of length k, and a row
    is taken where the line passes t, 1 + t, 2 + t and so on. As t goes from 0 to 1, the rows taken
    go up one by one, each to its neighbour, and the mean of their sum over all t is k times the
    mean loss: somewhere on the way the sum passes it, and is off there by half a step at most.
    """
    if not batch.losses.shape[0]:
        return torch.empty_like(batch.losses)
    # a sum of float32 losses loses the differences that are looked for; mps has no float64
    wide = torch.float32 if batch.losses.device.type == "mps" else torch.float64
    usable = usable_rows(batch)
    ascending, order = torch.where(usable, batch.losses.to(wide), torch.inf).sort(stable=True)
    place = torch.arange(ascending.shape[0], device=ascending.device, dtype=wide)
    count = usable.sum(dtype=wide)
    there, k_there = place < count, count.clamp(max=k)
    taken = there & ((-place * k_there).remainder(count) < k_there)  # at t = 0
    met = (place * k_there).remainder(count)  # the t, times b, from which a row is taken
    moves = there & (met > 0)
    step = torch.where(moves, ascending - ascending.roll(1), 0.0)
    turn = met.masked_fill(~moves, torch.inf).argsort(stable=True)
    wanted = torch.where(there, ascending, 0.0).sum() * (k_there / count)
    excess = torch.where(taken, ascending, 0.0).sum() - wanted
    excesses = torch.cat([excess[None], excess + step[turn].cumsum(0)])
    moved = torch.empty_like(there).scatter_(0, turn, place < excesses.abs().argmin()) & moves
    left = torch.cat([moved[1:], torch.zeros_like(moved[:1])])  # its taker went to the next row
    taken = _exchanged(ascending, taken ^ moved ^ left, there, wanted)
    return torch.empty_like(batch.losses).scatter_(0, order, taken.to(batch.losses.dtype))


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
