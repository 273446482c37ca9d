"""How method weights move: Eq. (3) and the updates that stay useful on an endless stream.

`loss_ratio` and `progress` look at the losses of what each method would choose, before the
choice; `variance` looks at fresh losses of what was trained on, after it. All work on log w,
because the printed product underflows within some ten thousand steps.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from adasel_stream.types import Feedback, State

__all__ = ["Learn", "Update", "loss_ratio", "mixed", "progress", "variance"]

SMALLEST_LOSS = 1e-12
"""A previous method loss this small cannot be divided by; Eq. (3) then changes nothing."""

LARGEST_CHANGE = 100.0
"""Bound of Eq. (3)'s relative change, so that one wild batch cannot overflow a weight."""

LARGEST_FALL = 1e15
"""Bound of a smoothed method loss's fall, whose square must stay finite in float32."""

Update: TypeAlias = Callable[[State, Tensor], State]
"""From the state and the method losses of a candidate batch, (M,), to new log weights."""

Learn: TypeAlias = Callable[[State, Feedback], State]
"""From the state and fresh losses of trained rows to new log weights."""


def mixed(log_weights: Tensor, floor: float) -> Tensor:
    """Normalise log weights and lift each method to at least `floor`, shape (M,), sum 1.

    >>> mixed(torch.tensor([0.0, -50.0]), 0.02)
    tensor([0.9800, 0.0200])
    """
    return log_weights.softmax(0) * (1 - floor * log_weights.shape[0]) + floor


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
    rate: float = 0.1,
    forgetting: float = 0.005,
    largest_gain: float = 5.0,
) -> State:
    """Favour methods that would have drawn the rows with large gradients more often.

    The variance of the gradient estimate is proportional to Σ g²/p, which is convex in w; its
    slope along method m, over the mean slope, is the gain
    G_m = Σ g² α^m/(π p²) ÷ Σ g²/(π p), and log w ← (1-f) log w + η (G - 1).

    Args:
        state: the state before.
        feedback: rows that were trained on; their losses stand for g.
        rate: η, above 0.
        forgetting: f, in [0, 1); drift is followed within about 1/f updates.
        largest_gain: bound of G, so that one outlier cannot decide.

    Source: exponentiated gradient on the estimator's variance (docs/algorithm.md).
    """
    g = torch.where(feedback.valid, feedback.losses, 0.0).abs()
    g = g / g.max().clamp(min=torch.finfo(g.dtype).tiny)  # the gain is free of scale
    p = torch.where(feedback.valid, feedback.probabilities, 1.0)
    share = g.square() / (torch.where(feedback.valid, feedback.inclusions, 1.0) * p)
    total = share.sum()
    gain = (share / p) @ feedback.importances / torch.where(total > 0, total, 1.0)
    push = torch.where(total > 0, gain.clamp(0.0, largest_gain) - 1, 0.0)
    return replace(state, log_weights=(1 - forgetting) * state.log_weights + rate * push)
