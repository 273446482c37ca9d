"""Losses of candidates: recorded where they are known, scored where they are not.

With a score and a record, a candidate batch of which only some rows are known is taken apart:
known rows gather with known ones and unknown with unknown ones, and each kind goes on as soon as
there is a whole candidate batch of it. So the forward pass runs on full batches however few rows
are unknown, and what is compared with each other is of one kind, recorded or fresh.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.decoding import Decoder
from adasel_stream.gathering import Gathered, Gathering
from adasel_stream.judged import Judged
from adasel_stream.lookups import Float32s, Int64s, Lookups
from adasel_stream.passes import Failure, Reference, reference_of, scored_in_passes
from adasel_stream.rows import Leaves, bytes_of, chosen_rows, joined_rows, row_count
from adasel_stream.scorers import Score
from adasel_stream.types import Batch, Scored
from adasel_stream.windows import MOST_BYTES

__all__ = ["KnownLosses"]

_log = logging.getLogger(__name__)

_SOME: Final = 1000
_MANY: Final = 10_000
"""So many candidates, none of which is known, are no accident; and so many where they are scored
until serving has caught up."""


class _Group(NamedTuple):
    """Candidates that are all known, or go to the score; `batches` as they came, if they did."""

    leaves: Leaves
    ids: Int64s | None
    recorded: Float32s | None
    score: bool
    batches: Sequence[Batch] = ()


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
        reference: Reference | None = None,
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
        self._strangers: int | None = 0
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
        self._count_strangers(known, self.lookups)
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
        tensor = torch.from_numpy(losses).to(_device_of(group.leaves), non_blocking=True)
        guessed = None if known.all() else ~known
        fresh = np.zeros_like(known)
        judged = Judged(group.leaves, Scored(tensor), fresh, group.ids, recorded, guessed)
        if self._reference is None:
            return judged
        if self._decoder is not None:  # nothing is decoded for what is only looked up
            return judged._replace(reference=torch.full_like(tensor, torch.nan))
        batches = group.batches or self._built(group.leaves, template)
        references = [reference_of(self._reference, one) for one in batches]
        return judged._replace(reference=torch.cat(references))

    def _count_strangers(self, known: npt.NDArray[np.bool_], lookups: Lookups) -> None:
        """Warn once where the record knows nobody: somebody may have mistaken a name.

        Where candidates are scored that is only odd if somebody serves.
        """
        scores = self._score is not None
        if self._strangers is None or (scores and lookups.feed is None):
            return
        self._strangers = None if known.any() else self._strangers + len(known)
        if self._strangers is None or self._strangers < (_MANY if scores else _SOME):
            return
        _log.warning(
            "none of the first %d candidates is in the record, so they %s: %s",
            *(self._strangers, "are all scored" if scores else "count as equal"),
            "losses come into it by loader.mean, loader.observe and serving="
            if lookups.feed is None
            else "is serving= the folder that servers write to, and do they name instances by the "
            "same ids as ids=?",
        )
        self._strangers = None

    def _pieces(self, leaves: Leaves) -> list[Leaves]:
        """Take rows apart again, so that each pass scores as many as came at once."""
        step = self._scored_rows
        return [_span(leaves, at, at + step) for at in range(0, row_count(leaves), step)]

    def _built(self, leaves: Leaves, template: Batch) -> list[Batch]:
        return [trees.rebuild(template, one) for one in self._pieces(leaves)]

    def _scored(self, group: _Group, template: Batch) -> Judged | None:
        """Score as many rows as there is room for, decoded and with their last layer."""
        assert self._score is not None, "without score there is a record"
        decoded: Leaves | None = None
        if self._decoder is not None:
            group, decoded = self._decoded(group, template, self._decoder)
            self.in_hand = row_count(group.leaves)  # the others are counted by the decoder
            if not self.in_hand:
                return None
            pieces = self._pieces(decoded)
            batches: Sequence[Batch] = [self._decoder.built(one, template) for one in pieces]
        else:
            batches = group.batches or self._built(group.leaves, template)
        passes = scored_in_passes(self._score, batches, self._reference)
        if left := batches[passes.batches :]:
            taken = sum(row_count(trees.flatten(one)) for one in batches[: passes.batches])
            self._put_back(group, taken, () if decoded is not None else left)
        if passes.failure is not None or left:
            group = _chosen(group, passes.good)
            decoded = None if decoded is None else chosen_rows(decoded, passes.good)
        if passes.failure is not None:
            self.failure, self.in_hand = passes.failure, passes.failure.rows
        if passes.scored is None:
            assert passes.failure is not None, "without rows there is no group"
            raise passes.failure.error
        rows = row_count(group.leaves)
        fresh = np.ones(rows, dtype=np.bool_)
        recorded = None
        if group.ids is not None:
            recorded = np.full((rows, 2), np.nan, dtype=np.float32)
        judged = Judged(group.leaves, passes.scored, fresh, group.ids, recorded)
        return judged._replace(decoded=decoded, reference=passes.reference)

    def _decoded(self, group: _Group, template: Batch, decoder: Decoder) -> tuple[_Group, Leaves]:
        """Decode candidates as far as there is room; those that fail are counted and left out."""
        rows = row_count(group.leaves)
        first = min(self._scored_rows, rows)
        columns, good = decoder.all_of(_span(group.leaves, 0, first), template)
        each = sum(map(bytes_of, columns.values())) / max(1, len(good))
        room = max(first, min(rows, int(MOST_BYTES / each))) if each else rows
        if room > first:
            more, also = decoder.all_of(_span(group.leaves, first, room), template)
            columns, good = joined_rows([columns, more]), [*good, *(first + row for row in also)]
        if room < rows:
            self._put_back(group, room)
        if len(good) < rows:
            group = _chosen(group, torch.tensor(good, dtype=torch.int64))
        return group, columns

    def _put_back(self, group: _Group, start: int, batches: Sequence[Batch] = ()) -> None:
        """Let the rows from `start` on come next."""
        rest = _chosen(group, torch.arange(start, row_count(group.leaves)))
        self._whole.appendleft(rest._replace(batches=batches))


def _chosen(group: _Group, rows: Tensor) -> _Group:
    """Keep some rows of a group, shape (n,), int64."""
    where = rows.numpy()
    return group._replace(
        leaves=chosen_rows(group.leaves, rows),
        ids=None if group.ids is None else group.ids[where],
        recorded=None if group.recorded is None else group.recorded[where],
        batches=(),
    )


def _span(leaves: Leaves, start: int, stop: int) -> Leaves:
    return {path: leaf[start:stop] for path, leaf in leaves.items()}


def _device_of(leaves: Leaves) -> torch.device:
    tensors = [leaf for leaf in leaves.values() if isinstance(leaf, Tensor)]
    return tensors[0].device if tensors else torch.device("cpu")
