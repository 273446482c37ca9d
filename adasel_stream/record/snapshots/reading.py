"""Read a snapshot that its owner may replace meanwhile, every byte checked before it is used."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np

from adasel_stream.errors import DamagedSnapshotError
from adasel_stream.record.entries import Entries
from adasel_stream.record.snapshots.columns import (
    GROUP_ROWS,
    SHARDS,
    RowsFile,
)
from adasel_stream.record.snapshots.files import checked_rows, open_regular, read_manifest
from adasel_stream.record.snapshots.manifest import FileEntry

__all__ = ["Snapshot", "merged"]

_WINDOW_ROWS: Final = 4 * GROUP_ROWS


class Snapshot:
    """One rank's snapshot, its files held open so that a newer one cannot take them away.

    Args:
        folder: of one rank.

    Attributes:
        folder: as given.
        manifest: of the snapshot.

    Raises:
        FileNotFoundError: if the folder has no manifest.
        RecordError: if the manifest is damaged, or a newer release wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self.manifest = read_manifest(folder)
        while not self._open_all():
            newer = read_manifest(folder)
            if newer == self.manifest:
                break  # a file is missing that should be there; whoever reads it is told
            self.close()
            self.manifest = newer

    def __enter__(self) -> "Snapshot":
        """Hold the files."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.close()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def rows_of(self, entry: FileEntry) -> RowsFile:
        """Compare a whole file with the manifest and open it.

        Raises:
            DamagedSnapshotError: if it is missing or another.
        """
        name = repr(str(self.folder / entry.name))
        file = self._files.get(entry.name)
        if file is None:
            raise DamagedSnapshotError(f"{name} is damaged: it is missing")
        file.seek(0)
        return checked_rows(file, entry, name)

    def readable_groups(self, entry: FileEntry, shards: range) -> Iterator[Entries]:
        """Read the row groups of a damaged file whose pages are sound by their own checksums."""
        file = self._files.get(entry.name)
        if file is None:
            return
        file.seek(0)
        with contextlib.suppress(DamagedSnapshotError):
            yield from RowsFile(file, entry.rows, entry.name).groups(shards, skip_damaged=True)

    def _open_all(self) -> bool:
        for entry in self.manifest.files:
            with contextlib.suppress(FileNotFoundError):
                self._files[entry.name] = open_regular(self.folder / entry.name)
        return len(self._files) == len(self.manifest.files)


def merged(snapshot: Snapshot, shards: range = range(SHARDS)) -> Iterator[Entries]:
    """Read a snapshot as one sorted sequence of rows, each key once, in bounded memory.

    Every file is verified before its first row is given out.

    Raises:
        DamagedSnapshotError: if any file cannot be used.

    >>> import tempfile
    >>> from adasel_stream.record import LossRecord
    >>> with tempfile.TemporaryDirectory() as path:
    ...     record = LossRecord.open(path, capacity=100)
    ...     record.update(np.array([3, -4]), np.array([0.5, 0.25]))
    ...     record.close()
    ...     with Snapshot(Path(path, "rank-00000-of-00001")) as snapshot:
    ...         sum(len(rows.keys) for rows in merged(snapshot))
    2
    """
    files = [snapshot.rows_of(entry) for entry in snapshot.manifest.rows]
    rows = sum(entry.rows for entry in snapshot.manifest.rows)
    windows = max(1, min(len(shards), -(-rows * len(shards) // (SHARDS * _WINDOW_ROWS))))
    bounds = [shards.start + len(shards) * i // windows for i in range(windows + 1)]
    for window in map(range, bounds[:-1], bounds[1:]):
        pieces = [group for file in files for group in file.groups(window) if len(group.keys)]
        if pieces:
            yield _newest(pieces)


def _newest(pieces: list[Entries]) -> Entries:
    """Keep of each key the row of the last piece that has it, in the order of keys."""
    keys = np.concatenate([piece.keys for piece in pieces])
    order = np.argsort(keys, kind="stable")
    ordered = keys.take(order)
    last = np.append(ordered[1:] != ordered[:-1], True)
    values = np.concatenate([piece.values for piece in pieces])
    return Entries(ordered[last], values.take(order[last]))
