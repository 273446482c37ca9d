"""Decode what was chosen, and nothing else: fetched, decoded in a pool, put together in order.

Candidates are cheap while they are raw: encoded bytes, or references to where the bytes lie. Rows
that are not chosen are neither read nor decoded. A chosen row that cannot be decoded is counted and
the next chosen one takes its place, so that no batch is ever short.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import default_collate

from adasel_stream import trees
from adasel_stream.buffer import Buffer, check_batch_size
from adasel_stream.emitted import Emitted
from adasel_stream.errors import BatchError, DecodeError
from adasel_stream.rows import Leaves, chosen_rows, place, row_count
from adasel_stream.types import Batch, Fetching, Sample

__all__ = ["DecodedRows", "Decoder", "Decoding", "fetching"]

_log = logging.getLogger(__name__)

_PIECE_ROWS: Final = 16
"""Rows of one task: enough to outweigh its hand-over, few enough to keep all threads at work."""

_MOST_THREADS: Final = 8

_HOPELESS: Final = 1000
"""So many failures in a row are no accident of single samples."""

Outcome: TypeAlias = Sample | Exception
"""A decoded sample, or why there is none."""


@dataclass(frozen=True)
class Decoding:
    """How chosen rows are decoded; a bare function means `Decoding(function)`.

    Attributes:
        function: from one raw sample, a batch's structure with one row's values, to the sample that
            is trained on: a structure of tensors, arrays, numbers and strings that torch's
            `default_collate` stacks. Called in threads; None keeps what was read.
        workers: threads; 0 decodes in the training thread. Decoders of images and numpy let other
            threads run; pure Python does not, and gains nothing from more than one.
        ahead: batches that are chosen, and being decoded, beyond the one that comes next.

    Raises:
        TypeError: an argument of another type.
        ValueError: a number below 0.

    >>> Decoding(lambda sample: {"x": len(sample["jpg"])}, workers=2).ahead
    1
    """

    function: Callable[[Sample], Sample] | None = None
    workers: int = field(default_factory=lambda: min(_MOST_THREADS, os.cpu_count() or 1))
    ahead: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.function is not None and not callable(self.function):
            raise TypeError(
                f"decode must be a function of a sample, got {type(self.function).__name__}"
            )
        for name, number in (("workers", self.workers), ("ahead", self.ahead)):
            if not isinstance(number, int) or isinstance(number, bool):
                raise TypeError(f"{name} must be a whole number, got {type(number).__name__}")
            if number < 0:
                raise ValueError(f"{name} must be at least 0, got {number}")


def fetching(source: Any) -> Fetching | None:
    """Find who can fetch the columns that a source defers: itself, or its data set.

    >>> fetching([1, 2]) is None
    True
    """
    for one in (source, getattr(source, "dataset", None)):
        if isinstance(one, Fetching) and one.deferred:
            return one
    return None


class Decoder:
    """Turns raw rows into samples, in a pool of threads.

    Args:
        decoding: the function and how much is done at once.
        source: fetches deferred columns, or None where nothing is deferred.
        device: where batches go, or None for where samples are.
        counts: rows by what became of them, `decoded` and `failed`; added to.
    """

    def __init__(
        self,
        decoding: Decoding,
        source: Fetching | None,
        device: torch.device | None,
        counts: dict[str, int],
    ) -> None:
        self.ahead = decoding.ahead
        self._function = decoding.function
        self._source = source
        self._device = device
        self._counts = counts
        self._failed_in_a_row = 0
        self._pool = (
            ThreadPoolExecutor(decoding.workers, "adasel-decode") if decoding.workers else None
        )

    def begin(self, leaves: Leaves, template: Batch) -> "Future[list[Outcome]]":
        """Decode a few rows of leaves, n each, built as `template` is; n outcomes come."""
        if self._pool is not None:
            return self._pool.submit(self._work, leaves, template)
        done: Future[list[Outcome]] = Future()
        done.set_result(self._work(leaves, template))
        return done

    def all_of(self, leaves: Leaves, template: Batch) -> list[Outcome]:
        """Decode all rows and wait for them; those that fail are counted."""
        rows = row_count(leaves)
        cuts = [slice(at, at + _PIECE_ROWS) for at in range(0, rows, _PIECE_ROWS)]
        begun = [self.begin({p: leaf[cut] for p, leaf in leaves.items()}, template) for cut in cuts]
        return [self.count(outcome) for future in begun for outcome in future.result()]

    def count(self, outcome: Outcome) -> Outcome:
        """Count an outcome, in the order of the rows.

        Raises:
            DecodeError: only failures came for so long that the decoder itself must be wrong.
        """
        if not isinstance(outcome, Exception):
            self._counts["decoded"] += 1
            self._failed_in_a_row = 0
            return outcome
        self._counts["failed"] += 1
        self._failed_in_a_row += 1
        if (failed := self._counts["failed"]) == 10 ** (len(str(failed)) - 1):  # 1, 10, 100, ...
            _log.warning(
                "%d chosen samples could not be decoded so far (the last: %s); the next ones took "
                "their places, and adasel_decode_rows_total counts them",
                failed,
                type(outcome).__name__,
            )
        if self._failed_in_a_row >= _HOPELESS:
            raise DecodeError(
                f"{self._failed_in_a_row} chosen samples in a row cannot be decoded, so the fault "
                f"is rather with decode= or the source than with a sample; the last one raised "
                f"{type(outcome).__name__}"
            ) from outcome
        return outcome

    def collated(self, samples: list[Sample]) -> Batch:
        """Stack decoded samples into a batch, on the device.

        Raises:
            BatchError: samples of different shapes or of a type that cannot be stacked.
        """
        try:
            batch: Batch = default_collate(samples)
        except (TypeError, RuntimeError, KeyError, ValueError) as error:
            raise BatchError(
                "decoded samples cannot be stacked into a batch: decode must give every sample the "
                "same structure, shapes and dtypes, of tensors, arrays, numbers and strings"
            ) from error
        if self._device is None:
            return batch
        return trees.rebuild(batch, place(trees.flatten(batch), self._device))

    def close(self) -> None:
        """Let go of the threads; what they do is not waited for."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, leaves: Leaves, template: Batch) -> list[Outcome]:
        rows = row_count(leaves)
        try:
            fetched = self._fetched(leaves)
        except Exception as error:  # whatever a source raises: none of these rows can be had
            return [error] * rows
        return [self._sample(leaves, fetched, template, row) for row in range(rows)]

    def _fetched(self, leaves: Leaves) -> Mapping[str, Sequence[Any]]:
        if self._source is None:
            return {}
        paths = {name: f"[{name!r}]" for name in self._source.deferred}
        if missing := [name for name, path in paths.items() if path not in leaves]:
            raise BatchError(f"batches have no column {missing[0]!r}, which the source defers")
        contents = self._source.fetch({name: leaves[path] for name, path in paths.items()})
        return {paths[name]: content for name, content in contents.items()}

    def _sample(
        self, leaves: Leaves, fetched: Mapping[str, Sequence[Any]], template: Batch, row: int
    ) -> Outcome:
        values: dict[str, Any] = {path: leaf[row] for path, leaf in leaves.items()}
        for path, content in fetched.items():
            if isinstance(content[row], Exception):
                failed: Exception = content[row]
                return failed
            values[path] = content[row]
        sample = trees.rebuild(template, values)
        if self._function is None:
            return sample
        try:
            return self._function(sample)
        except Exception as error:  # whatever a decoder raises: this sample cannot be had
            return error


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
        for at in range(0, where.shape[0], _PIECE_ROWS):
            part = where[at : at + _PIECE_ROWS]
            rows = chosen_rows(leaves, part)
            own = {name: rows.pop(name) for name in Emitted._fields if name in rows}
            begun: Future[list[Outcome]] | list[Outcome] = (
                self._decoder.begin(rows, template)
                if samples is None
                else [samples[row] for row in part.tolist()]
            )
            kept = {name: leaf[at : at + _PIECE_ROWS] for name, leaf in remembered.items()}
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
