"""What is remembered of emitted batches, so that fresh losses find the chances of their rows."""

import logging
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.errors import AdaselError
from adasel_stream.types import Batch

__all__ = ["Emission", "Emissions", "Emitted", "check_losses", "weighted_mean"]

_log = logging.getLogger(__name__)

_KEPT: Final = 8
_WARNED: Final = 10
"""After so many batches that nobody weighed, that is no accident."""


class Emitted(NamedTuple):
    """What is remembered of each row of an emitted batch, beside the user's leaves.

    Attributes:
        weights: importance weights, shape (batch_size,); 0 marks a slot that no row fills.
        probabilities: p, shape (batch_size,).
        inclusions: π, shape (batch_size,).
        importances: α of each method, shape (batch_size, M).
        chosen_by: the loss that a row was chosen by, NaN where there was none, shape (batch_size,);
            None where nobody learns from it.
        ids: int64, shape (batch_size,), or None without a record.
        recorded: what the record had held, shape (batch_size, 2), float32: the loss, NaN where it
            was unknown, and its age in seconds; None without a record.
        proposed: for rows of the control arm the π that the scores would have given, where no last
            layer of all candidates has told the gain, and infinity where there were no scores; NaN
            for others, shape (batch_size,); None without a control arm.
        heard: rows of windows whose mean loss was heard when they were scored, shape (batch_size,),
            bool; None without a control arm.
        proxied: what a proxy had given, shape (batch_size,), or None where the score is none.
    """

    weights: Tensor
    probabilities: Tensor
    inclusions: Tensor
    importances: Tensor
    chosen_by: Tensor | None = None
    ids: Tensor | None = None
    recorded: Tensor | None = None
    proposed: Tensor | None = None
    heard: Tensor | None = None
    proxied: Tensor | None = None


def check_losses(losses: Tensor, weights: Tensor) -> None:
    """Make sure that there is a loss for each weight.

    Raises:
        ValueError: another shape, such as an averaged loss.
        TypeError: losses are no tensor.
    """
    if not isinstance(losses, Tensor):
        raise TypeError(f"losses must be a tensor, got {type(losses).__name__}")
    if losses.shape != weights.shape:
        hint = '; compute it with reduction="none"' if losses.ndim == 0 else ""
        if losses.ndim == 1 and len(losses) < len(weights):
            hint = "; to train in parts, emit smaller batches by batch_size= and add their means up"
        raise ValueError(
            f"losses must have shape {tuple(weights.shape)}, one per row of the batch, "
            f"got {tuple(losses.shape)}{hint}"
        )


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Average weight times loss over the slots that a row fills, shape ().

    >>> weighted_mean(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([0.5, 1.5, 0.0]))
    tensor(2.5000)
    """
    weights = weights.to(losses.device, non_blocking=True)
    filled = weights > 0  # a void slot must not leak its loss, whatever that is
    weighted = torch.where(filled, losses * weights, 0.0)
    return weighted.sum() / filled.sum().clamp(min=1)


@dataclass(slots=True)
class Emission:
    """One emitted batch.

    Attributes:
        rows: what is remembered of its rows.
        leaves: its leaves, as far as they can be watched.
        taught: whether its losses were learnt from.
        stands_for: batches that its gradients are to stand for when they are heard, 0 for none.
    """

    rows: Emitted
    leaves: list[weakref.ref[Any]]
    taught: bool = False
    stands_for: int = 0


class Emissions:
    """The last few emitted batches of a pass.

    Trainers that read a batch ahead give losses of the one before the last. Which batch losses
    belong to is told by its leaves, which are watched, not held.

    Args:
        weighed: whether a trainer that uses neither `mean` nor `weights` is to be warned.
    """

    def __init__(self, *, weighed: bool = False) -> None:
        self._kept: deque[Emission] = deque(maxlen=_KEPT)
        self._ahead = 0
        self._unweighed = 0 if weighed else _WARNED

    @property
    def last(self) -> Emission:
        """The batch emitted last.

        Raises:
            AdaselError: no batch was emitted yet.
        """
        if not self._kept:
            raise AdaselError("no batch was emitted yet; iterate over the loader first")
        self._unweighed = _WARNED
        return self._kept[-1]

    def start(self) -> None:
        """Begin a pass: what was emitted before and passed over will not come back."""
        self._ahead = 0

    def clear(self) -> None:
        """Forget all batches."""
        self._kept.clear()

    def add(self, batch: Batch, emitted: Emitted) -> None:
        """Remember a batch that is given to the trainer."""
        leaves = trees.flatten(batch).values()
        watched = [weakref.ref(leaf) for leaf in leaves if not isinstance(leaf, list)]
        self._kept.append(Emission(emitted, watched))
        self._ahead += 1
        if self._unweighed < _WARNED:
            self._unweighed += 1
            if self._unweighed == _WARNED:
                _log.warning(
                    "%d batches were emitted, and neither loader.mean nor loader.weights was used: "
                    "averaging the losses yourself is biased, and nothing is learnt from them. "
                    "Call loader.mean(losses).backward()",
                    _WARNED,
                )

    def of(self, batch: Batch | None) -> Emission:
        """Find the batch that losses belong to.

        Args:
            batch: the batch, or None for the one emitted last.

        Raises:
            AdaselError: no batch was emitted yet, or it cannot be told which one is meant.
        """
        if batch is not None:
            return self._found(batch)
        if self._ahead > 1:
            raise AdaselError(
                f"{self._ahead} batches were emitted since the last call of mean, and the losses "
                "may belong to any of them: something reads ahead, or batches were passed over. "
                "Pass the batch as well: mean(losses, batch)"
            )
        return self.last

    def teach(self, emission: Emission) -> bool:
        """Note that a batch's losses came; True if they are the first of this batch."""
        first, emission.taught, self._ahead = not emission.taught, True, 0
        return first

    def _found(self, batch: Batch) -> Emission:
        self._unweighed = _WARNED
        given = {id(leaf) for leaf in trees.flatten(batch).values()}
        for one in reversed(self._kept):
            if any(id(leaf()) in given for leaf in one.leaves):
                return one
        raise AdaselError(
            f"the batch is none of the last {len(self._kept)} that were emitted, or it was copied "
            "on its way; construct the loader with device=, so that batches need not be moved"
        )
