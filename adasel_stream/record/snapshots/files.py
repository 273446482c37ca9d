"""Files of one folder: written under names never used before, read only as the manifest says."""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from adasel_stream.atomic import replace_file
from adasel_stream.errors import DamagedSnapshotError, RecordError
from adasel_stream.record.entries import Entries
from adasel_stream.record.snapshots import manifest as manifests
from adasel_stream.record.snapshots.columns import (
    RowsFile,
    encode_groups,
)
from adasel_stream.record.snapshots.layout import MANIFEST_NAME
from adasel_stream.record.snapshots.manifest import FileEntry, Manifest

__all__ = [
    "checked_rows",
    "open_regular",
    "read_manifest",
    "remove_unnamed",
    "write_manifest",
    "write_rows",
]

_OURS: Final = re.compile(r"(?:base|delta|pending)-[0-9]{12}\.parquet")
_TEMPORARY: Final = re.compile(
    r"\.(?:(?:base|delta|pending)-[0-9]{12}\.parquet|manifest\.json)\.[0-9a-f]{16}\.tmp"
)
_CHUNK_BYTES: Final = 2**20


def write_rows(
    folder: Path, kind: str, generation: int, groups: Iterable[Entries], seed: int
) -> FileEntry:
    """Write one file of rows and describe it.

    Args:
        folder: where to.
        kind: as in `FileEntry`.
        generation: none that the folder has used before.
        groups: as `encode_groups` takes them.
        seed: the record's seed.

    Raises:
        OSError: whatever the operating system refused; nothing is left of the file.
    """
    name = f"{kind}-{generation:012d}.parquet"
    span = _Span()
    digest = _Digest()
    replace_file(folder / name, digest.over(encode_groups(span.over(groups), seed)))
    return FileEntry(
        name=name,
        kind=kind,
        rows=span.rows,
        bytes=digest.bytes,
        sha256=digest.hexdigest(),
        since_tick=span.since_tick,
        until_tick=span.until_tick,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make a snapshot the folder's current one; all its files must be durable."""
    replace_file(folder / MANIFEST_NAME, [manifests.encode(manifest)])


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read which snapshot a folder of one rank holds.

    Raises:
        FileNotFoundError: if there is no manifest.
        DamagedSnapshotError: if the manifest is damaged.
        RecordError: if a newer release wrote it, or it cannot be read.

    >>> import tempfile
    >>> from adasel_stream.record import LossRecord
    >>> with tempfile.TemporaryDirectory() as path:
    ...     LossRecord.open(path, capacity=100).close()
    ...     [file.name for file in read_manifest(f"{path}/rank-00000-of-00001").files]
    ['base-000000000001.parquet']
    """
    path = Path(folder) / MANIFEST_NAME
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > manifests.LARGEST_MANIFEST_BYTES:
            raise DamagedSnapshotError(
                f"{str(path)!r} is damaged: it is {size} bytes long, expected at most "
                f"{manifests.LARGEST_MANIFEST_BYTES}"
            )
        return manifests.decode(file.read(size), repr(str(path)))


def checked_rows(file: IO[bytes], entry: FileEntry, name: str) -> RowsFile:
    """Compare a whole file with its entry, and only then let Arrow see it.

    Args:
        file: at its beginning; it stays the caller's to close.
        entry: what the manifest says of it.
        name: what errors call it.

    Raises:
        DamagedSnapshotError: if it is another file.

    >>> import tempfile
    >>> import numpy as np
    >>> from adasel_stream.record.entries import VALUE
    >>> rows = Entries(np.array([5], np.uint64), np.ones(1, VALUE))
    >>> with tempfile.TemporaryDirectory() as path:
    ...     entry = write_rows(Path(path), "base", 1, [rows], seed=0)
    ...     with open_regular(Path(path, entry.name)) as file:
    ...         groups = checked_rows(file, entry, "example").groups()
    ...         [group.keys.tolist() for group in groups]
    [[5]]
    """
    digest = hashlib.sha256()
    size = 0
    # one byte more than there should be, so that a longer file is another size
    while chunk := file.read(min(_CHUNK_BYTES, entry.bytes + 1 - size)):
        digest.update(chunk)
        size += len(chunk)
    if size != entry.bytes:
        raise DamagedSnapshotError(
            f"{name} is damaged: the manifest says {entry.bytes} bytes, it has "
            f"{'more' if size > entry.bytes else size}"
        )
    if digest.hexdigest() != entry.sha256:
        raise DamagedSnapshotError(f"{name} is damaged: its sha256 is not the manifest's")
    file.seek(0)
    return RowsFile(file, entry.rows, name)


def remove_unnamed(folder: Path, manifest: Manifest | None) -> None:
    """Remove files that no manifest names, and what killed writers left; the folder is locked.

    What no snapshot could have written is left alone, and what cannot be removed is tried again
    after the next snapshot.
    """
    named = {file.name for file in manifest.files} if manifest else set[str]()
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name not in named and (_OURS.fullmatch(name) or _TEMPORARY.fullmatch(name)):
                os.unlink(folder / name)


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file to read; anything else in its place is refused and does not block.

    Raises:
        FileNotFoundError: if there is none.
        RecordError: if it cannot be opened.
    """
    try:
        file = open(  # noqa: SIM115 - the caller closes it
            path, "rb", opener=lambda p, f: os.open(p, f | os.O_NONBLOCK | os.O_NOFOLLOW)
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise RecordError(f"cannot read {str(path)!r}: it is not a regular file")
    return file


class _Span:
    """Counts rows and their ticks while row groups pass."""

    def __init__(self) -> None:
        self.rows = 0
        self.since_tick = 1
        self.until_tick = 1

    def over(self, groups: Iterable[Entries]) -> Iterator[Entries]:
        for group in groups:
            ticks = group.values["tick"]
            if len(ticks):
                oldest = int(ticks.min())
                self.since_tick = min(self.since_tick, oldest) if self.rows else oldest
                self.until_tick = max(self.until_tick, int(ticks.max()))
                self.rows += len(ticks)
            yield group


class _Digest:
    """Hashes and counts bytes while they pass."""

    def __init__(self) -> None:
        self.bytes = 0
        self._digest = hashlib.sha256()

    def over(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.bytes += len(chunk)
            self._digest.update(chunk)
            yield chunk

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
