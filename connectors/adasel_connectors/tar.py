"""Read samples from tar shards in the webdataset layout, as batches of columns.

>>> import io, tarfile, tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> with tarfile.open(f"{folder.name}/a.tar", "w") as shard:
...     for i in range(3):
...         for name, content in ((f"{i}.jpg", b"..."), (f"{i}.cls", b"%d" % i)):
...             member = tarfile.TarInfo(name)
...             member.size = len(content)
...             shard.addfile(member, io.BytesIO(content))
>>> source = TarSource(folder.name, extensions=("jpg", "cls"), batch_size=2)
>>> for batch in source:
...     print(batch["__key__"], batch["jpg"], batch["cls"])
['0', '1'] [b'...', b'...'] tensor([0, 1])
['2'] [b'...'] tensor([2])
>>> folder.cleanup()
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, ClassVar

import torch
from torch import Tensor

from adasel_connectors.counts import Counts
from adasel_connectors.damage import DamageError, OnError, shown
from adasel_connectors.open_shards import Rows
from adasel_connectors.position import Position
from adasel_connectors.reader import Piece, Report, ShardReader, SkipShardError
from adasel_connectors.references import refer
from adasel_connectors.shard_set import ShardSet
from adasel_connectors.shards import Paths, Shard, ShardFile
from adasel_connectors.source import ShardSource
from adasel_connectors.tar_columns import Column, Decoder, column_for, decode_part
from adasel_connectors.tar_rows import TarRows
from adasel_connectors.tar_samples import Limits, Samples
from adasel_stream.errors import ShardError

__all__ = ["TarSource"]

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_RESERVED = ("id", "__key__")


class TarSource(ShardSource):
    """Batches of the samples of tar shards; see this module's first lines for an example.

    Shards are read in order of their names, samples in order of the archive. Each batch is a
    dict: `__key__`, a list of b keys; `id`, int64, shape (b,), the shard's 31-bit number times
    2^32 plus the sample's row in the shard; and a column for each extension. `cls` becomes
    int64, shape (b,); `npy` a tensor, shape (b, ...), when the arrays of a batch are alike;
    `txt` a list of strings; `json` an object array, shape (b,); all others lists of bytes.

    Deferred extensions are checked like the others, but their content is passed over: the column
    has references, int64, shape (b, 4), of which `fetch` makes content once rows are chosen.

    >>> import io, tarfile, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with tarfile.open(f"{folder.name}/a.tar", "w") as shard:
    ...     for i in range(3):
    ...         member = tarfile.TarInfo(f"{i}.jpg")
    ...         member.size = 3
    ...         shard.addfile(member, io.BytesIO(b"(%d)" % i))
    >>> source = TarSource(folder.name, extensions=("jpg",), deferred=("jpg",))
    >>> (batch,) = source
    >>> source.fetch({"jpg": batch["jpg"][[2, 0]]})
    {'jpg': [b'(2)', b'(0)']}
    >>> folder.cleanup()

    All batches have exactly `batch_size` rows, but the last of a pass may have fewer. One
    `iter()` is one pass. As the dataset of `DataLoader(source, batch_size=None,
    num_workers=n)` each worker reads every nth shard; each rank does likewise.

    The headers are checked as they are read; nothing is executed, no path is made of a name,
    and only regular files are read. Without a manifest, damage to headers and cut shards are
    always noticed, but altered content is not. A shard must not be overwritten or cut while
    it is read: replace it by renaming a new file over it.
    """

    kind: ClassVar[str] = "tar"
    kinds_of_damage: ClassVar[tuple[str, ...]] = (
        *("bad_header", "compressed", "cut", "data_after_end", "decode", "duplicate_part"),
        *("incomplete", "not_regular", "too_large", "unsafe_key", "unsupported_type"),
    )
    kinds_of_fetch_damage: ClassVar[tuple[str, ...]] = ("decode", "too_large")
    reference_width: ClassVar[int] = 4

    def __init__(
        self,
        paths: Paths,
        *,
        extensions: Sequence[str],
        deferred: Sequence[str] = (),
        batch_size: int = 256,
        manifest: str | PathLike[str] | None = None,
        decoders: Mapping[str, Decoder | None] | None = None,
        max_member_bytes: int = 1 << 26,
        max_sample_bytes: int = 1 << 28,
        on_error: OnError = "raise",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Find the shards; they are opened one by one as they are read.

        Args:
            paths: folder, file, glob, or sequence of files.
            extensions: parts that a sample must have, such as `("jpg", "cls")`; members with
                other extensions are not read. What follows the first dot of a file's name,
                in lower case.
            deferred: those of `extensions` that are read only of chosen rows, by `fetch`; their
                decoders run there.
            batch_size: rows of each batch, at least 1.
            manifest: file that `write_manifest` made of the shards; each shard is compared
                with it before its first sample is given out.
            decoders: a function of bytes for an extension, instead of the default; None keeps
                the bytes. With worker processes it must be importable, not a lambda.
            max_member_bytes: size of one part above which a sample is unusable.
            max_sample_bytes: the same for all its parts together.
            on_error: what to do about damage; see `adasel_connectors.damage.OnError`.
            rank: of this trainer, in [0, world_size).
            world_size: number of trainers that share the shards.

        Raises:
            ValueError: no shards are there, or an argument is out of its range.
            TypeError: `extensions` or `deferred` is one string.
        """
        names = _checked_extensions("extensions", extensions)
        later = _checked_extensions("deferred", deferred) if deferred else []
        if not set(later) <= set(names):
            raise ValueError(f"deferred must be among extensions {names}, got {later}")
        super().__init__(
            ShardSet.find(paths, _SUFFIXES, manifest),
            deferred=tuple(later),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            on_error=on_error,
        )
        unknown = set(decoders or ()) - set(names)
        if unknown:
            raise ValueError(f"decoders are given for {sorted(unknown)}, not in {names}")
        if min(max_member_bytes, max_sample_bytes) < 1:
            raise ValueError("max_member_bytes and max_sample_bytes must be at least 1")
        self._columns = {name: column_for(name, decoders or {}) for name in names}
        self._limits = Limits(max_member_bytes, max_sample_bytes)

    def _open(
        self, shard: Shard, file: ShardFile, digest: int, start: Position, report: Report
    ) -> ShardReader:
        samples = Samples(
            file.view,
            {name.encode(): i for i, name in enumerate(self._columns)},
            self._limits,
            deferred=frozenset(i for i, name in enumerate(self._columns) if name in self.deferred),
            offset=start.offset,
            end_required=self._shards.entries is None,
        )
        return _TarReader(
            shard,
            start,
            samples,
            self._columns,
            deferred=self.deferred,
            digest=digest,
            report=report,
            counts=self._counts,
        )

    def _rows(self, file: ShardFile, digest: int) -> Rows:
        columns = {name: self._columns[name] for name in self.deferred}
        return TarRows(file, digest, columns, self._limits.member_bytes)

    def _join(self, ids: Tensor, columns: dict[str, Any]) -> dict[str, Any]:
        batch = {"__key__": columns["__key__"], "id": ids}
        for name, column in self._columns.items():
            deferred = name in self.deferred
            batch[name] = columns[name] if deferred else column.join(columns[name])
        return batch


class _TarReader:
    def __init__(
        self,
        shard: Shard,
        start: Position,
        samples: Samples,
        columns: Mapping[str, Column],
        *,
        deferred: tuple[str, ...],
        digest: int,
        report: Report,
        counts: Counts,
    ) -> None:
        self.row, self.offset = start.row, start.offset
        self._first_id = shard.number << 32
        self._samples, self._iterator = samples, iter(samples)
        self._names = list(columns)
        self._deferred, self._digest = deferred, digest
        self._decoders = [
            (i, name, column.decode)
            for i, (name, column) in enumerate(columns.items())
            if column.decode and name not in deferred
        ]
        self._report = report
        self._counts = counts
        self._ignored = 0
        self._stop: Exception | None = None

    def close(self) -> None:
        self._iterator.close()

    def take(self, rows: int) -> Piece | None:
        if self._stop is not None:
            raise self._stop
        keys: list[str] = []
        kept: list[list[Any]] = []
        ids: list[int] = []
        try:
            for key, parts, damage, offset in self._iterator:
                row, self.row, self.offset = self.row, self.row + 1, offset
                if damage is None and self._decoders:
                    damage = self._decode(parts)
                if damage is not None:
                    self._report(damage, f"sample {row} ({shown(key)}): ")
                    continue
                keys.append(key)
                kept.append(parts)
                ids.append(self._first_id + row)
                if len(ids) == rows:
                    break
        except (DamageError, SkipShardError, ShardError) as stop:
            if not keys:
                raise
            self._stop = stop  # what was read before it is sound and goes out first
        self._count_ignored()
        if not keys:
            return None
        numbers = torch.tensor(ids)
        columns: dict[str, Any] = {"__key__": keys}
        for name, column in zip(self._names, map(list, zip(*kept, strict=True)), strict=True):
            columns[name] = column
            if name in self._deferred:
                columns[name] = refer(numbers, self._digest, *torch.tensor(column).unbind(1))
        return Piece(numbers, columns)

    def _decode(self, parts: list[Any]) -> DamageError | None:
        try:
            for i, name, decode in self._decoders:
                parts[i] = decode_part(name, decode, parts[i])
        except DamageError as damage:
            return damage
        return None

    def _count_ignored(self) -> None:
        if self._samples.ignored > self._ignored:
            self._counts.add("ignored_members", self._samples.ignored - self._ignored)
            self._ignored = self._samples.ignored


def _checked_extensions(argument: str, extensions: Sequence[str]) -> list[str]:
    if isinstance(extensions, str):
        raise TypeError(f"{argument} must be a sequence of names, got one string {extensions!r}")
    names = [name.lower().removeprefix(".") for name in extensions]
    for name in names:
        if not name or "/" in name or name in _RESERVED or names.count(name) > 1:
            raise ValueError(
                f"{argument} must be different names such as 'jpg', not {_RESERVED}, got {name!r}"
            )
    if not names:
        raise ValueError(f"{argument} is empty, expected those that a sample is made of")
    return names
