"""AdaSelection: mix candidate methods into one score and choose by it.

`step` is Algorithm 2 for one candidate batch; `Policy` names the reading of each equation that
is in force. State and results are frozen, and nothing here waits for the device. Every
departure from the printed paper is listed with its reason in docs/algorithm.md.

Letters: b candidates, k selected, M methods. Source: section 3.2 of the paper.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from adasel_stream.draw import Choose
from adasel_stream.errors import MethodError
from adasel_stream.importances import Importances, picks
from adasel_stream.loss_batch import LossBatch, Method, Preference
from adasel_stream.methods import DEFAULT_METHODS
from adasel_stream.paying import Rules
from adasel_stream.selection import Selection, State
from adasel_stream.updates import Foresee, Learn, Update, mixed

__all__ = [
    "Policy",
    "curriculum",
    "expected_losses",
    "log_scores",
    "picked_losses",
    "step",
]

_log = logging.getLogger(__name__)

MethodLosses: TypeAlias = Callable[[Tensor, Sequence[Preference], LossBatch, int], Tensor]
"""ℓ_t^m of every method, (M,), from importances, preferences, the batch and k."""

Kernel: TypeAlias = Callable[
    [State, LossBatch, int, Mapping[str, Method], torch.Generator | None],
    tuple[State, Selection] | None,
]
"""A faster way to a policy's own selection, for the batches that it can take, else None."""

Reward: TypeAlias = Callable[[Tensor, int], Tensor]
"""Eq. (4): log r of each row, (b,), from losses and t."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A rule of selection: which reading of each equation is in force.

    Attributes:
        name: as shown in metrics.
        importances: reading of Eq. (2).
        method_losses: reading of ℓ_t^m in Eq. (3).
        choose: Eq. (6), a top-k or an unbiased draw.
        update: method-weight update before the choice, such as Eq. (3), or None.
        learn: method-weight update after training, or None.
        foresee: method-weight update before the choice by the last layer's gradients of all
            candidates, or None; where those are known it stands in for `learn`.
        methods: candidate methods where a user names none.
        needs: what the policy itself looks at beside losses, as in `methods.NEEDS`.
        reward: Eq. (4), or None for the constant 1.
        floor: least weight of each method, in [0, 1/M].
        watch: when to fall back to an even draw and when to come back, or None for never.
        noisy: whether `uniform` ranks rows by fresh noise; a top-k has no chance of its own.
        whole_batches: whether k is rounded in every batch, as printed, instead of carried.
        kernel: a faster way to the same selection, or None.
        settings: the numbers behind the functions, in plain data; a snapshot is only loaded under
            the settings it was taken with.
    """

    name: str
    importances: Importances
    method_losses: MethodLosses
    choose: Choose
    update: Update | None = None
    learn: Learn | None = None
    foresee: Foresee | None = None
    methods: tuple[str, ...] = DEFAULT_METHODS
    needs: frozenset[str] = frozenset()
    reward: Reward | None = None
    floor: float = 0.0
    watch: Rules | None = None
    noisy: bool = False
    whole_batches: bool = False
    kernel: Kernel | None = None
    settings: Mapping[str, float | str | None] = field(
        default_factory=dict[str, float | str | None]
    )


def step(
    state: State,
    batch: LossBatch,
    k: int,
    methods: Mapping[str, Method],
    policy: Policy,
    generator: torch.Generator | None = None,
) -> tuple[State, Selection]:
    """Choose k of the b candidates: lines 5 to 7 of Algorithm 2.

    Args:
        state: what the batches before left behind.
        batch: losses of the candidates, at least one.
        k: how many to choose, in [1, b].
        methods: the M candidate methods by name.
        policy: reading of the equations.
        generator: randomness of the draw, on the device of the losses.

    Returns:
        the next state and the selection; no input is changed. Where no row may be chosen, the
        state's weights stay as they were.

    Raises:
        MethodError: a method does not give one preference per candidate.

    >>> from adasel_stream.methods import resolve_methods
    >>> from adasel_stream.policies import paper
    >>> batch = LossBatch(torch.tensor([0.1, 4.0, 1.0, 1.2]))
    >>> methods = resolve_methods(["big_loss", "small_loss"])
    >>> state, selection = step(State.initial(2), batch, 2, methods, paper())
    >>> selection.indices
    tensor([1, 0])
    """
    if policy.kernel and (done := policy.kernel(state, batch, k, methods, generator)):
        return done
    preferences = [_prefer(name, method, batch) for name, method in methods.items()]
    importances = policy.importances(preferences, batch, k)  # Eq. (2), (M, b)
    now = policy.method_losses(importances, preferences, batch, k)  # ℓ_t^m, (M,)
    after = policy.update(state, now) if policy.update else state  # Eq. (3)
    if policy.foresee:
        after = policy.foresee(after, importances, preferences, batch, k)
    method_weights = mixed(after.log_weights, policy.floor)  # (M,)
    log_reward = policy.reward(batch.losses, state.step + 1) if policy.reward else None  # Eq. (4)
    scores = log_scores(importances, method_weights, log_reward, batch)  # Eq. (5), (b,)
    drawn = policy.choose(scores, batch, k, generator)  # Eq. (6), k rows
    after = _unless_empty(batch, replace(after, step=state.step + 1, method_losses=now), state)
    chosen = importances.index_select(1, drawn.indices).T
    valid = None if batch.finite is None else torch.arange(k, device=now.device) < batch.count
    four = (drawn.indices, drawn.weights, drawn.probabilities, drawn.inclusions)
    why = (chosen, method_weights, now, valid)
    return after, Selection(*four, *why, drawn.proposed, drawn.variances)


def log_scores(
    importances: Tensor, method_weights: Tensor, log_reward: Tensor | None, batch: LossBatch
) -> Tensor:
    """Mix importances into log s = log r + log Σ_m w_m α^m, shape (b,).

    In logs, because rewards of small losses underflow; -inf marks rows that may not be chosen.

    Source: Eq. (5).
    """
    mixture = method_weights @ importances
    scores = mixture.clamp(min=torch.finfo(mixture.dtype).tiny).log()
    if log_reward is not None:
        scores = scores + log_reward
    return batch.masked(scores)


def curriculum(exponent: float) -> Reward:
    """Reward easy rows early: log r = -t^exponent · l / Σl².

    The paper prints the exponent γ, which lets the reward grow sharper with t while its text says
    that it fades; the text's reading is a negative exponent, such as -sampling_rate. Losses are
    divided by their largest magnitude first, so that neither tiny nor huge ones overflow.

    Source: Eq. (4).

    >>> curriculum(-0.5)(torch.tensor([1.0, 2.0]), 4)
    tensor([-0.1000, -0.2000])
    """

    def reward(losses: Tensor, t: int) -> Tensor:
        largest = losses.abs().max()
        some = largest > 0
        v = losses / torch.where(some, largest, 1.0)
        denominator = torch.where(some, largest * v.square().sum(), 1.0)
        bound = torch.finfo(losses.dtype).max / 4
        fading: float = float(t) ** exponent
        return (-fading * v / denominator).clamp(-bound, bound)

    return reward


def picked_losses(
    importances: Tensor, preferences: Sequence[Preference], batch: LossBatch, k: int
) -> Tensor:
    """Average the losses of the k rows that each method alone would choose, shape (M,).

    The printed text averages the whole batch, which gives every method the same factor in
    Eq. (3), so that the weights never move apart.
    """
    del importances
    losses = batch.losses[picks(preferences, batch, k)]
    if batch.finite is None:
        return losses.mean(1)
    filled = torch.arange(k, device=losses.device) < batch.count
    return (losses * filled).sum(1) / filled.sum().clamp(min=1)


def expected_losses(
    importances: Tensor, preferences: Sequence[Preference], batch: LossBatch, k: int
) -> Tensor:
    """Average all losses by each method's importances, shape (M,): what it would draw."""
    del preferences, k
    return importances @ batch.losses


def _prefer(name: str, method: Method, batch: LossBatch) -> Preference:
    try:
        wanted = method(batch)
    except Exception as error:
        error.add_note(
            f"It came from method {name!r}, which is given a LossBatch (losses, ranks, finite, "
            "noise, window, previous, reference, last_layer) and nothing else of the candidates."
        )
        raise
    if isinstance(wanted, Preference):
        return wanted
    if not isinstance(wanted, Tensor):
        raise MethodError(f"method {name!r} returned {type(wanted).__name__}, expected a tensor")
    if wanted.shape != batch.losses.shape:
        raise MethodError(
            f"method {name!r} returned shape {tuple(wanted.shape)}, expected "
            f"{tuple(batch.losses.shape)}: one preference per candidate"
        )
    # a preference that is NaN counts as the least; infinities as the most and the least
    bound = 1e30
    if wanted.device.type == "cpu" and wanted.isnan().any():
        _tell_once(name)
    values = wanted.detach().to(batch.losses.dtype).nan_to_num(-bound, bound, -bound)
    return Preference(values=lambda: values)


@cache
def _tell_once(name: str) -> None:
    _log.warning(
        "method %r prefers some rows by NaN, which counts as the least: a logarithm or a root of "
        "what is negative, perhaps",
        name,
    )


def _unless_empty(batch: LossBatch, after: State, before: State) -> State:
    if not isinstance(batch.count, Tensor):
        return after
    some = batch.count > 0
    return State(
        after.step,
        torch.where(some, after.log_weights, before.log_weights),
        torch.where(some, after.method_losses, before.method_losses),
        torch.where(some, after.trend, before.trend),
    )
