"""What travels between the parts: frozen values and the protocols they meet.

Letters in shapes: b candidates, k selected, M methods.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from adasel_stream.keys import Ids
from adasel_stream.last_layer import LastLayer, alignments, gradient_norms, mean_gradient
from adasel_stream.ranking import ascending, average_ranks

__all__ = [
    "Batch",
    "Bounds",
    "Feedback",
    "Fetching",
    "Ids",
    "LossBatch",
    "Method",
    "Preference",
    "Sample",
    "Scored",
    "Selection",
    "Source",
    "State",
    "Stateful",
]

LARGEST_LOSS = 1e30
"""Losses are clipped to ± this, so that sums over a batch stay finite in float32."""

Batch: TypeAlias = Any
"""Dicts, tuples, lists, named tuples and dataclasses, nested; every leaf is a tensor, an array
or a list with b rows."""

Sample: TypeAlias = Any
"""One row of a batch: the batch's structure with one row's value in place of each leaf."""


@dataclass(frozen=True)
class Scored:
    """Losses of a candidate batch with what its last layer knows about them.

    Attributes:
        losses: per-instance losses, shape (b,), floating point.
        residuals: gradients of each loss with respect to the last layer's output, shape (b, c),
            or None; (b, t, c) of sequences of t tokens, whose gradients add up.
        features: the last layer's input, shape (b, h) or (b, t, h), or None.
    """

    losses: Tensor
    residuals: Tensor | None = None
    features: Tensor | None = None

    @property
    def last_layer(self) -> LastLayer | None:
        """Residuals and features together, or None where one of them is missing."""
        if self.residuals is None or self.features is None:
            return None
        return LastLayer(self.residuals, self.features)

    @cached_property
    def gradient_norms(self) -> Tensor | None:
        """Norms of the rows' last-layer gradients, shape (b,), or None without a last layer."""
        last = self.last_layer
        return None if last is None else gradient_norms(last)


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


@dataclass(frozen=True, slots=True)
class Selection:
    """The k rows chosen from one candidate batch, and why.

    Attributes:
        indices: rows of the candidate batch, shape (k,), int64, distinct.
        weights: importance weights k/(b π), shape (k,), or ones where the choice is top-k.
        probabilities: the mixture p of each chosen row, shape (k,).
        inclusions: the probability π with which each row was drawn, shape (k,), in (0, 1].
        importances: α of each method for each chosen row, shape (k, M).
        method_weights: w, shape (M,), sums to 1.
        method_losses: mean loss of what each method would choose, shape (M,).
        valid: False for slots that no finite row could fill, shape (k,), bool, or None when
            every slot is filled.
        proposed: for rows of the control arm the π that the scores alone would have given, NaN
            for others, shape (k,); None without a control arm.
        variances: of the gradient estimate, drawn by the scores and drawn evenly, up to a common
            factor, shape (2,); None where they were not compared.
        suspicious: how many of the rows guards had flagged, shape (), int64; None without guards.
    """

    indices: Tensor
    weights: Tensor
    probabilities: Tensor
    inclusions: Tensor
    importances: Tensor
    method_weights: Tensor
    method_losses: Tensor
    valid: Tensor | None = None
    proposed: Tensor | None = None
    variances: Tensor | None = None
    suspicious: Tensor | None = None

    def reordered(self, order: Tensor) -> "Selection":
        """Put the rows into another order, shape (k,), int64."""
        columns = ("indices", "weights", "probabilities", "inclusions", "importances")
        rows = {name: getattr(self, name).index_select(0, order) for name in columns}
        for name in ("valid", "proposed"):
            column: Tensor | None = getattr(self, name)
            rows[name] = None if column is None else column.index_select(0, order)
        return replace(self, **rows)


@dataclass(frozen=True, slots=True)
class State:
    """What AdaSelection remembers between candidate batches.

    Attributes:
        step: candidate batches so far, t.
        log_weights: log w, shape (M,).
        method_losses: method losses of the batch before, shape (M,); NaN before the first.
        trend: running mean of the method losses and of its squared change, shape (2, M).
    """

    step: int
    log_weights: Tensor
    method_losses: Tensor
    trend: Tensor

    @classmethod
    def initial(
        cls,
        methods: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "State":
        """Start with equal weights, w₀ = 1/M.

        >>> State.initial(2).log_weights.exp()
        tensor([0.5000, 0.5000])
        """
        unknown = torch.full((methods,), torch.nan, dtype=dtype, device=device)
        even = torch.full_like(unknown, -math.log(methods))
        return cls(0, even, unknown, torch.stack([unknown, torch.zeros_like(unknown)]))


@dataclass(frozen=True, slots=True)
class Feedback:
    """Fresh losses of rows that were trained on, with the chances they had been drawn with.

    Attributes:
        losses: shape (B,); they stand in for gradient norms where those are not known.
        importances: α of each method for each row, shape (B, M).
        probabilities: p, shape (B,).
        inclusions: π, shape (B,).
        valid: rows that count, shape (B,), bool.
        chosen_by: the losses that the rows were chosen by, shape (B,), NaN where there was none,
            or None where nobody asks.
        gradient_norms: of fresh losses, shape (B,), or None where they are not known.
        batches: how many trained batches these rows stand for, where not all are looked at.
    """

    losses: Tensor
    importances: Tensor
    probabilities: Tensor
    inclusions: Tensor
    valid: Tensor
    chosen_by: Tensor | None = None
    gradient_norms: Tensor | None = None
    batches: int = 1

    @property
    def magnitudes(self) -> Tensor:
        """What is known of gradient norms: they themselves or the losses' size, shape (B,)."""
        return self.losses.abs() if self.gradient_norms is None else self.gradient_norms


@runtime_checkable
class Stateful(Protocol):
    """Anything that can say where it stands and go back there."""

    def state_dict(self) -> dict[str, Any]:
        """Describe the position after the last item that was returned."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration continue from `state`."""
        ...


@runtime_checkable
class Source(Protocol):
    """An iterable of candidate batches; what connectors implement, with `Stateful`."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield candidate batches."""
        ...


@runtime_checkable
class Fetching(Protocol):
    """A source that hands over references to some columns, and reads what they point to later.

    Attributes:
        deferred: names of the columns that hold references instead of content.
    """

    deferred: tuple[str, ...]

    def fetch(self, references: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Read what references point to; called from several threads at once.

        Args:
            references: for each deferred column the references of n rows, int64, shape (n, ...),
                as they stood in a batch.

        Returns:
            for each deferred column the content of n rows; an exception object, not raised, in
            place of content that cannot be had.
        """
        ...
