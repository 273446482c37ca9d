"""What came of a choice, what is carried to the next one, and what training shows of it.

Letters in shapes: b candidates, k selected, B trained, M methods.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Feedback", "Selection", "State"]


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

    def to(self, device: torch.device) -> "State":
        """Give the same on a device, itself where it is there already."""
        if self.log_weights.device == device:
            return self
        tensors = (self.log_weights, self.method_losses, self.trend)
        return State(self.step, *(one.to(device) for one in tensors))

    def state_dict(self) -> dict[str, Any]:
        """Describe it, with copies of its tensors and the kind of their device."""
        return {
            "step": self.step,
            "device": self.log_weights.device.type,
            "log_weights": self.log_weights.clone(),
            "method_losses": self.method_losses.clone(),
            "trend": self.trend.clone(),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], device: torch.device) -> "State":
        """Build one anew on a device, from what `state_dict` gave."""
        names = ("log_weights", "method_losses", "trend")
        return cls(int(state["step"]), *(state[name].to(device, copy=True) for name in names))


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
