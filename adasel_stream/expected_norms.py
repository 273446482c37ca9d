"""How large gradients are at each loss: learnt from trained rows, for rows known by it alone.

Where no forward pass shows gradients of candidates, their losses are all there is to go by. What
these say of gradients depends on the loss function, and on how old or how cheap the losses are: a
squared error's gradient grows with its root, a cross-entropy's hardly any more above 2, an absolute
error's not at all, and a loss that nobody computed lately says nothing. So trained rows, whose
gradients `backward` sees, are put into classes by the loss that they had been chosen by, and

    expected norm = √E[‖g‖² | loss]

is what a row with such a loss is drawn in proportion to. Of all draws that know losses alone, that
is the one under which the gradient estimate varies least; where losses say nothing it is even.

Classes are octaves on either side of 0, rows shared between the two that are nearest, so that the
curve bends but never jumps; one more is for rows without a loss. What a class has not seen enough
of it takes from its neighbours. Values are frozen, and nothing here waits for the device.

Source: the optimal chances of importance sampling, Katharopoulos and Fleuret 2018, section 3.1,
given what is known of a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from adasel_stream.selection import Feedback
from adasel_stream.updates import FORGETTING

__all__ = ["NormCurve", "expected_norms", "with_trained"]

_OCTAVES: Final = 63
"""Losses from 2⁻⁶³ to 2⁶³ are told apart by their octave, smaller and larger ones are not."""

_ZERO: Final = 2 * _OCTAVES + 2
"""The class of loss 0, between those of negative losses and those of positive ones."""

_NOBODY: Final = 2 * _ZERO
"""The class of rows without a loss, the last one."""

_LEAST: Final = 100
"""From fewer rows nothing is concluded."""

_OUTLIER: Final = 1e4
"""A squared norm is at most so many times their mean."""

_HUGE: Final = 1e30
"""And at most this, so that sums stay finite in float32."""

_MOST: Final = 256
"""Of a larger batch about so many rows are looked at, evenly spread over it."""

_BORROWED: Final = 16.0
"""A class that has seen so many rows believes itself and its neighbours alike."""


@dataclass(frozen=True)
class NormCurve:
    """What trained rows have shown, by class.

    Attributes:
        seen: how many rows, at most.
        rows: faded counts, shape (K,).
        squares: faded sums of squared gradient norms, shape (K,).
        near: how much classes believe each other, shape (K, K); it never changes.
    """

    seen: int
    rows: Tensor
    squares: Tensor
    near: Tensor

    @classmethod
    def initial(cls, device: torch.device | None = None) -> "NormCurve":
        """Know nothing.

        >>> NormCurve.initial().known
        False
        """
        nothing = torch.zeros(_NOBODY + 1, device=device)
        return cls(0, nothing, nothing, _nearness(nothing.device))

    @property
    def known(self) -> bool:
        """Whether enough was seen to go by."""
        return self.seen >= _LEAST

    @cached_property
    def norms(self) -> Tensor:
        """What each class expects, shape (K,): by its own rows while there are, else others'."""
        total = self.squares.sum() / self.rows.sum().clamp(min=1)
        known, own = torch.stack([self.rows, self.squares]) / (self.rows + _BORROWED)
        near_known, near_own = torch.stack([known, own]) @ self.near
        borrowed = torch.where(near_known > 0, near_own / near_known, total)
        norms: Tensor = (own + (1 - known) * borrowed).sqrt()
        return norms

    @cached_property
    def steps(self) -> Tensor:
        """What more the next class expects, shape (K,)."""
        return self.norms.diff(append=self.norms[-1:])

    def to(self, device: torch.device) -> "NormCurve":
        """Bring it to a device."""
        if self.rows.device == device:
            return self
        tensors = (self.rows, self.squares, self.near)
        return NormCurve(self.seen, *(one.to(device) for one in tensors))

    def state_dict(self) -> dict[str, Any]:
        """Describe what was seen."""
        return {"seen": self.seen, "rows": self.rows, "squares": self.squares}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "NormCurve":
        """Go on from what `state_dict` described."""
        rows = state["rows"]
        return cls(int(state["seen"]), rows, state["squares"], _nearness(rows.device))


def with_trained(curve: NormCurve, feedback: Feedback) -> NormCurve:
    """Take in rows that were trained on, whose losses at the choice and whose norms are known.

    Args:
        curve: what was known before.
        feedback: B rows.
    """
    assert feedback.gradient_norms is not None
    assert feedback.chosen_by is not None
    each = -(-len(feedback.losses) // _MOST)
    columns = (feedback.gradient_norms, feedback.chosen_by, feedback.valid)
    norms, losses, valid = (column[::each] for column in columns)
    square = torch.where(valid, norms, 0.0).square().clamp(max=_largest(curve))
    away = (_places(losses)[:, None] - _classes(losses.device)).abs()
    shares = (1 - away).clamp(min=0) * valid[:, None]
    new = torch.stack([valid.float(), square]) @ shares
    keep = 1 - FORGETTING * feedback.batches
    rows, squares = torch.stack([curve.rows, curve.squares]) * keep + new
    return NormCurve(curve.seen + len(losses), rows, squares, curve.near)


def expected_norms(curve: NormCurve, losses: Tensor) -> Tensor:
    """Give √E[‖g‖² | loss] of rows, shape (b,).

    Args:
        curve: what trained rows have shown.
        losses: of the rows, shape (b,), NaN where there is none.

    >>> seen, even = torch.tensor([1.0, 4.0]).repeat_interleave(1000), torch.ones(2000)
    >>> rows = Feedback(seen, even[:, None], even, even, even > 0, seen, seen.sqrt())
    >>> curve = with_trained(NormCurve.initial(), rows)
    >>> expected_norms(curve, torch.tensor([1.0, 2.0, 4.0, 8.0])).round(decimals=1)
    tensor([1.2000, 1.6000, 1.9000, 2.0000])
    """
    place = _places(losses)
    below = place.long()
    return curve.norms[below].addcmul(curve.steps[below], place - below)


def _largest(curve: NormCurve) -> Tensor:
    """Bound a squared norm, shape (): one row that is broken must not count for ever."""
    mean = curve.squares.sum() / curve.rows.sum().clamp(min=1)
    known = curve.rows.sum() >= _LEAST
    return torch.where(known & (mean > 0), _OUTLIER * mean, _HUGE).clamp(max=_HUGE)


def _places(losses: Tensor) -> Tensor:
    """Place losses on the line of classes, shape (b,), float32."""
    octaves = losses.abs().log2().clamp(-_OCTAVES, _OCTAVES) + (_OCTAVES + 1)
    place = torch.addcmul(torch.full_like(octaves, _ZERO), losses.sign(), octaves)
    return place.nan_to_num(float(_NOBODY))


def _classes(device: torch.device) -> Tensor:
    return torch.arange(_NOBODY + 1, device=device)


def _nearness(device: torch.device) -> Tensor:
    """Say how much classes believe each other, shape (K, K): less by the fourth power of octaves.

    Who has no loss is like nobody.
    """
    classes = _classes(device)
    near = (classes[:, None] - classes).abs().clamp(min=1).float().pow(-4)
    near.fill_diagonal_(0.0)
    near[_NOBODY], near[:, _NOBODY] = 0.0, 0.0
    return near
