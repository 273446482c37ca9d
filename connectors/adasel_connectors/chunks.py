"""Slice large batches into small ones, as views.

A DataLoader worker takes 0.3 to 0.4 ms to hand over a tensor, whatever its size, so small
batches of cheap data arrive slower from workers than they are read without any. Workers that
hand over chunks of some thousand rows are three to nine times as fast:

    >>> import tempfile, pyarrow, pyarrow.parquet
    >>> from torch.utils.data import DataLoader
    >>> from adasel_connectors.parquet import ParquetSource
    >>> folder = tempfile.TemporaryDirectory()
    >>> pyarrow.parquet.write_table(pyarrow.table({"x": [1, 2, 3]}), f"{folder.name}/a.parquet")
    >>> source = ParquetSource(folder.name, batch_size=4096)
    >>> chunks = DataLoader(source, batch_size=None, num_workers=0, collate_fn=as_it_is)
    >>> [batch["x"].tolist() for batch in rebatch(chunks, 2)]
    [[1, 2], [3]]
    >>> folder.cleanup()
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from adasel_stream.errors import BatchError, SourceError
from adasel_stream.types import Batch, Fetching, Stateful

__all__ = ["Rebatch", "StatefulRebatch", "as_it_is", "rebatch"]

T = TypeVar("T")


def as_it_is(batch: T) -> T:
    """Return a batch unchanged: a `collate_fn` for sources that give whole batches.

    torch's default looks at every string of every column. Unlike a lambda, this one reaches
    spawned workers too.

    >>> as_it_is({"x": [1, 2]})
    {'x': [1, 2]}
    """
    return batch


def rebatch(loader: Iterable[Batch], batch_size: int) -> "Rebatch":
    """Slice the batches of `loader` into batches of exactly `batch_size` rows.

    Args:
        loader: gives dicts, tuples or lists, nested, of tensors, arrays or lists of scalars,
            strings or bytes, with any number of rows.
        batch_size: rows of each batch, at least 1; the last of a pass may have fewer.

    Returns:
        An iterable; it has `state_dict` when `loader` has, and the deferred columns of
        `loader` or of its `dataset`.

    Raises:
        ValueError: `batch_size` is less than 1.

    >>> [b["x"].tolist() for b in rebatch([{"x": torch.arange(3)}, {"x": torch.arange(3)}], 2)]
    [[0, 1], [2, 0], [1, 2]]
    """
    return (StatefulRebatch if isinstance(loader, Stateful) else Rebatch)(loader, batch_size)


class Rebatch:
    """Batches of an exact size out of a loader's larger or smaller ones; see `rebatch`.

    Attributes:
        deferred: names of the columns that hold references instead of content; see `fetch`.
    """

    def __init__(self, loader: Iterable[Batch], batch_size: int) -> None:
        """Wrap a loader; it is not touched before the first `iter`.

        Raises:
            ValueError: `batch_size` is less than 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._loader = loader
        self._batch_size = batch_size
        self._position = (self._inner_state(), 0)
        inner = (loader, getattr(loader, "dataset", None))
        self._fetching = next((one for one in inner if isinstance(one, Fetching)), None)
        self.deferred = self._fetching.deferred if self._fetching else ()

    def __iter__(self) -> Iterator[Batch]:
        """Begin a pass of the wrapped loader; only the newest iterator may be used."""
        return self._batches(0)

    def fetch(self, references: Mapping[str, Tensor]) -> Mapping[str, Sequence[Any]]:
        """Read what references point to, by the source in this process.

        Args:
            references: for each deferred column those of n rows as batches have them, int64,
                shape (n, w).

        Returns:
            For each column n values; an exception in the place of one that cannot be had.

        Raises:
            SourceError: what is wrapped defers no columns.
        """
        if self._fetching is None:
            raise SourceError("the rebatched loader has no source that defers columns")
        return self._fetching.fetch(references)

    def _batches(self, skipped: int) -> Iterator[Batch]:
        chunks: deque[_Chunk] = deque()
        rows = -skipped
        inner = iter(self._loader)
        before = self._inner_state()
        self._position = (before, skipped)
        for batch in inner:
            chunk = _Chunk.of(batch, before)
            chunk.at = min(max(0, -rows), chunk.rows)
            rows += chunk.rows
            chunks.append(chunk)
            while rows >= self._batch_size:
                yield self._next(chunks, self._batch_size)
                rows -= self._batch_size
            before = self._inner_state()
        if rows > 0:
            yield self._next(chunks, rows)
        self._position = (self._inner_state(), 0)

    def _next(self, chunks: "deque[_Chunk]", rows: int) -> Batch:
        parts: list[list[Any]] = []
        missing = rows
        if chunks[0].at == chunks[0].rows:
            chunks.popleft()
        while True:
            chunk = chunks[0]
            stop = min(chunk.at + missing, chunk.rows)
            missing -= stop - chunk.at
            parts.append([leaf[chunk.at : stop] for leaf in chunk.leaves])
            chunk.at = stop
            if not missing:
                break
            chunks.popleft()
        self._position = (chunk.before, chunk.at)
        return chunk.build(parts[0] if len(parts) == 1 else _joined(parts))

    def _inner_state(self) -> Any:
        return None


class StatefulRebatch(Rebatch):
    """The same over a loader that knows its position: it can be resumed at each small batch.

    A state names the chunk, by the loader's own state before it, and the rows given out of it;
    on resume that one chunk is read again.
    """

    _loader: Any
    _skipped = 0

    def __iter__(self) -> Iterator[Batch]:
        """Begin a pass, or go on where a loaded state says."""
        skipped, self._skipped = self._skipped, 0
        return self._batches(skipped)

    def state_dict(self) -> dict[str, Any]:
        """Describe the position after the last batch given out: a chunk, and rows in it."""
        inner, rows = self._position
        return {"format": 1, "source": "rebatch", "inner": inner, "rows": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration go on after the batch that `state` was taken at.

        Raises:
            SourceError: it is not a state of a `StatefulRebatch`.
        """
        rows = state.get("rows")
        if state.get("source") != "rebatch" or state.get("format") != 1 or type(rows) is not int:
            raise SourceError("expected a state of a rebatched loader of format 1")
        self._loader.load_state_dict(state["inner"])
        self._position = (state["inner"], rows)
        self._skipped = rows

    def _inner_state(self) -> Any:
        return self._loader.state_dict()


_Build: TypeAlias = Callable[[list[Any]], Any]


@dataclass(slots=True)
class _Chunk:
    """A large batch, the state before it, and how many of its rows have been given out."""

    leaves: list[Any]
    build: _Build
    rows: int
    before: Any
    at: int = 0

    @classmethod
    def of(cls, batch: Batch, before: Any) -> "_Chunk":
        leaves: list[Any] = []
        build = _take_apart(batch, leaves)
        rows = {len(leaf) for leaf in leaves}
        if len(rows) != 1:
            raise BatchError(f"expected leaves of the same number of rows, got {sorted(rows)}")
        return cls(leaves, build, rows.pop(), before)


def _take_apart(node: Any, leaves: list[Any]) -> _Build:
    """Collect the leaves of a batch; return what builds such a batch of other leaves."""
    if isinstance(node, Mapping):
        named: dict[Any, _Build] = {key: _take_apart(value, leaves) for key, value in node.items()}
        return lambda parts: {key: build(parts) for key, build in named.items()}
    if isinstance(node, list | tuple) and _holds_columns(node):
        entries = [_take_apart(entry, leaves) for entry in node]
        return partial(_build_sequence, getattr(type(node), "_make", type(node)), entries)
    if not isinstance(node, Tensor | np.ndarray | list):
        raise BatchError(f"expected tensors, arrays or lists in a batch, got {type(node).__name__}")
    index = len(leaves)
    leaves.append(node)
    return lambda parts: parts[index]


def _build_sequence(make: _Build, entries: list[_Build], parts: list[Any]) -> Any:
    return make([build(parts) for build in entries])


def _holds_columns(entries: Sequence[Any]) -> bool:
    return any(isinstance(e, Tensor | np.ndarray | Mapping | list | tuple) for e in entries)


def _joined(parts: list[list[Any]]) -> list[Any]:
    if len({len(leaves) for leaves in parts}) != 1:
        raise BatchError("expected chunks with the same columns, got others than before")
    return [_join(list(pieces)) for pieces in zip(*parts, strict=True)]


def _join(pieces: list[Any]) -> Any:
    if isinstance(pieces[0], Tensor):
        return torch.cat(pieces)
    if isinstance(pieces[0], np.ndarray):
        return np.concatenate(pieces)
    return list(chain.from_iterable(pieces))
