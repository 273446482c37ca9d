"""What all sources of shards share: passes, split, batches, resume, and what damage leads to."""

import logging
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from adasel_connectors.counts import Counts
from adasel_connectors.damage import ON_ERROR, DamageError, OnError, shown
from adasel_connectors.fetching import Fetcher
from adasel_connectors.manifest import check_count, check_shard
from adasel_connectors.open_shards import Rows
from adasel_connectors.position import Pass, Position, begin_pass, read_state, write_state
from adasel_connectors.reader import Piece, Report, ShardReader, SkipShardError
from adasel_connectors.references import check_references, digest_of
from adasel_connectors.shard_set import ShardSet
from adasel_connectors.shards import Shard, ShardFile, Stamp, fingerprint, number_shards
from adasel_stream.errors import ShardError, SourceError

__all__ = ["ShardSource"]

_log = logging.getLogger("adasel_connectors")


class ShardSource(IterableDataset[dict[str, Any]]):
    """Batches of an exact size over shards; what `TarSource` and `ParquetSource` add to.

    Attributes:
        deferred: names of the columns that hold references instead of content; see `fetch`.
    """

    kind: ClassVar[str]
    kinds_of_damage: ClassVar[tuple[str, ...]]
    kinds_of_fetch_damage: ClassVar[tuple[str, ...]]
    reference_width: ClassVar[int]

    def __init__(
        self,
        shards: ShardSet,
        *,
        deferred: tuple[str, ...],
        batch_size: int,
        rank: int,
        world_size: int,
        on_error: OnError,
    ) -> None:
        """Check what all sources are given.

        Raises:
            ValueError: a number is out of range or the policy unknown.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, world_size), got {rank} of {world_size}")
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")
        self._shards = shards
        self.deferred = deferred
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._on_error = on_error
        self._counts = Counts(
            [
                *("samples", "skipped_samples", "skipped_shards", "verified_shards"),
                *("unverified_shards", "ignored_members", "missing", "unreadable", "unlisted"),
                *("wrong_size", "wrong_sha256", "wrong_count", *self.kinds_of_damage),
                *(Fetcher.names(self.kinds_of_fetch_damage) if deferred else ()),
            ]
        )
        self._fetcher = Fetcher(self._counts)
        self._verified: set[Stamp] = set()
        self._numbered: tuple[tuple[str, ...], dict[int, Shard]] = ((), {})
        self._pass = Pass(0)
        self._position = Position()
        self._counted = [0] * len(self._counts.totals())
        self._resuming = False
        self._turn = 0

    @property
    def counts(self) -> dict[str, int]:
        """What was read and what was left out so far, by kind, workers included.

        `samples` were given out; `skipped_samples` and `skipped_shards` were left out; the other
        names are the kinds of damage that were met. With deferred columns, `fetched` values and
        `fetched_bytes` were read of them; `unfetched` ones could not be had, for the reasons
        that `unfetched_...` count.
        """
        return self._counts.totals()

    def fetch(self, references: Mapping[str, Tensor]) -> dict[str, list[Any]]:
        """Read the content of chosen rows; see `adasel_stream.types.Fetching`.

        It reads from the shards that this source knows, whoever read the candidates: a
        DataLoader worker, or a process before the last restart. Where a manifest is given, a
        shard is compared with it before the first content is read from it, once in each
        process; a worker's check does not count here.

        Args:
            references: for each deferred column those of n rows as batches have them, int64,
                shape (n, reference_width).

        Returns:
            For each column a list of n values. A value that cannot be had is a `ShardError`,
            not raised: its shard is gone or has changed, or it is damaged or not decodable.

        Raises:
            TypeError: what is given is no mapping of tensors.
            ValueError: a column is not deferred, or what is given are not references.
        """
        check_references(references, self.deferred, self.reference_width)
        shards = self._shards_by_number()
        return {
            name: self._fetcher.fetch(name, rows.tolist(), shards, self._open_rows)
            for name, rows in references.items()
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Begin a pass, or go on where a loaded state says.

        One pass at a time: an older iterator of the same source raises from now on.

        Raises:
            SourceError: a loaded state belongs to another rank or worker.
        """
        part, parts = self._share()
        if not self._resuming:
            self._pass, self._position = Pass(self._pass.number), Position()
        self._resuming = False
        if not self._pass.names:
            self._pass = begin_pass(self._pass.number, self._shards.found, part, parts)
        if (self._pass.part, self._pass.parts) != (part, parts):
            raise SourceError(
                f"the state is that of reader {self._pass.part} of {self._pass.parts}, this is "
                f"reader {part} of {parts}; resume with the same world_size and num_workers"
            )
        self._turn += 1
        return self._batches(self._turn)

    def state_dict(self) -> dict[str, Any]:
        """Describe the position after the last batch that was given out, as plain data.

        After the end of a pass it is the beginning of the next one.

        Raises:
            SourceError: DataLoader workers read this source, so the position is theirs.
        """
        counted = self._counts.named(self._counted)
        if get_worker_info() is None and self.counts["samples"] and not counted["samples"]:
            raise SourceError(
                "this source is read by DataLoader workers, which know the position; use "
                "num_workers=0 or a loader that asks its workers for their state"
            )
        return write_state(self.kind, self._pass, self._position, counted)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next iteration go on after the batch that `state` was taken at.

        Raises:
            SourceError: it is not a state of such a source.
            ShardError: a shard that is still to be read has changed or is gone.
        """
        loaded = read_state(self.kind, state, self._shards.path_of)
        self._pass, self._position, counts = loaded
        self._counts.restore(counts)
        self._counted = self._counts.row().tolist()
        self._resuming = True

    @abstractmethod
    def _open(
        self, shard: Shard, file: ShardFile, digest: int, start: Position, report: Report
    ) -> ShardReader:
        """Open a shard at a position; `report` takes damage of single samples."""

    @abstractmethod
    def _rows(self, file: ShardFile, digest: int) -> Rows:
        """Open a shard, verified if it can be, to read single rows of deferred columns."""

    @abstractmethod
    def _join(self, ids: Tensor, columns: dict[str, Any]) -> dict[str, Any]:
        """Make a batch of ids and columns."""

    def _share(self) -> tuple[int, int]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return self._rank * workers + number, self._world_size * workers

    def _batches(self, turn: int) -> Iterator[dict[str, Any]]:
        pieces: list[Piece] = []
        missing = self._batch_size
        start = position = self._position
        shards = self._pass.shards(self._shards.path_of)
        for index in range(start.index, len(shards)):
            first = start if index == start.index else Position(index)
            with suppress(SkipShardError), self._reading(shards[index], first) as (reader, content):
                while (piece := reader.take(missing)) is not None:
                    pieces.append(piece)
                    missing -= len(piece.ids)
                    position = Position(index, reader.row, reader.offset, content)
                    if not missing:
                        yield self._given(pieces, position)
                        self._check_turn(turn)
                        pieces, missing = [], self._batch_size
        if pieces:
            yield self._given(pieces, position)
            self._check_turn(turn)
        self._pass, self._position = Pass(self._pass.number + 1), Position()
        self._counted = self._counts.row().tolist()

    def _given(self, pieces: list[Piece], position: Position) -> dict[str, Any]:
        ids = _joined([piece.ids for piece in pieces])
        columns = {
            name: _joined([piece.columns[name] for piece in pieces]) for name in pieces[0].columns
        }
        batch = self._join(ids, columns)
        row = self._counts.row()
        row[0] += len(ids)
        self._position, self._counted = position, row.tolist()
        return batch

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise SourceError(
                "another iteration of this source has begun; make two sources to read twice at once"
            )

    @contextmanager
    def _reading(self, shard: Shard, start: Position) -> Generator[tuple[ShardReader, str]]:
        try:
            entry = self._shards.entry(shard)
            with closing(ShardFile(shard.path)) as file:
                content = fingerprint(file.view)
                if start.fingerprint not in ("", content):
                    raise ShardError(f"shard {shown(shard.name)} has changed since the snapshot")
                if entry is not None:
                    check_shard(file.view, entry)
                    self._verified.add(file.stamp)
                if not start.fingerprint:
                    self._counts.add("unverified_shards" if entry is None else "verified_shards")
                report = partial(self._report, shard)
                with closing(self._open(shard, file, digest_of(content), start, report)) as reader:
                    yield reader, content
                    check_count(reader.row, entry)
        except DamageError as damage:
            self._report(shard, damage)

    def _open_rows(self, shard: Shard) -> Rows:
        entry = self._shards.entry(shard)
        file = ShardFile(shard.path)
        if entry is not None and file.stamp not in self._verified:
            check_shard(file.view, entry)
            self._verified.add(file.stamp)
        return self._rows(file, digest_of(fingerprint(file.view)))

    def _shards_by_number(self) -> dict[int, Shard]:
        """Give the shards that references may point to: the pass's, and all that were found."""
        names = self._pass.names or self._numbered[0]
        if names is not self._numbered[0] or not self._numbered[1]:
            known = dict.fromkeys([*names, *self._shards.found])
            shards = number_shards({name: self._shards.path_of(name) for name in known})
            self._numbered = names, {shard.number: shard for shard in shards}
        return self._numbered[1]

    def _report(self, shard: Shard, damage: DamageError, where: str = "") -> None:
        """Count damage; return when reading may go on after the sample."""
        self._counts.add(damage.kind)
        text = f"shard {shown(shard.name)}: {where}{damage.reason}"
        if self._on_error == "raise":
            raise ShardError(text) from damage
        if damage.one_sample and self._on_error == "skip_sample":
            self._counts.add("skipped_samples")
            return
        self._counts.add("skipped_shards")
        _log.warning("skipping the rest of %s", text)
        raise SkipShardError from damage


def _joined(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return list(chain.from_iterable(parts))
