"""The policy at work: how many rows of each candidate batch, which, and what came of them."""

import logging
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adasel_stream.adaselection import Policy, step
from adasel_stream.barren import BarrenWindows
from adasel_stream.buffer import kept_at
from adasel_stream.draw import dealt
from adasel_stream.loss_batch import Bounds, LossBatch, Method
from adasel_stream.methods import needs, uniform
from adasel_stream.paying import Gain, Rules, Watch, after_batch, after_costs, after_sight, gain_of
from adasel_stream.precision import full_precision
from adasel_stream.quota import Quota
from adasel_stream.selection import Feedback, Selection, State
from adasel_stream.telling import switch
from adasel_stream.trained import TrainedNorms
from adasel_stream.types import Scored

__all__ = ["Chooser"]

_log = logging.getLogger(__name__)

_SEEDS = 2**63

_WINDOW = 4096
"""Losses of so many rows that came last are kept for methods that compare with them."""


class Chooser:
    """Choose from candidate batches, one after the other, and learn from fresh losses.

    It holds what AdaSelection carries from batch to batch: its state, the randomness of its
    draws and the rows that are due.

    Args:
        methods: candidate methods by name.
        policy: the rule of selection.
        sampling_rate: share of candidates to choose, in (0, 1].
        seed: seeds the draws.

    Raises:
        ValueError: an argument out of its range, or a policy's floor too high for the methods.
        TypeError: an argument of another type.

    >>> from adasel_stream.methods import resolve_methods
    >>> from adasel_stream.policies import paper
    >>> chooser = Chooser(resolve_methods(["big_loss"]), paper(), sampling_rate=0.5, seed=0)
    >>> chooser.choose(Scored(torch.tensor([0.1, 4.0, 1.0, 1.2]))).indices
    tensor([1, 3])
    """

    def __init__(
        self, methods: Mapping[str, Method], policy: Policy, *, sampling_rate: float, seed: int
    ) -> None:
        if policy.floor * len(methods) > 1:
            raise ValueError(
                f"floor {policy.floor} for each of {len(methods)} methods is more than 1 in all; "
                "lower it"
            )
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise TypeError(f"seed must be a whole number, got {type(seed).__name__}")
        if not 0 <= seed < _SEEDS:
            raise ValueError(f"seed must be in [0, 2**63), got {seed}")
        self._methods = methods
        self._evenly = dict.fromkeys(methods, uniform)
        self._policy = policy
        self._quota = Quota(sampling_rate, whole_batches=policy.whole_batches)
        self._seed = seed
        self._state: State | None = None
        self._generator: torch.Generator | None = None
        self._barren = BarrenWindows()
        self._window: Tensor | None = None
        self._foreseen = False
        wanted = needs(methods) | policy.needs
        self._wants_norms = "last_layer_if_any" in wanted
        self._trained = TrainedNorms()
        self._watch = Watch()
        self._draws: dict[str, Any] | None = None  # a restored generator's, until its device is met

    @property
    def learns(self) -> bool:
        """Whether `learn` is of use: not where the gradients of all candidates are known."""
        wants = self._policy.learn is not None or self._wants_norms
        return wants and not self._foreseen

    @property
    def wants_norms(self) -> bool:
        """Whether gradient norms of trained rows are of use, where candidates show none."""
        return self._wants_norms

    def count_trained(self, *, judged: bool) -> int:
        """Count a batch that is trained on, and say for how many its gradient norms will stand.

        None: 0. All are looked at until enough was seen to judge by, and while rows are drawn
        evenly those with rows that judge.

        Args:
            judged: whether the batch has rows that show whether selection pays.
        """
        rules = self._policy.watch or Rules()
        always = judged and not self._watch.selecting
        return self._trained.count(first=rules.least, always=always)

    @property
    def unseen(self) -> bool:
        """Whether gradients of trained rows were looked for in vain, time and again."""
        return self._trained.unseen

    def emit(self) -> None:
        """Take in that a batch was given to the trainer."""
        if self._wants_norms and self.learns:
            self._trained.emit()
            self._sight(seen=False)

    def see(self, *, seen: bool) -> None:
        """Take in whether gradients of a trained batch, which were looked for, were seen."""
        self._trained.see(seen=seen)
        self._sight(seen=seen)

    def _sight(self, *, seen: bool) -> None:
        if self._policy.watch is None or not (seen or self._trained.unseen):
            return
        before = self._watch
        self._watch = after_sight(before, seen=seen)
        self._tell(before)

    @property
    def rules(self) -> Rules | None:
        """When the policy falls back to an even draw, or None for never."""
        return self._policy.watch

    @property
    def watch(self) -> Watch:
        """What was seen of whether selection pays."""
        return self._watch

    @property
    def gain(self) -> Gain:
        """Gain over uniform sampling."""
        return gain_of(self._watch, self._policy.watch or Rules())

    @property
    def wants_losses(self) -> bool:
        """Whether the next candidates shall be scored; an even draw needs no losses."""
        return self._policy.watch is None or self._watch.scores(self._policy.watch)

    def choose(
        self,
        scored: Scored,
        *,
        reference: Tensor | None = None,
        previous: Tensor | None = None,
        told: Tensor | None = None,
        known: bool = True,
        bounds: Callable[[LossBatch], Bounds] | None = None,
    ) -> Selection | None:
        """Choose as many rows as are due, or None when none are.

        Args:
            scored: losses of the candidates, b of them.
            reference: losses under a reference model, shape (b,), NaN where unknown.
            previous: losses that were recorded before, shape (b,), NaN where unknown.
            told: losses, shape (b,), NaN where they are a guess; None where none is.
            known: whether the losses are more than a guess that stands for all.
            bounds: says what the choice is held to, or None for nothing.

        Raises:
            MethodError: a method's preferences cannot be used; nothing was chosen.
        """
        losses, norms = scored.losses, scored.gradient_norms
        rows, usable = losses.shape[0], _count_finite(losses, norms)
        k = self._quota.take(rows if usable is None else usable)
        self._barren.look(rows, usable)
        if k == 0:
            return None
        state, generator = self._prepare(losses)
        noise = (
            torch.empty_like(losses).normal_(generator=generator) if self._policy.noisy else None
        )
        expected = None
        if norms is None:
            expected = self._trained.expected(losses if told is None else told)
        batch = LossBatch.of(
            losses,
            gradient_norms=norms,
            expected_norms=expected,
            last_layer=scored.last_layer,
            all_finite=usable == rows,
            noise=noise,
            reference=reference,
            previous=previous,
            window=self._window,
            control=self._control(losses, generator),
            even=not self._watch.selecting,
            compared=known and self._compares(state),
        )
        if bounds is not None:
            batch = replace(batch, bounds=bounds(batch))
        # what nobody knows anything of no method can prefer, and it may need more than a guess
        methods = self._methods if known or self._policy.watch is None else self._evenly
        try:
            after, chosen = step(state, batch, k, methods, self._policy, generator)
        except Exception:  # whatever a method raises: nothing was chosen
            self._quota.give_back(rows if usable is None else usable, k)
            raise
        if known:  # what nobody knows teaches nothing
            self._foreseen = self._policy.foresee is not None and norms is not None
            self._see(losses)
            self._state = after
        else:
            self._state = replace(state, step=after.step)
        if batch.bounds is None:
            return chosen
        return replace(chosen, suspicious=_flagged(batch.bounds, chosen))

    def dealt(self, chosen: Selection) -> Selection:
        """Mix chosen rows for more than one batch, so that each batch is as all of them are.

        By a number of its own: whether rows are dealt must not change which rows are drawn.
        """
        assert self._state is not None, "something was chosen"
        rows = chosen.indices
        k = rows.shape[0]
        start = random.Random(f"{self._seed} {self._state.step}").randrange(k)
        return chosen.reordered(dealt(k, start, rows.device))

    def require_finite(self) -> None:
        """Give up where no loss has been finite for so long that none will be.

        Raises:
            ScoreError: nothing could be chosen from the last hundred windows.
        """
        self._barren.require_finite()

    def hear(
        self,
        variances: tuple[float, float] | None,
        mean: float,
        nonfinite: float | None,
        *,
        trained: bool = False,
    ) -> None:
        """Take in what a window of candidates, or fresh losses of the control arm, showed.

        Args:
            variances: as `Selection.variances`, both about the mean of all candidates, or None if
                unknown.
            mean: mean loss of rows that were not chosen by their losses; NaN if unknown.
            nonfinite: share of losses that are not finite, None if unknown.
            trained: whether it is of rows that were trained on.
        """
        rules = self._policy.watch
        if rules is None:
            return
        before = self._watch
        if variances is not None:
            variances = _with_candidates_own(variances, self._quota.sampling_rate)
        self._watch = after_batch(
            self._watch,
            rules,
            variances=variances,
            mean_loss=mean,
            nonfinite=nonfinite,
            trained=trained,
        )
        self._tell(before, mean)

    def hear_costs(self, *, selecting_s: float, training_s: float) -> None:
        """Take in the seconds that finding and that training emitted rows took lately."""
        self._watch = after_costs(self._watch, selecting_s=selecting_s, training_s=training_s)

    def give_up(self) -> None:
        """Draw evenly from now on: the arithmetic says that selection cannot pay."""
        before = self._watch
        self._watch = replace(self._watch, reason="cost")
        self._tell(before)

    def learn(self, feedback: Feedback) -> None:
        """Move the method weights, and what is expected of losses, by rows that were trained on."""
        if self._state is None:
            return
        with full_precision(feedback.losses.device):
            if self._policy.learn is not None:
                self._state = self._policy.learn(self._state, feedback)
            self._trained.learn(feedback)

    def state_dict(self) -> dict[str, Any]:
        """Describe the policy's state, the randomness and the count of rows."""
        state, generator = self._state, self._generator
        if generator is not None:
            self._draws = {"device": generator.device.type, "state": generator.get_state()}
        return {
            "policy": None if state is None else state.state_dict(),
            "generator": self._draws,
            "quota": self._quota.state_dict(),
            "window": None if self._window is None else self._window.clone(),
            "foreseen": self._foreseen,
            "watch": self._watch.state_dict(),
            "trained": self._trained.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None) -> None:
        """Go on from `state`, on `device` or on one like that it came from."""
        policy = state["policy"]
        self._state = None
        if policy is not None:
            self._state = State.of_state(policy, kept_at(policy["device"], device))
        self._generator, self._draws = None, state["generator"]
        self._quota.load_state_dict(state["quota"])
        self._window, self._foreseen = state["window"], bool(state["foreseen"])
        self._watch = Watch.of_state(state["watch"])
        self._trained.load_state_dict(state["trained"])

    def _control(self, losses: Tensor, generator: torch.Generator) -> Tensor | None:
        """Draw the control arm: a share of the candidates, or all after a fall back."""
        rules = self._policy.watch
        if rules is None:
            return None
        if not self._watch.selecting:
            return torch.ones_like(losses, dtype=torch.bool)
        lots = torch.rand(losses.shape, generator=generator, device=losses.device)
        return lots < rules.control

    def _compares(self, state: State) -> bool:
        rules = self._policy.watch
        if rules is None:
            return False
        early = state.step < rules.least
        return early or not self._watch.selecting or state.step % rules.compare_every == 0

    def _see(self, losses: Tensor) -> None:
        """Remember the last losses for methods that compare with them."""
        if self._window is None:
            if "window" not in needs(self._methods):
                return
            self._window = losses.new_full((_WINDOW,), torch.nan)
        seen = torch.where(torch.isfinite(losses), losses, torch.nan)
        self._window = torch.cat([self._window.to(losses.device), seen])[-_WINDOW:]

    def _tell(self, before: Watch, mean: float = math.nan) -> None:
        """Log a change of mind, with the numbers behind it."""
        now, rules = self._watch, self._policy.watch
        if now.reason == before.reason or rules is None:
            return
        window = 0 if self._state is None else self._state.step
        _log.warning("window %d: %s", window, switch(before, now, rules, mean_loss=mean))

    def _prepare(self, losses: Tensor) -> tuple[State, torch.Generator]:
        """Give the state and the generator, on the device of the losses."""
        device, state = losses.device, self._state
        if state is None:
            state = State.initial(len(self._methods), dtype=losses.dtype, device=device)
        state = state.to(device)
        if self._generator is None or self._generator.device != device:
            # draws cannot go on on another kind of device: there they begin anew, not as before
            self._generator = torch.Generator(device).manual_seed(self._seed + state.step)
            if self._draws is not None and self._draws["device"] == device.type:
                self._generator.set_state(self._draws["state"])
        return state, self._generator


def _count_finite(losses: Tensor, norms: Tensor | None) -> int | None:
    """Count rows that may be chosen, where that is known without asking a device."""
    if losses.device.type != "cpu":
        return None
    finite = np.isfinite(losses.numpy())
    if norms is not None:
        finite &= np.isfinite(norms.numpy())
    return int(finite.sum())


def _flagged(bounds: Bounds, chosen: Selection) -> Tensor:
    """Count chosen rows that look suspicious, shape (), int64."""
    flagged = bounds.flagged.index_select(0, chosen.indices)
    return (flagged if chosen.valid is None else flagged & chosen.valid).sum()


def _with_candidates_own(
    variances: tuple[float, float], sampling_rate: float
) -> tuple[float, float]:
    """Add the noise that comes with the candidates themselves, which no choice from them removes.

    Both variances are about the mean of b candidates. That varies as much as an even draw of b rows
    from the stream, and an even draw of γb of these b rows as 1/γ - 1 times that.
    """
    ours, even = variances
    own = even * sampling_rate / (1 - sampling_rate) if sampling_rate < 1 else 0.0
    return ours + own, even + own
