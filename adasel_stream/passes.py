"""Passes of a score over the batches of a window, and what they gave together."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from adasel_stream import trees
from adasel_stream.errors import ScoreError
from adasel_stream.rows import row_count
from adasel_stream.scorers import Score, as_scored, checked
from adasel_stream.types import Batch, Scored
from adasel_stream.windows import MOST_BYTES

__all__ = ["Failure", "Passes", "Reference", "reference_of", "scored_in_passes"]

_log = logging.getLogger(__name__)

Reference: TypeAlias = Callable[[Batch], Tensor]
"""Gives losses of a batch under a reference model, shape (b,)."""


class Failure(NamedTuple):
    """What a score raised first, and of how many rows in all it gave no losses."""

    error: Exception
    rows: int


class Passes(NamedTuple):
    """What came of the batches of a window, or of the first of them.

    Attributes:
        scored: losses of the rows that could be scored, n of them, or None where none could.
        good: which rows these are, of all that were taken, shape (n,), int64.
        batches: how many batches were taken; not all where there was no room for their last layer.
        reference: losses under a reference model, shape (n,), or None.
        failure: what became of the other rows that were taken, or None where there are none.
    """

    scored: Scored | None
    good: Tensor
    batches: int
    reference: Tensor | None
    failure: Failure | None


def scored_in_passes(
    score: Score, batches: Iterable[Batch], reference: Reference | None = None
) -> Passes:
    """Score batches one by one, until their last layer takes a gibibyte.

    Where a batch cannot be scored, the others are kept.

    >>> passes = scored_in_passes(lambda batch: batch, [torch.ones(2), torch.zeros(1)])
    >>> passes.scored.losses, passes.good
    (tensor([1., 1., 0.]), tensor([0, 1, 2]))
    """
    parts: list[Scored] = []
    references: list[Tensor] = []
    good: list[Tensor] = []
    failure: Failure | None = None
    start = held = taken = 0
    for batch in batches:
        rows, taken = _rows_of(batch), taken + 1
        try:
            scored = checked(as_scored(score(batch)), rows)
            if reference is not None:
                references.append(reference_of(reference, batch))
            parts.append(scored)
            good.append(torch.arange(start, start + rows))
            held += _bytes_of(scored)
        except Exception as error:  # whatever a score raises: the rest of the window is kept
            before = Failure(error, 0) if failure is None else failure
            failure = before._replace(rows=before.rows + rows)
        start += rows
        if held > MOST_BYTES:
            _log_once()
            break
    return Passes(
        _marked(_joined(parts)) if parts else None,
        torch.cat(good) if good else torch.zeros(0, dtype=torch.int64),
        taken,
        torch.cat(references) if references else None,
        failure,
    )


def reference_of(reference: Reference, batch: Batch) -> Tensor:
    """Ask for the reference losses of a batch, shape (b,), float32.

    Raises:
        ScoreError: they are not one loss per row.
    """
    rows = _rows_of(batch)
    try:
        with torch.no_grad():
            losses = reference(batch)
    except Exception as error:
        error.add_note("It came from the function given as reference=, called with a batch.")
        raise
    if not isinstance(losses, Tensor) or losses.shape != (rows,):
        shape = getattr(losses, "shape", None)
        came = type(losses).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")
        raise ScoreError(
            f"reference returned {came}, expected a tensor of shape ({rows},): one loss per row"
        )
    return losses.detach().float()


def _rows_of(batch: Batch) -> int:
    return row_count(trees.flatten(batch))


def _bytes_of(scored: Scored) -> int:
    last_layer = (scored.residuals, scored.features)
    return sum(0 if one is None else one.nbytes for one in last_layer)


def _joined(parts: Sequence[Scored]) -> Scored:
    """Put scored batches together; the last layer only where all have it."""
    if len(parts) == 1:
        return parts[0]
    losses = torch.cat([part.losses for part in parts])
    residuals = [part.residuals for part in parts if part.residuals is not None]
    features = [part.features for part in parts if part.features is not None]
    if len(residuals) < len(parts) or len(features) < len(parts):
        return Scored(losses)
    return Scored(losses, _one_under_another(residuals), _one_under_another(features))


def _one_under_another(parts: Sequence[Tensor]) -> Tensor:
    """Join vectors of rows, (b, c) or with tokens (b, ..., c): zeros stand for tokens that lack."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    tokens = [part.flatten(1, -2) if part.ndim > 2 else part[:, None] for part in parts]
    most = max(part.shape[1] for part in tokens)
    return torch.cat([pad(part, (0, 0, 0, most - part.shape[1])) for part in tokens])


def _marked(scored: Scored) -> Scored:
    """Give rows whose gradient is not finite no finite loss either: no one can train on them."""
    norms = scored.gradient_norms
    if norms is None:
        return scored
    if norms.device.type == "cpu" and np.isfinite(norms.numpy()).all():
        return scored
    usable = torch.isfinite(norms)
    return replace(scored, losses=torch.where(usable, scored.losses, torch.nan))


@cache
def _log_once() -> None:
    _log.warning(
        "the last layer of the candidates of one emitted batch takes more than %.1f GB, so that "
        "fewer of them are chosen from together",
        MOST_BYTES / 1e9,
    )
