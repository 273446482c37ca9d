"""The step of the policy `auto` on a CPU, in a fraction of the time: the same in numpy.

`adaselection.step` says what is computed; this module computes the same, and leaves a batch to it
where it cannot: on an accelerator, with masked rows, or with methods of a user's own.
numpy's calls cost a third of torch's at the size of a candidate batch.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from adasel_stream.draw import by_pull, compared
from adasel_stream.loss_batch import LossBatch, Method, Preference
from adasel_stream.methods import METHODS
from adasel_stream.selection import Selection, State
from adasel_stream.updates import EVERY, FORGETTING, LARGEST_GAIN, RATE, mixed_on_host

__all__ = ["auto_in_proportion"]

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Rows: TypeAlias = npt.NDArray[np.int64]

BUILT_IN: frozenset[Method] = frozenset(METHODS.values())
"""Methods that give a `Preference`."""


def auto_in_proportion(
    state: State,
    batch: LossBatch,
    k: int,
    methods: Mapping[str, Method],
    generator: torch.Generator | None,
    *,
    exploration: float,
    floor: float,
) -> tuple[State, Selection] | None:
    """Take the step of the policy `auto`, or return None to leave it.

    Args:
        state: what the batches before left behind.
        batch: candidates with a control arm.
        k: how many to choose, in [1, b].
        methods: candidate methods by name.
        generator: randomness of the draw.
        exploration: share of the draw that is even, in (0, 1].
        floor: least weight of each method.

    Returns:
        the next state and the selection that `adaselection.step` would give, up to rounding.
    """
    if batch.losses.device.type != "cpu" or batch.finite is not None or batch.control is None:
        return None
    if batch.bounds is not None or not BUILT_IN.issuperset(methods.values()):
        return None
    wanted = [method(batch) for method in methods.values()]
    preferences = [one for one in wanted if isinstance(one, Preference)]
    losses: Floats = batch.losses.numpy()
    b = losses.size
    importances = _shares(np.stack([one.values().numpy() for one in preferences]))  # Eq. (2)
    now = np.einsum("mb,b->m", importances, losses)
    log_weights = state.log_weights.numpy()
    if batch.gradient_norms is not None and state.step % EVERY == 0:
        mixture = np.einsum("m,mb->b", mixed_on_host(log_weights, floor), importances)
        p = (1 - exploration) * mixture + exploration / b
        gain = _gains(batch.gradient_norms.numpy(), importances, p)
        log_weights = (1 - EVERY * FORGETTING) * log_weights
        log_weights += EVERY * RATE * (np.clip(gain, 0.0, LARGEST_GAIN) - 1)
    method_weights = mixed_on_host(log_weights, floor)
    p = np.einsum("m,mb->b", method_weights, importances)  # Eq. (5)
    p *= (1 - exploration) / p.sum()
    p += exploration / b
    proposed = _filled(p.astype(np.float64), k)  # Eq. (6)
    control = batch.control.numpy()
    even = control * (k / b)
    total, least = max(0.0, k - even.sum()), exploration * k / b
    pi = np.where(control, even, _resized(np.where(control, 0.0, proposed), total, least))
    by_score = by_pull(batch).numpy().argsort()
    layout = torch.randperm(b, generator=generator).numpy() if batch.even else by_score
    offset = torch.rand((), generator=generator)
    rows = _met(pi.take(layout).cumsum(), layout, k, float(offset.numpy()))
    chosen = pi.take(rows).astype(p.dtype)
    proposal = np.where(control.take(rows), proposed.take(rows), np.nan).astype(p.dtype)
    variances = None
    if batch.compared and batch.last_layer is not None:
        both = torch.from_numpy(proposed), torch.from_numpy(pi)
        variances = compared(
            batch, k, torch.from_numpy(rows), *both, torch.from_numpy(by_score), offset, generator
        )
    after = replace(
        state,
        step=state.step + 1,
        log_weights=torch.from_numpy(log_weights),
        method_losses=torch.from_numpy(now),
    )
    return after, Selection(
        torch.from_numpy(rows),
        torch.from_numpy((k / b) / chosen),
        torch.from_numpy(p.take(rows)),
        torch.from_numpy(chosen),
        torch.from_numpy(importances.take(rows, axis=1)).T,
        torch.from_numpy(method_weights),
        torch.from_numpy(now),
        proposed=torch.from_numpy(proposal),
        variances=variances,
    )


def _shares(values: Floats) -> Floats:
    """Do as `importances.proportional`, for values of shape (M, b)."""
    values -= np.minimum(values.min(1, keepdims=True), 0)
    largest = values.max(1, keepdims=True)
    if not largest.all():
        values[largest[:, 0] == 0] = 1.0
        largest[largest == 0] = 1.0
    values /= largest
    values /= np.einsum("mb->m", values)[:, None]
    return values


def _gains(norms: Floats, importances: Floats, p: Floats) -> Floats:
    """Give the gain of each method as `updates.variance` does, 1 where all norms are 0."""
    largest = norms.max()
    if not largest > 0:
        return np.ones(importances.shape[0], dtype=norms.dtype)
    g = norms / largest
    share = g * g / p
    gains: Floats = np.einsum("b,mb->m", share / p, importances) / share.sum()
    return gains


def _filled(p: npt.NDArray[np.float64], total: float) -> npt.NDArray[np.float64]:
    """Fill water as `filling.inclusions` does."""
    amount = p.sum()
    if amount <= 0 or total <= 0:
        return np.zeros_like(p)
    even: npt.NDArray[np.float64] = p * (total / amount)
    if even.max() <= 1:
        return even
    falling = np.sort(p)[::-1][: int(np.ceil(total))]
    rest = np.append(falling[::-1].cumsum()[::-1], 0.0)[:-1] + (amount - falling.sum())
    c = (total - np.arange(falling.size)) / np.maximum(rest, 1e-300)
    at_one = min(int((falling * c >= 1).sum()), falling.size - 1)
    filled: npt.NDArray[np.float64] = np.minimum(p * c[at_one], 1.0)
    return filled


def _resized(own: npt.NDArray[np.float64], total: float, least: float) -> npt.NDArray[np.float64]:
    """Change probabilities as `filling.resized` does; those that are 0 are of other rows."""
    amount, floor = own.sum(), np.count_nonzero(own) * least
    if total > amount:
        return _filled(own, total)
    share = (total - floor) / max(amount - floor, 1e-300)
    shrunk: npt.NDArray[np.float64] = least + (own - least) * min(max(share, 0.0), 1.0)
    return shrunk


def _met(ends: npt.NDArray[np.float64], layout: Rows, k: int, offset: float) -> Rows:
    """Take one row every 1 as `draw.systematic` does."""
    places = ends.searchsorted(np.arange(k) + offset, side="right")
    return layout.take(np.minimum(places, layout.size - 1))
