"""Candidates as a selection method sees them, and what it says of them.

Letters in shapes: b candidates, k selected, S slices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from adasel_stream.last_layer import LastLayer, alignments, mean_gradient
from adasel_stream.ranking import ascending, average_ranks

__all__ = ["LARGEST_LOSS", "Bounds", "LossBatch", "Method", "Preference"]

LARGEST_LOSS = 1e30
"""Losses are clipped to ± this, so that sums over a batch stay finite in float32."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a choice is held to, whatever the scores.

    Attributes:
        flagged: rows that look suspicious, shape (b,), bool.
        cap: largest share of the chosen rows that may be flagged ones, in (0, 1].
        slices: members of S named slices, shape (S, b), bool.
        rates: least share of each slice's rows that is chosen, shape (S,), in [0, 1].
    """

    flagged: Tensor
    cap: float
    slices: Tensor
    rates: Tensor


@dataclass(frozen=True)
class LossBatch:
    """What a selection method may look at: one candidate batch's losses and their company.

    Attributes:
        losses: per-instance losses, shape (b,), floating point, all finite. Rows that came in
            non-finite carry the mean of the finite ones here and are marked in `finite`.
        noise: standard normal draws, shape (b,), fresh for each candidate batch, or None where
            the draw itself is random and a method shall be an even proposal.
        gradient_norms: upper bounds of per-instance gradient norms, shape (b,), or None.
        expected_norms: what rows of such losses had for gradient norms when they were trained on,
            shape (b,), or None.
        finite: which rows may be chosen, shape (b,), bool, or None when all may.
        last_layer: residuals and features of the last layer, b rows each, or None.
        reference: losses under a reference model, shape (b,), NaN where unknown, or None.
        previous: each instance's loss as recorded before, shape (b,), NaN where unknown, or None
            without a record.
        window: losses of the stream's last rows, shape (n,), NaN where there are none yet, or
            None where no method asks for them.
        control: rows of the control arm, which are drawn evenly whatever the scores, shape (b,),
            bool, or None without one.
        even: whether all rows are drawn evenly; the control arm is then all of them.
        compared: whether the draw shall be compared with an even one.
        bounds: what the choice is held to, or None for nothing.
    """

    losses: Tensor
    noise: Tensor | None = None
    gradient_norms: Tensor | None = None
    expected_norms: Tensor | None = None
    finite: Tensor | None = None
    last_layer: LastLayer | None = None
    reference: Tensor | None = None
    previous: Tensor | None = None
    window: Tensor | None = None
    control: Tensor | None = None
    even: bool = False
    compared: bool = False
    bounds: Bounds | None = None

    @classmethod
    def of(
        cls,
        losses: Tensor,
        *,
        gradient_norms: Tensor | None = None,
        last_layer: LastLayer | None = None,
        all_finite: bool = False,
        **company: Any,
    ) -> "LossBatch":
        """Mask rows whose loss or norm is NaN or infinite and clip huge losses to ±1e30.

        `all_finite` says that the caller has checked already; it saves the mask. Other fields are
        taken as they are.

        >>> batch = LossBatch.of(torch.tensor([1.0, float("nan"), 3.0]))
        >>> batch.losses, batch.finite
        (tensor([1., 2., 3.]), tensor([ True, False,  True]))
        """
        finite, kept = None, losses.clamp(-LARGEST_LOSS, LARGEST_LOSS)
        if not all_finite:
            finite = torch.isfinite(losses)
            if gradient_norms is not None:
                finite = finite & torch.isfinite(gradient_norms)
                gradient_norms = torch.where(finite, gradient_norms, 0.0)
            if last_layer is not None:
                last_layer = last_layer.masked(finite)
            kept = torch.where(finite, kept, 0.0)
            mean = kept.sum() / finite.sum().clamp(min=1)
            kept = torch.where(finite, kept, mean)
        return cls(
            kept, gradient_norms=gradient_norms, finite=finite, last_layer=last_layer, **company
        )

    @cached_property
    def count(self) -> int | Tensor:
        """How many rows may be chosen: b, or a tensor of shape () when rows are masked."""
        if self.finite is None:
            return self.losses.shape[0]
        return self.finite.sum(dtype=self.losses.dtype)

    @property
    def magnitudes(self) -> Tensor:
        """What is known of gradient norms, shape (b,): bounds, expectations or the losses' size."""
        if self.gradient_norms is not None:
            return self.gradient_norms
        return self.losses.abs() if self.expected_norms is None else self.expected_norms

    @cached_property
    def alignments(self) -> Tensor:
        """Inner product of each row's last-layer gradient with that of all rows, shape (b,)."""
        assert self.last_layer is not None, "who asks has looked"
        return alignments(self.last_layer, self.gradient).to(self.losses.dtype)

    @cached_property
    def gradient(self) -> Tensor:
        """Mean last-layer gradient of all rows, up to a factor where rows are masked."""
        assert self.last_layer is not None, "who asks has looked"
        return mean_gradient(self.last_layer)

    @cached_property
    def order(self) -> Tensor:
        """Rows by ascending loss, masked ones first, shape (b,); sorted once."""
        return ascending(self.masked(self.losses))

    @cached_property
    def ranks(self) -> Tensor:
        """Average ranks of the losses that may be chosen, 0 the smallest, shape (b,)."""
        return self._ranks(self.losses, self.order)

    def rank(self, values: Tensor, *, follows_losses: bool = False) -> Tensor:
        """Rank any per-row values among the rows that may be chosen, shape (b,).

        `follows_losses` says that the values rise and fall with the loss in a few long runs,
        such as a distance from some loss; the sort then reuses the order of the losses.
        """
        near = self.order if follows_losses else None
        return self._ranks(values, ascending(self.masked(values), near=near))

    def masked(self, values: Tensor) -> Tensor:
        """Put -inf where a row may not be chosen; `values` has rows last, shape (..., b)."""
        return values if self.finite is None else values.masked_fill(~self.finite, -torch.inf)

    def _ranks(self, values: Tensor, order: Tensor) -> Tensor:
        ranks = average_ranks(self.masked(values), order)
        return ranks if self.finite is None else ranks - (values.shape[0] - self.count)


class Preference(NamedTuple):
    """How much a method wants each candidate; the larger, the rather.

    The first three are functions, so that only the reading in use is computed.

    Attributes:
        values: gives shape (b,), finite; softmax and proportional importances are made of it.
        ranks: gives average ranks in [0, count-1], shape (b,), where they are not those of
            `values`, or can be had without a sort of their own.
        order: gives for a k what the method's own top-k goes by, shape (b,); set where that is not
            `values`.
        proportional: whether the values are chances up to a factor, as in "twice as often"; a
            draw then shares in proportion to them, whatever reading of Eq. (2) the policy has.
    """

    values: Callable[[], Tensor]
    ranks: Callable[[], Tensor] | None = None
    order: Callable[[int], Tensor] | None = None
    proportional: bool = False


Method: TypeAlias = Callable[[LossBatch], Tensor | Preference]
"""A candidate method g_m: from a candidate batch to preferences, shape (b,)."""
