"""The steps of `unbiased` and `aligned` on a CPU: tables instead of equations.

Rank importances depend on a loss only through its rank, so the importance of the r-th smallest
loss is a constant of b and the method. One step is then a sort, a weighted sum of constant rows
and the choice, all in numpy, whose calls cost a third of torch's at these sizes.
`adaselection.step` says what is computed; this module computes the same, and leaves a batch to it
where it cannot: on an accelerator, with masked rows, or with methods that it does not know. A
method that goes by something else than the losses costs `aligned` a sort of its own.

Sums go through einsum, not `@`: a BLAS wakes its threads for them, which takes longer than the sum.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream import methods as candidate
from adasel_stream.filling import inclusions
from adasel_stream.importances import RANK_SHARPNESS
from adasel_stream.loss_batch import LossBatch, Method, Preference
from adasel_stream.ranking import top_k
from adasel_stream.selection import Selection, State
from adasel_stream.updates import Foresee, mixed_on_host

__all__ = ["aligned_by_ranks", "unbiased_by_ranks"]

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Rows: TypeAlias = npt.NDArray[np.int64]

BY_RANK: frozenset[Method] = frozenset(
    {
        candidate.uniform,
        candidate.big_loss,
        candidate.small_loss,
        candidate.adaboost,
        candidate.coresets_1,
        candidate.coresets_2,
    }
)
"""Methods whose rank importances follow from the order of the losses and their mean; `uniform`
does where the draw itself is random."""

BY_VALUE: Mapping[Method, Callable[[LossBatch], Tensor]] = {
    candidate.uniform: lambda batch: _there(batch.noise),
    candidate.gradient_norm: lambda batch: _there(batch.gradient_norms),
    candidate.METHODS["alignment"]: lambda batch: batch.alignments,
}
"""Methods whose rank importances follow from the order of something else, shape (b,), where rows
are ranked: by a top-k."""


def unbiased_by_ranks(
    state: State,
    batch: LossBatch,
    k: int,
    methods: Mapping[str, Method],
    generator: torch.Generator | None,
    *,
    exploration: float,
    floor: float,
) -> tuple[State, Selection] | None:
    """Take the step of the policy `unbiased` by table, or return None to leave it.

    Args:
        state: what the batches before left behind.
        batch: losses of the candidates, shape (b,).
        k: how many to choose, in [1, b].
        methods: candidate methods by name.
        generator: randomness of the draw.
        exploration: share of the draw that is even, in (0, 1].
        floor: least weight of each method.

    Returns:
        the next state and the selection that `adaselection.step` would give, up to rounding.
    """
    if batch.losses.device.type != "cpu" or batch.finite is not None:
        return None
    if batch.bounds is not None:
        return None
    if not BY_RANK.issuperset(methods.values()):
        return None
    losses = batch.losses.numpy()
    order = losses.argsort()
    ascending = losses.take(order)
    importances = _importances(ascending, tuple(methods.values()))  # Eq. (2), (M, b), sorted
    method_weights = mixed_on_host(state.log_weights.numpy(), floor)
    p = np.einsum("m,mb->b", method_weights, importances)  # Eq. (5)
    p *= 1 - exploration
    p += exploration / losses.size
    places, pi = _draw(p, order, k, generator)  # Eq. (6)
    chosen = pi.take(places).astype(p.dtype)
    now = torch.from_numpy(np.einsum("mb,b->m", importances, ascending))
    selection = Selection(
        torch.from_numpy(order.take(places)),
        torch.from_numpy((k / losses.size) / chosen),
        torch.from_numpy(p.take(places)),
        torch.from_numpy(chosen),
        torch.from_numpy(importances.take(places, axis=1)).T,
        torch.from_numpy(method_weights),
        now,
    )
    return State(state.step + 1, state.log_weights, now, state.trend), selection


def aligned_by_ranks(
    state: State,
    batch: LossBatch,
    k: int,
    methods: Mapping[str, Method],
    generator: torch.Generator | None,
    *,
    foresee: Foresee,
    floor: float,
) -> tuple[State, Selection] | None:
    """Take the step of the policy `aligned` by table, or return None to leave it.

    Args:
        state: what the batches before left behind.
        batch: candidates with their last layer.
        k: how many to choose, in [1, b].
        methods: candidate methods by name.
        generator: unused; nothing is drawn.
        foresee: moves the weights of the methods, as the policy's own `foresee`.
        floor: least weight of each method.

    Returns:
        the next state and the selection that `adaselection.step` would give, up to rounding.
    """
    del generator
    if batch.losses.device.type != "cpu" or batch.finite is not None or batch.bounds is not None:
        return None
    if batch.last_layer is None or batch.gradient_norms is None or batch.noise is None:
        return None
    if not (BY_RANK | BY_VALUE.keys()).issuperset(methods.values()):
        return None
    losses = batch.losses.numpy()
    importances = _in_rows(batch, tuple(methods.values()))  # Eq. (2), (M, b)
    preferences = [cast(Preference, method(batch)) for method in methods.values()]
    foreseen = foresee(state, torch.from_numpy(importances), preferences, batch, k)
    log_weights = foreseen.log_weights
    method_weights = mixed_on_host(log_weights.numpy(), floor)
    p = np.einsum("m,mb->b", method_weights, importances)  # Eq. (5)
    rows = top_k(torch.from_numpy(p), k).numpy()  # Eq. (6)
    now = torch.from_numpy(np.einsum("mb,b->m", importances, losses))
    ones = torch.ones(k, dtype=batch.losses.dtype)
    selection = Selection(
        torch.from_numpy(rows),
        ones,
        torch.from_numpy(p.take(rows)),
        ones,
        torch.from_numpy(importances.take(rows, axis=1)).T,
        torch.from_numpy(method_weights),
        now,
    )
    return State(state.step + 1, log_weights, now, state.trend), selection


def _in_rows(batch: LossBatch, methods: tuple[Method, ...]) -> Floats:
    """Give Eq. (2) for candidates as they come, shape (M, b)."""
    losses, order = batch.losses.numpy(), batch.order.numpy()
    known = tuple(method for method in methods if method not in BY_VALUE)
    tables = iter(_importances(losses.take(order), known) if known else ())
    importances = np.empty((len(methods), losses.size), dtype=losses.dtype)
    for own, method in zip(importances, methods, strict=True):
        if method not in BY_VALUE:
            own[order] = next(tables)
            continue
        values = BY_VALUE[method](batch).to(batch.losses.dtype).numpy()
        ascending = values.argsort()
        own[ascending] = _with_ties((candidate.big_loss,), values.take(ascending))[0]
    return importances


def _there(values: Tensor | None) -> Tensor:
    assert values is not None, "the batch was looked at"
    return values


def _importances(ascending: Floats, methods: tuple[Method, ...]) -> Floats:
    """Give Eq. (2) for losses in ascending order, shape (M, b)."""
    table = _with_ties(methods, ascending)
    if candidate.coresets_2 in methods:
        # away from the mean distances rise on either side: two runs, which a stable sort merges
        distance = np.abs(ascending - ascending.sum() / ascending.size)
        near = distance.argsort(kind="stable")
        table = table.copy() if not table.flags.writeable else table
        row = table[methods.index(candidate.coresets_2)]
        row[near] = _with_ties((candidate.small_loss,), distance.take(near))[0]
    return table


def _with_ties(methods: tuple[Method, ...], ascending: Floats) -> Floats:
    """Give the importances of ascending values, equal ones sharing their mean rank, (M, b)."""
    b = ascending.size
    table, totals = _table(methods, b, ascending.dtype.str)
    ties = _ties(ascending)
    if ties is None:
        return table
    places, ranks = ties
    shared = (_weights(methods, ranks, b) / totals).astype(table.dtype)
    change = (shared - table[:, places]).sum(1, keepdims=True)
    table = table.copy()
    table[:, places] = shared
    table *= 1 / (1 + change)
    return table


@lru_cache(maxsize=64)
def _table(methods: tuple[Method, ...], b: int, dtype: str) -> tuple[Floats, Floats]:
    """Give importances of b different ascending losses, (M, b), and what divided them, (M, 1)."""
    weights = _weights(methods, np.arange(b, dtype=np.float64), b)
    totals: Floats = weights.sum(1, keepdims=True)
    table: Floats = (weights / totals).astype(dtype)
    table.flags.writeable = False
    return table, totals


def _weights(methods: tuple[Method, ...], rank: Floats, b: int) -> Floats:
    """Give the numerators of rank importances for ranks of losses, shape (M, n)."""
    ranks = np.stack([_preferred(method, rank, b) for method in methods])
    weights: Floats = np.exp(2 * RANK_SHARPNESS * (ranks / max(1, b - 1) - 1))
    return weights


def _preferred(method: Method, rank: Floats, b: int) -> Floats:
    """Turn ranks of losses into ranks of a method's preference, as `methods` defines them."""
    if method is candidate.uniform:
        return np.zeros_like(rank)
    if method is candidate.small_loss:
        return b - 1 - rank
    if method is candidate.coresets_1:
        return np.maximum(np.abs(2 * rank - (b - 1)) - 0.5, 0)
    return rank


def _ties(in_order: Floats) -> tuple[Rows, Floats] | None:
    """Find the places of equal neighbours and the mean rank of each run, or None."""
    equal = (in_order[1:] == in_order[:-1]).nonzero()[0]  # to the neighbour behind; mostly few
    if equal.size == 0:
        return None
    opens = np.ones(equal.size, dtype=np.bool_)
    opens[1:] = equal[1:] != equal[:-1] + 1
    starts = equal[opens]
    lengths = np.bincount(opens.cumsum() - 1) + 1
    run = np.arange(starts.size).repeat(lengths)
    place_in_run = np.arange(run.size) - (lengths.cumsum() - lengths)[run]
    return starts[run] + place_in_run, (starts + (lengths - 1) / 2)[run]


def _draw(p: Floats, order: Rows, k: int, generator: torch.Generator | None) -> tuple[Rows, Floats]:
    """Draw k places of the sorted order as `draw.unbiased` draws rows; give π of all places."""
    even = p.astype(np.float64)
    even *= k / even.sum()
    # where no row overflows there is no water to fill elsewhere
    pi = even if even.max() <= 1 else inclusions(torch.from_numpy(p), k).numpy()
    # the permutation speaks of rows, not of sorted places
    place_of = np.empty_like(order)
    place_of[order] = np.arange(order.size)
    permutation = place_of.take(torch.randperm(order.size, generator=generator).numpy())
    ends = pi.take(permutation).cumsum()
    offset = float(torch.rand((), generator=generator).numpy())
    # marks passed by the end of each row; a row that passes one more is drawn
    passed = np.zeros(order.size + 1)
    np.ceil(ends - offset, out=passed[1:])
    met = (passed[1:] > passed[:-1]).nonzero()[0]
    if met.size != k:  # a mark fell on the seam of two rows, give or take a rounding
        met = ends.searchsorted(np.arange(k) + offset, side="right")
    return permutation.take(met, mode="clip"), pi
