"""Chosen rows while they are decoded: first in, first out, and never a short batch."""

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from adasel_stream.buffer import Buffer, check_batch_size
from adasel_stream.decoding import Decoded, Decoder
from adasel_stream.emitted import Emitted
from adasel_stream.rows import Leaves, chosen_rows, joined_rows, row_count
from adasel_stream.types import Batch

__all__ = ["DecodedRows"]


@dataclass(slots=True)
class _Piece:
    """A few chosen rows: raw, with what is remembered of them, and what became of them."""

    leaves: Leaves
    remembered: Leaves
    work: "Future[Decoded] | Decoded"
    counted: bool
    at: int = 0

    @property
    def rows(self) -> int:
        return row_count(self.remembered)

    def decoded(self) -> Decoded:
        if isinstance(self.work, Future):
            self.work = self.work.result()
        return self.work


class DecodedRows:
    """Chosen rows while they are decoded, first in, first out: what `Buffer` is to others.

    A row that cannot be decoded is left out and the next one takes its place. The state holds raw
    rows, so it is as small as they are; they are decoded again after a resume.

    Args:
        batch_size: rows of every emitted batch, at least 1.
        decoder: does the work.
    """

    def __init__(self, batch_size: int, decoder: Decoder) -> None:
        self._kinds = Buffer(batch_size)  # knows how raw rows are made, holds none
        self._decoder = decoder
        self._pieces: deque[_Piece] = deque()
        self._good: list[tuple[_Piece, list[int]]] = []
        self._good_rows = 0
        self._waiting = 0
        self._restored: Leaves | None = None
        self._template: Batch = None

    @property
    def batch_size(self) -> int:
        """Rows of every emitted batch."""
        return self._kinds.batch_size

    def __len__(self) -> int:
        """Count the rows that wait, those that turned out to be bad left out."""
        return self._good_rows + self._waiting

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
        void: Tensor | None = None,
        decoded: Leaves | None = None,
    ) -> None:
        """Begin to decode rows; `begin` was called before.

        Args:
            leaves: raw candidates, b rows each, on the host; columns named as in `Emitted` are
                remembered.
            indices: which rows, in the order they are to leave, shape (n,), int64.
            remembered: what is remembered of each of these rows, n rows each.
            void: which of these no row fills, and so are left out, shape (n,), bool, or None.
            decoded: the candidates decoded already, b rows each, or None.
        """
        where = indices.cpu()
        if void is not None:
            filled = (~void).cpu().nonzero()[:, 0]
            where, remembered = where[filled], chosen_rows(remembered, filled)
        count = where.shape[0]
        step = self._decoder.piece_rows or max(1, count)
        for at in range(0, count, step):
            part = where[at : at + step]
            rows = chosen_rows(leaves, part)
            own = {name: rows.pop(name) for name in Emitted._fields if name in rows}
            work: Future[Decoded] | Decoded = (
                self._decoder.begin(rows, self._template)
                if decoded is None
                else Decoded(chosen_rows(decoded, part), {})
            )
            kept = {name: leaf[at : at + step] for name, leaf in remembered.items()}
            self._pieces.append(_Piece(rows, own | kept, work, decoded is not None))
            self._waiting += part.shape[0]

    def pop(self) -> tuple[Batch, Emitted] | None:
        """Take out the next batch, or None where fewer than `batch_size` good rows are there.

        Raises:
            BatchError: the decoded rows cannot be stacked.
            DecodeError: nothing can be decoded any more.
        """
        while self._good_rows < self.batch_size and self._pieces:
            self._settle(self._pieces[0])
        if self._good_rows < self.batch_size:
            return None
        where = [(piece, torch.tensor(rows)) for piece, rows in self._good]
        columns = joined_rows([chosen_rows(piece.decoded().columns, at) for piece, at in where])
        remembered = joined_rows([chosen_rows(piece.remembered, at) for piece, at in where])
        batch = self._decoder.built(columns, self._template)
        self._good, self._good_rows = [], 0  # not before: what cannot be built is not lost
        return batch, Emitted(**cast("dict[str, Any]", remembered))

    def state_dict(self) -> dict[str, Any]:
        """Copy out every raw row that waits, and what is remembered of it."""
        held = Buffer(max(1, len(self)))
        if self._restored is not None:
            held.push(self._restored, torch.arange(row_count(self._restored)))
        pending = [(piece, list(range(piece.at, piece.rows))) for piece in self._pieces]
        for piece, rows in self._good + pending:
            if rows:
                held.push(piece.leaves | piece.remembered, torch.tensor(rows))
        kind = self._decoder.kind
        return {"batch_size": self.batch_size, "kind": kind, "held": held.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Wait with the rows of `state`; `begin` decodes them.

        Raises:
            ValueError: the state belongs to another batch size.
        """
        check_batch_size(state["batch_size"], self.batch_size)
        held = Buffer(state["held"]["batch_size"])
        held.load_state_dict(state["held"])
        self._decoder.kind = state["kind"]
        self._kinds = Buffer(self.batch_size)
        self._pieces, self._good, self._good_rows = deque(), [], 0
        self._restored = held.pop() or held.rest()
        self._waiting = 0 if self._restored is None else row_count(self._restored)

    def begin(self, template: Batch) -> None:
        """Learn the structure of raw batches, and begin to decode restored rows."""
        self._template = template
        rows, self._restored = self._restored, None
        if rows is not None:
            raw = {name: leaf for name, leaf in rows.items() if name not in Emitted._fields}
            self._kinds.check(raw)
            self._waiting = 0
            self.push(rows, torch.arange(row_count(rows)), {})

    def _settle(self, piece: _Piece) -> None:
        """Move rows of the oldest piece on, as many as the batch lacks: to the good, or out."""
        decoded, missing = piece.decoded(), self.batch_size - self._good_rows
        stop = min(piece.at + missing, piece.rows)
        rows = range(piece.at, stop)
        good = list(rows) if piece.counted else self._decoder.good_rows(decoded, rows)
        self._waiting -= stop - piece.at
        piece.at = stop
        if stop == piece.rows:
            self._pieces.popleft()
        if good:
            self._good.append((piece, good))
            self._good_rows += len(good)
