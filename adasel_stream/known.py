"""Losses of candidates: recorded where they are known, scored where they are not.

With a score and a record, a candidate batch of which only some rows are known is taken apart:
known rows gather with known ones and unknown with unknown ones, and each kind goes on as soon as
there is a whole candidate batch of it. So the forward pass runs on full batches however few rows
are unknown, and what is compared with each other is of one kind, recorded or fresh.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.decoding import Decoder
from adasel_stream.errors import ScoreError
from adasel_stream.gathering import Gathered, Gathering
from adasel_stream.lookups import Float32s, Int64s, Lookups
from adasel_stream.rows import Leaves, chosen_rows, row_count
from adasel_stream.scorers import Score, as_scored, checked
from adasel_stream.types import Batch, Scored
from adasel_stream.windows import MOST_BYTES

__all__ = ["Failure", "Judged", "KnownLosses"]

_log = logging.getLogger(__name__)

_WARNED: Final = 1000
"""So many candidates, none of which is known, are no accident."""


class Judged(NamedTuple):
    """Candidates with their losses, and where those came from.

    Attributes:
        leaves: the candidates, flattened, b rows each.
        scored: losses, shape (b,), with last-layer quantities if every row was scored.
        fresh: rows that were scored now, shape (b,), bool.
        ids: instance ids, shape (b,), int64, or None without a record.
        recorded: what the record held, shape (b, 2), float32: the loss, NaN where it is unknown,
            and its age in seconds; None without a record.
        guessed: rows whose loss nobody knows and the stream's mean stands for, shape (b,), bool,
            or None where there are none.
        decoded: the candidates decoded, b rows each, or None where they were not.
        reference: losses under a reference model, shape (b,), NaN where unknown, or None.
    """

    leaves: Leaves
    scored: Scored
    fresh: npt.NDArray[np.bool_]
    ids: Int64s | None = None
    recorded: Float32s | None = None
    guessed: npt.NDArray[np.bool_] | None = None
    decoded: Leaves | None = None
    reference: Tensor | None = None

    @property
    def known(self) -> bool:
        """Whether any loss is more than a guess."""
        return self.guessed is None or not self.guessed.all()

    @property
    def company(self) -> dict[str, Tensor | None]:
        """What methods may look at beside the losses, each of shape (b,) or None."""
        device, previous = self.scored.losses.device, None
        if self.recorded is not None:
            previous = torch.from_numpy(self.recorded[:, 0]).to(device, non_blocking=True)
        reference = self.reference
        if reference is not None:
            reference = reference.to(device, non_blocking=True)
        return {"reference": reference, "previous": previous}

    @property
    def ages_s(self) -> Float32s:
        """Ages of the recorded losses that were reused, in seconds, shape (n,)."""
        if self.recorded is None:
            return np.zeros(0, dtype=np.float32)
        ages_s: Float32s = self.recorded[~np.isnan(self.recorded[:, 0]), 1]
        return ages_s


class _Group(NamedTuple):
    """Candidates that are all known, or go to the score; `batches` as they came, if they did."""

    leaves: Leaves
    ids: Int64s | None
    recorded: Float32s | None
    score: bool
    batches: Sequence[Batch] = ()


class Failure(NamedTuple):
    """What a score raised first, and of how many rows in all it gave no losses."""

    error: Exception
    rows: int


class KnownLosses:
    """Score as few rows as possible.

    Args:
        score: gives losses of the rows that are not known; None where the record is all there is.
        lookups: what is known by id, or None to score every row.
        decoder: decodes candidates before they are scored, or None where they need no decoding.
        reference: gives losses of a batch under a reference model, shape (b,), or None.

    Attributes:
        lookups: what is known by id.
        in_hand: rows of the candidates that `judge` worked on last; where it raised, they are lost.
        failure: what became of candidates that the score raised for, while others of their window
            were judged; None where there were none.

    Raises:
        TypeError: score is no function.
        ValueError: there is neither score nor record.
    """

    def __init__(
        self,
        score: Score | None,
        lookups: Lookups | None,
        decoder: Decoder | None = None,
        reference: Callable[[Batch], Tensor] | None = None,
    ) -> None:
        if score is None and lookups is None:
            raise ValueError("losses must come from somewhere: pass score=, record=, or both")
        if score is not None and not callable(score):
            raise TypeError(f"score must be a function of a batch, got {type(score).__name__}")
        self.lookups = lookups
        self.in_hand = 0
        self._score = score
        self._decoder = decoder
        self._reference = reference
        self._whole: deque[_Group] = deque()
        self._known: Gathering | None = None
        self._unknown: Gathering | None = None
        self._strangers = 0
        self._largest = 0
        self._scored_rows = 1
        self.failure: Failure | None = None

    @property
    def gathering(self) -> bool:
        """Whether rows wait for others of their kind."""
        return bool(self._known or self._unknown)

    def offer(self, batches: Sequence[Batch], leaves: Leaves, ids: Int64s | None) -> None:
        """Look a window of candidate batches up; `judge` gives what has all it needs.

        Args:
            batches: the candidates, where they are to be scored.
            leaves: the same, flattened and joined, b rows each.
            ids: instance ids, b of them, or None without a record.
        """
        rows = row_count(leaves)
        self._scored_rows = max(self._scored_rows, -(-rows // len(batches)))
        if self.lookups is None or ids is None:
            self._whole.append(_Group(leaves, None, None, True, batches))
            return
        self._largest = max(self._largest, rows)
        recorded = self.lookups.find(ids)
        known = ~np.isnan(recorded[:, 0])
        if self._score is None or known.all() or not known.any():
            score = self._score is not None and not known.all()
            self._whole.append(_Group(leaves, ids, recorded, score, batches))
        else:
            self._gather(Gathered(leaves, ids, recorded), known)

    def judge(self, template: Batch, *, rest: bool = False, scoring: bool = True) -> Judged | None:
        """Give the next candidates whose losses are known or can be scored now, or None.

        Args:
            template: the structure of candidate batches.
            rest: whether rows that wait for others need wait no longer.
            scoring: whether to score; if not, the mean stands for all losses that are unknown.

        Raises:
            ScoreError: the score did not give one loss per row.
            DecodeError, BatchError: candidates that are to be scored cannot be decoded.
        """
        self.failure = None
        while (group := self._next_group(rest)) is not None:
            self.in_hand = row_count(group.leaves)
            score = group.score and scoring
            judged = self._scored(group, template) if score else self._unscored(group, template)
            if judged is not None:
                return judged
        return None

    def state_dict(self) -> dict[str, Any]:
        """Describe what is known, and the rows that gather."""
        gatherings = {"known": self._known, "unknown": self._unknown}
        return {
            "lookups": None if self.lookups is None else self.lookups.state_dict(),
            "largest": self._largest,
            "scored_rows": self._scored_rows,
            "gathered": {n: None if b is None else b.state_dict() for n, b in gatherings.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None) -> None:
        """Go on from `state`, with gathered tensors on `device` or where they came from.

        Raises:
            RecordError: the record is of another capacity or seed.
        """
        if self.lookups is not None and state["lookups"] is not None:
            self.lookups.load_state_dict(state["lookups"])
        self._whole.clear()
        self._largest = int(state["largest"])
        self._scored_rows = int(state["scored_rows"])
        self._known, self._unknown = (
            None
            if state["gathered"][name] is None
            else Gathering.of_state(state["gathered"][name], device)
            for name in ("known", "unknown")
        )

    def _gather(self, mixed: Gathered, known: npt.NDArray[np.bool_]) -> None:
        if self._known is None or self._unknown is None:
            # not of this batch, which may be the short one at the end of a pass
            self._known, self._unknown = Gathering(self._largest), Gathering(self._largest)
        self._known.push(mixed, known.nonzero()[0])
        self._unknown.push(mixed, (~known).nonzero()[0])

    def _next_group(self, rest: bool) -> _Group | None:
        if self._whole:
            return self._whole.popleft()
        for gathering, score in ((self._known, False), (self._unknown, True)):
            if gathering is not None and (gathered := gathering.pop(rest=rest)) is not None:
                return _Group(*gathered, score)
        return None

    def _unscored(self, group: _Group, template: Batch) -> Judged:
        recorded = group.recorded
        if recorded is None or self.lookups is None:
            rows = row_count(group.leaves)
            alike = torch.zeros(rows, device=_device_of(group.leaves))
            nobody = np.zeros(rows, dtype=np.bool_)
            return Judged(group.leaves, Scored(alike), nobody, group.ids, None, ~nobody)
        losses, known = self.lookups.guess(recorded)
        self._count_strangers(known)
        tensor = torch.from_numpy(losses).to(_device_of(group.leaves), non_blocking=True)
        guessed = None if known.all() else ~known
        fresh = np.zeros_like(known)
        judged = Judged(group.leaves, Scored(tensor), fresh, group.ids, recorded, guessed)
        if self._reference is None:
            return judged
        if self._decoder is not None:  # nothing is decoded for what is only looked up
            return judged._replace(reference=torch.full_like(tensor, torch.nan))
        batches = group.batches or self._built(group.leaves, template)
        return judged._replace(reference=torch.cat([self._reference_of(one) for one in batches]))

    def _count_strangers(self, known: npt.NDArray[np.bool_]) -> None:
        """Warn once where the record knows nobody: somebody may have mistaken a name."""
        if known.any():
            self._strangers = _WARNED
        elif self._strangers < _WARNED:
            self._strangers += len(known)
            if self._strangers >= _WARNED:
                _log.warning(
                    "none of the first %d candidates is in the record, so they count as equal: is "
                    "serving= the folder that servers write to, and do they name instances by the "
                    "same ids as ids=?",
                    self._strangers,
                )

    def _reference_of(self, batch: Batch) -> Tensor:
        """Ask for the reference losses of a batch, shape (b,), float32."""
        assert self._reference is not None, "who asks has looked"
        rows = _rows_of(batch)
        try:
            with torch.no_grad():
                losses = self._reference(batch)
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

    def _scored_parts(self, batches: Sequence[Batch]) -> tuple[list[Scored], list[Tensor], Tensor]:
        """Score batches one by one, and give what went well with the numbers of its rows."""
        assert self._score is not None, "without score there is a record"
        parts: list[Scored] = []
        references: list[Tensor] = []
        good: list[Tensor] = []
        start = 0
        for batch in batches:
            rows = _rows_of(batch)
            try:
                scored = checked(as_scored(self._score(batch)), rows)
                if self._reference is not None:
                    references.append(self._reference_of(batch))
                parts.append(scored)
                good.append(torch.arange(start, start + rows))
            except Exception as error:  # whatever a score raises: the rest of the window is kept
                before = Failure(error, 0) if self.failure is None else self.failure
                self.failure = before._replace(rows=before.rows + rows)
            start += rows
        return parts, references, torch.cat(good) if good else torch.zeros(0, dtype=torch.int64)

    def _pieces(self, leaves: Leaves) -> list[Leaves]:
        """Take rows apart again, so that each pass scores as many as came at once."""
        step = self._scored_rows
        return [
            {path: leaf[at : at + step] for path, leaf in leaves.items()}
            for at in range(0, row_count(leaves), step)
        ]

    def _built(self, leaves: Leaves, template: Batch) -> list[Batch]:
        return [trees.rebuild(template, one) for one in self._pieces(leaves)]

    def _scored(self, group: _Group, template: Batch) -> Judged | None:
        assert self._score is not None, "without score there is a record"
        decoded: Leaves | None = None
        if self._decoder is not None:
            group, decoded = _decoded(group, template, self._decoder)
            self.in_hand = row_count(group.leaves)  # the others are counted by the decoder
            if not row_count(group.leaves):
                return None
            pieces = self._pieces(decoded)
            batches: Sequence[Batch] = [self._decoder.built(one, template) for one in pieces]
        else:
            batches = group.batches or self._built(group.leaves, template)
        parts, references, good = self._scored_parts(batches)
        if self.failure is not None:
            group = _chosen(group, good)
            decoded = None if decoded is None else chosen_rows(decoded, good)
            self.in_hand = self.failure.rows
            if not parts:
                raise self.failure.error
        rows, scored = row_count(group.leaves), _joined(parts)
        fresh = np.ones(rows, dtype=np.bool_)
        recorded = None
        if group.ids is not None:
            recorded = np.full((rows, 2), np.nan, dtype=np.float32)
        reference = torch.cat(references) if references else None
        return Judged(group.leaves, scored, fresh, group.ids, recorded, None, decoded, reference)


def _chosen(group: _Group, rows: Tensor) -> _Group:
    """Keep some rows of a group, shape (n,), int64."""
    ids = None if group.ids is None else group.ids[rows.numpy()]
    return group._replace(leaves=chosen_rows(group.leaves, rows), ids=ids)


def _rows_of(batch: Batch) -> int:
    return row_count(trees.flatten(batch))


def _joined(parts: Sequence[Scored]) -> Scored:
    """Put scored batches of a window together; the last layer as far as there is room for it."""
    if len(parts) == 1:
        return parts[0]
    losses = torch.cat([part.losses for part in parts])
    residuals = [part.residuals for part in parts if part.residuals is not None]
    features = [part.features for part in parts if part.features is not None]
    if len(residuals) < len(parts) or len(features) < len(parts):
        return Scored(losses)
    held = sum(one.nbytes for one in (*residuals, *features))
    if held > MOST_BYTES:
        _log_once(held)
        return Scored(losses)
    return Scored(losses, torch.cat(residuals), torch.cat(features))


@cache
def _log_once(held: int) -> None:
    _log.warning(
        "the last layer of a window's candidates would take %.1f GB, which is more than %.1f GB: "
        "rows are chosen by their losses; pass a smaller window= to choose by gradients",
        held / 1e9,
        MOST_BYTES / 1e9,
    )


def _decoded(group: _Group, template: Batch, decoder: Decoder) -> tuple[_Group, Leaves]:
    """Decode candidates; those that cannot be decoded are left out, and counted."""
    decoded, good = decoder.all_of(group.leaves, template)
    if len(good) < row_count(group.leaves):
        group = _chosen(group, torch.tensor(good, dtype=torch.int64))
    return group, decoded


def _device_of(leaves: Leaves) -> torch.device:
    tensors = [leaf for leaf in leaves.values() if isinstance(leaf, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")
