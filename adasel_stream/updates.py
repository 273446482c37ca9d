"""How method weights move: Eq. (3) and the updates that stay useful on an endless stream.

`loss_ratio` and `progress` look at the losses of what each method would choose, before the
choice; `variance` looks at fresh losses of what was trained on, after it. `foreseen_variance` and
`alignment` look at the last layer's gradients of all candidates, before it. All work on log w,
because the printed product underflows within some ten thousand steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream.errors import MethodError
from adasel_stream.importances import picks
from adasel_stream.last_layer import cosine, mean_gradients
from adasel_stream.loss_batch import LossBatch, Preference
from adasel_stream.selection import Feedback, State

__all__ = [
    "Foresee",
    "Learn",
    "Update",
    "alignment",
    "foreseen_variance",
    "loss_ratio",
    "mixed",
    "mixed_on_host",
    "progress",
    "variance",
]

Floats: TypeAlias = npt.NDArray[np.floating[Any]]

SMALLEST_LOSS = 1e-12
"""A previous method loss this small cannot be divided by; Eq. (3) then changes nothing."""

LARGEST_CHANGE = 100.0
"""Bound of Eq. (3)'s relative change, so that one wild batch cannot overflow a weight."""

LARGEST_FALL = 1e15
"""Bound of a smoothed method loss's fall, whose square must stay finite in float32."""

RATE = 0.1
"""η of `variance`."""

FORGETTING = 0.005
"""Share of log w that `variance` loses at each step; drift is followed within some 200 updates."""

EVERY = 4
"""Gradient norms are looked at in one batch in so many, and move the weights as far as for all of
them: with the norms of all candidates one batch tells as much as many draws do, and where those of
trained rows alone are seen, looking takes as long as the rest of a step's arithmetic."""

LARGEST_GAIN = 5.0
"""Bound of a method's gain in `variance`, so that one outlier cannot decide."""

Update: TypeAlias = Callable[[State, Tensor], State]
"""From the state and the method losses of a candidate batch, (M,), to new log weights."""

Foresee: TypeAlias = Callable[[State, Tensor, Sequence[Preference], LossBatch, int], State]
"""From the state, importances, preferences, the batch and k to new log weights."""

Learn: TypeAlias = Callable[[State, Feedback], State]
"""From the state and fresh losses of trained rows to new log weights."""


def mixed(log_weights: Tensor, floor: float) -> Tensor:
    """Normalise log weights and lift each method to at least `floor`, shape (M,), sum 1.

    >>> mixed(torch.tensor([0.0, -50.0]), 0.02)
    tensor([0.9800, 0.0200])
    """
    return log_weights.softmax(0) * (1 - floor * log_weights.shape[0]) + floor


def mixed_on_host(log_weights: Floats, floor: float) -> Floats:
    """Do as `mixed` in numpy, whose calls cost a third of torch's.

    >>> mixed_on_host(np.array([0.0, -50.0]), 0.02)
    array([0.98, 0.02])
    """
    weights: Floats = np.exp(log_weights - log_weights.max())
    weights *= (1 - floor * weights.size) / weights.sum()
    weights += np.asarray(floor, dtype=weights.dtype)
    return weights


def loss_ratio(state: State, method_losses: Tensor, *, beta: float = 0.5) -> State:
    """Favour methods whose losses fell: log w += β (ℓ_{t-1} - ℓ_t) / |ℓ_{t-1}|.

    Departs from print in dividing by the absolute value, in changing nothing at the first step
    and where ℓ_{t-1} is 0, and in renormalising, which never changes a selection.

    Args:
        state: the state before.
        method_losses: ℓ_t^m, shape (M,).
        beta: β, in [-1, 1].

    Source: Eq. (3).

    >>> state = replace(State.initial(2), method_losses=torch.tensor([2.0, 1.0]))
    >>> loss_ratio(state, torch.tensor([1.0, 1.0]), beta=1.0).log_weights.exp()
    tensor([0.6225, 0.3775])
    """
    before = state.method_losses
    known = before.abs() > SMALLEST_LOSS  # False for NaN: the first step
    change = (before - method_losses) / torch.where(known, before.abs(), 1.0)
    change = torch.where(known, change.clamp(-LARGEST_CHANGE, LARGEST_CHANGE), 0.0)
    log_weights = (state.log_weights + beta * change).log_softmax(0)
    return replace(state, log_weights=log_weights)


def progress(
    state: State,
    method_losses: Tensor,
    *,
    smoothing: float = 0.1,
    rate: float = 0.1,
    forgetting: float = 0.01,
) -> State:
    """Favour methods whose smoothed losses fall: a standardised Eq. (3) without its drift.

    The mean of each ℓ^m moves by `smoothing` towards the new value; how far it fell, divided by
    the root mean square of such falls over methods and time, is added to log w times `rate`.
    The falls telescope, so noise cannot push a weight for ever, as it does in Eq. (3).

    Args:
        state: the state before.
        method_losses: ℓ_t^m, shape (M,).
        smoothing: in (0, 1].
        rate: step size on log w, above 0.
        forgetting: share of log w that is lost at each step, in [0, 1).

    Source: design of this package; telescoping replaces the ratio of Eq. (3).
    """
    before, square = state.trend
    first = before.isnan()
    mean = torch.where(first, method_losses, before + smoothing * (method_losses - before))
    fall = torch.where(first, 0.0, before - mean).clamp(-LARGEST_FALL, LARGEST_FALL)
    square = square + smoothing * (fall.square() - square)
    scale = square.mean().sqrt()
    standardised = fall / torch.where(scale > 0, scale, 1.0)
    log_weights = (1 - forgetting) * state.log_weights + rate * standardised.clamp(-5.0, 5.0)
    return replace(state, log_weights=log_weights, trend=torch.stack([mean, square]))


def variance(
    state: State,
    feedback: Feedback,
    *,
    rate: float = RATE,
    forgetting: float = FORGETTING,
    largest_gain: float = LARGEST_GAIN,
) -> State:
    """Favour methods that would have drawn the rows with large gradients more often.

    The variance of the gradient estimate is proportional to Σ g²/p, which is convex in w; its
    slope along method m, over the mean slope, is the gain
    G_m = Σ g² α^m/(π p²) ÷ Σ g²/(π p), and log w ← (1-f) log w + η (G - 1).

    Args:
        state: the state before.
        feedback: rows that were trained on; g are their gradient norms, or losses stand for them.
        rate: η, above 0.
        forgetting: f, in [0, 1); drift is followed within about 1/f updates.
        largest_gain: bound of G, so that one outlier cannot decide.

    Source: exponentiated gradient on the estimator's variance (docs/algorithm.md).
    """
    g = torch.where(feedback.valid, feedback.magnitudes, 0.0)
    g = g / g.max().clamp(min=torch.finfo(g.dtype).tiny)  # the gain is free of scale
    p = torch.where(feedback.valid, feedback.probabilities, 1.0)
    share = g.square() / (torch.where(feedback.valid, feedback.inclusions, 1.0) * p)
    total = share.sum()
    gain = (share / p) @ feedback.importances / torch.where(total > 0, total, 1.0)
    push = torch.where(total > 0, gain.clamp(0.0, largest_gain) - 1, 0.0)
    keep, rate = 1 - forgetting * feedback.batches, rate * feedback.batches
    return replace(state, log_weights=keep * state.log_weights + rate * push)


def foreseen_variance(
    state: State,
    importances: Tensor,
    preferences: Sequence[Preference],
    batch: LossBatch,
    k: int,
    *,
    exploration: float,
    floor: float,
) -> State:
    """Do as `variance` does, from all candidates before the choice, if their norms are known.

    The weights then depend on the candidates, never on the draw, so that it stays unbiased.

    Args:
        state: the state before.
        importances: α, shape (M, b).
        preferences: of the M methods.
        batch: the candidates.
        k: how many will be chosen.
        exploration: share of the draw that is even, in (0, 1].
        floor: least weight of each method.
    """
    del preferences, k
    norms = batch.gradient_norms
    if norms is None or state.step % EVERY:
        return state
    mixture = mixed(state.log_weights, floor) @ importances
    p = (1 - exploration) * mixture + exploration / norms.shape[0]
    usable = torch.ones_like(norms, dtype=torch.bool) if batch.finite is None else batch.finite
    feedback = Feedback(norms, importances.T, p, torch.ones_like(p), usable, batches=EVERY)
    return variance(state, feedback)


def alignment(
    state: State,
    importances: Tensor,
    preferences: Sequence[Preference],
    batch: LossBatch,
    k: int,
    *,
    rate: float = 0.5,
    forgetting: float = 0.05,
    every: int = 8,
) -> State:
    """Favour methods whose own k rows have a gradient along that of all candidates.

    Hedge with forgetting: log w ← (1-f) log w + η cos(G_m, G), with G the last layer's mean
    gradient of all candidates and G_m that of the k rows which method m alone would choose.

    Args:
        state: the state before.
        importances: α, shape (M, b).
        preferences: of the M methods.
        batch: the candidates.
        k: how many rows each method would choose.
        rate: η, above 0.
        forgetting: f, in [0, 1).
        every: candidate batches between two updates, at least 1; the gradients of all methods' own
            rows cost more than the rest of a step, and change slowly.

    Raises:
        MethodError: the batch has no last layer.

    Source: design of this package; Freund and Schapire 1997 for Hedge.
    """
    last = batch.last_layer
    if last is None:
        raise MethodError(
            "the policy 'aligned' needs last-layer quantities, the batch has only losses; give "
            "the loader model= with a linear last layer and no record=, or let score return "
            "Scored(losses, residuals, features)"
        )
    if state.step % every:
        return state
    rewards = cosine(mean_gradients(last, picks(preferences, batch, k)), batch.gradient)
    return replace(state, log_weights=(1 - forgetting) * state.log_weights + rate * rewards)
