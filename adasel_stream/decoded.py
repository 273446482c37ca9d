"""Chosen rows while they are decoded: first in, first out, and never a short batch."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adasel_stream.buffer import Buffer, check_batch_size
from adasel_stream.decoding import PIECE_ROWS, Decoder, Outcome
from adasel_stream.emitted import Emitted
from adasel_stream.rows import Leaves, chosen_rows, row_count
from adasel_stream.types import Batch, Sample

__all__ = ["DecodedRows"]


@dataclass(slots=True)
class _Piece:
    """A few chosen rows: raw, with what is remembered of them, and what became of them."""

    leaves: Leaves
    remembered: Leaves
    outcomes: "Future[list[Outcome]] | list[Outcome]"
    at: int = 0

    def result(self) -> list[Outcome]:
        if isinstance(self.outcomes, Future):
            self.outcomes = self.outcomes.result()
        return self.outcomes


class DecodedRows:
    """Chosen rows while they are decoded, first in, first out: what `Buffer` is to others.

    Its state holds raw rows, so it is as small as they are; they are decoded again after a resume.

    Args:
        batch_size: rows of every emitted batch, at least 1.
        decoder: does the work.
    """

    def __init__(self, batch_size: int, decoder: Decoder) -> None:
        self._kinds = Buffer(batch_size)  # knows how raw rows are made, holds none
        self._decoder = decoder
        self._pieces: deque[_Piece] = deque()
        self._good: list[tuple[_Piece, int]] = []
        self._waiting = 0
        self._restored: Leaves | None = None

    @property
    def batch_size(self) -> int:
        """Rows of every emitted batch."""
        return self._kinds.batch_size

    def __len__(self) -> int:
        """Count the rows that wait, those that turned out to be bad left out."""
        return len(self._good) + self._waiting

    @property
    def full(self) -> bool:
        """Whether enough rows are on their way for the next batch and those ahead of it."""
        return len(self) >= self.batch_size * (1 + self._decoder.ahead)

    def check(self, leaves: Leaves) -> None:
        """Make sure that raw rows can follow those before; see `Buffer.check`."""
        self._kinds.check(leaves)

    def push(
        self,
        leaves: Leaves,
        indices: Tensor,
        remembered: Leaves,
        template: Batch,
        samples: list[Sample] | None = None,
    ) -> None:
        """Begin to decode rows.

        Args:
            leaves: raw candidates, b rows each, on the host; columns named as in `Emitted` are
                remembered.
            indices: which rows, in the order they are to leave, shape (n,), int64.
            remembered: what is remembered of each of these rows, n rows each.
            template: structure of raw batches.
            samples: the candidates decoded already, b of them, or None.
        """
        self.begin(template)
        where = indices.cpu()
        for at in range(0, where.shape[0], PIECE_ROWS):
            part = where[at : at + PIECE_ROWS]
            rows = chosen_rows(leaves, part)
            own = {name: rows.pop(name) for name in Emitted._fields if name in rows}
            begun: Future[list[Outcome]] | list[Outcome] = (
                self._decoder.begin(rows, template)
                if samples is None
                else [samples[row] for row in part.tolist()]
            )
            kept = {name: leaf[at : at + PIECE_ROWS] for name, leaf in remembered.items()}
            self._pieces.append(_Piece(rows, own | kept, begun))
            self._waiting += part.shape[0]

    def pop(self) -> tuple[Batch, Emitted] | None:
        """Take out the next batch, or None where fewer than `batch_size` good rows are there.

        Raises:
            BatchError: the decoded samples cannot be stacked.
            DecodeError: nothing can be decoded any more.
        """
        while len(self._good) < self.batch_size and self._pieces:
            self._settle(self._pieces[0])
        if len(self._good) < self.batch_size:
            return None
        taken, self._good = self._good[: self.batch_size], self._good[self.batch_size :]
        batch = self._decoder.collated([piece.result()[row] for piece, row in taken])
        return batch, Emitted(**_gathered(taken))

    def state_dict(self) -> dict[str, Any]:
        """Copy out every raw row that waits, and what is remembered of it."""
        held = Buffer(max(1, len(self)))
        if self._restored is not None:
            held.push(self._restored, torch.arange(row_count(self._restored)))
        for piece, row in self._waiting_rows():
            held.push(piece.leaves | piece.remembered, torch.tensor([row]))
        return {"batch_size": self.batch_size, "held": held.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Wait with the rows of `state`; `begin` decodes them.

        Raises:
            ValueError: the state belongs to another batch size.
        """
        check_batch_size(state["batch_size"], self.batch_size)
        held = Buffer(state["held"]["batch_size"])
        held.load_state_dict(state["held"])
        self._kinds = Buffer(self.batch_size)
        self._pieces, self._good = deque(), []
        self._restored = held.pop() or held.rest()
        self._waiting = 0 if self._restored is None else row_count(self._restored)

    def begin(self, template: Batch) -> None:
        """Begin to decode restored rows, now that the structure of raw batches is known."""
        rows, self._restored = self._restored, None
        if rows is not None:
            raw = {name: leaf for name, leaf in rows.items() if name not in Emitted._fields}
            self._kinds.check(raw)
            self._waiting = 0
            self.push(rows, torch.arange(row_count(rows)), {}, template)

    def _settle(self, piece: _Piece) -> None:
        """Move the next row of the oldest piece on: to the good ones, or out."""
        outcome = piece.result()[piece.at]
        row, piece.at = piece.at, piece.at + 1
        self._waiting -= 1
        if piece.at == len(piece.result()):
            self._pieces.popleft()
        if not isinstance(self._decoder.count(outcome), Exception):
            self._good.append((piece, row))

    def _waiting_rows(self) -> list[tuple[_Piece, int]]:
        pending = [
            (piece, row)
            for piece in self._pieces
            for row in range(piece.at, row_count(piece.remembered))
        ]
        return self._good + pending


def _gathered(taken: list[tuple[_Piece, int]]) -> dict[str, Any]:
    """Put together what is remembered of rows, column by column."""
    pieces = {id(piece): piece for piece, _ in taken}
    rows = {key: [row for piece, row in taken if id(piece) == key] for key in pieces}
    parts = [
        chosen_rows(piece.remembered, torch.tensor(rows[key])) for key, piece in pieces.items()
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}  # type: ignore[misc] # remembered columns are tensors
