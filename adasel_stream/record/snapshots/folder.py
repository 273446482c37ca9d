"""The snapshots of one rank: a base, deltas by tick, and the manifest that makes them one.

A file, once written, is never changed. A new snapshot writes new files, then the manifest that
names them, then removes what is named no more; killed anywhere between, the folder still holds
the snapshot before, or the new one.
"""

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from adasel_stream.errors import RecordError
from adasel_stream.ownership import LOCK_NAME, FolderLock
from adasel_stream.record.snapshots.columns import sorted_groups
from adasel_stream.record.snapshots.copying import Copy, Recorded, copy_record
from adasel_stream.record.snapshots.files import (
    read_manifest,
    remove_unnamed,
    write_manifest,
    write_rows,
)
from adasel_stream.record.snapshots.layout import MANIFEST_NAME
from adasel_stream.record.snapshots.manifest import FileEntry, Manifest

__all__ = ["MAX_DELTAS", "SnapshotFolder"]

MAX_DELTAS: Final = 8
"""Deltas after which the next snapshot is a new base."""


class SnapshotFolder:
    """A folder of snapshots that this process owns, for a record that has been restored from it.

    Args:
        folder: of one rank; created if it is not there.
        rank: of the record.
        world_size: number of ranks.

    Attributes:
        path: the folder.
        rank: as given.
        world_size: as given.
        lock: on the folder.
        manifest: of the folder's current snapshot, None before the first.
        layout: number of the layout that snapshots belong to from now on.
        broken: whether files of the current snapshot cannot be relied on, so that the next one
            must be a new base.

    Raises:
        RecordError: if another process owns the folder, or its manifest cannot be used.
    """

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        self.path = folder
        self.rank, self.world_size = rank, world_size
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise RecordError(
                f"cannot create {str(folder)!r}: {error.strerror}; name a folder for the record, "
                "or a path where one can be made"
            ) from error
        self.lock = FolderLock(folder)
        try:
            self.manifest = self._current()
        except BaseException:
            self.lock.release()
            raise
        self.layout = self.manifest.layout if self.manifest else 0
        self.broken = False
        self._since_tick = self.manifest.tick if self.manifest else 1
        self._late: npt.NDArray[np.uint8] | None = None

    def save(self, record: Recorded, *, full: bool = False) -> Manifest:
        """Write a snapshot: what changed since the last, or all if there is no base to add to.

        Args:
            record: it may be used meanwhile; see `copy_record`.
            full: write a new base in any case.

        Raises:
            OSError: whatever the operating system refused; after this and any other error the
                snapshot before is intact and the next call tries again.
        """
        chain = () if full or self.broken or self._chain_is_long() else self._chain()
        try:
            copy = copy_record(record, self._since_tick if chain else 0, self._late)
        except BaseException:
            self.broken = True  # what changed before the copy is not known any more
            raise
        # until all is durable, a failure must not lose what `take_late` told once only
        self._late = copy.late
        if copy.late is None:  # the record became another: files of the old one contradict it
            chain, self.broken = (), True
        try:
            self.manifest = self._write(record, copy, chain)
        except BaseException:
            self._clean_up()
            raise
        self.broken, self._since_tick, self._late = False, copy.tick, None
        remove_unnamed(self.path, self.manifest)
        return self.manifest

    def close(self) -> None:
        """Give the folder up."""
        self.lock.release()

    def _current(self) -> Manifest | None:
        manifest: Manifest | None = None
        try:
            manifest = read_manifest(self.path)
        except FileNotFoundError as error:
            left = sorted(set(os.listdir(self.path)) - {LOCK_NAME})
            if any(not name.startswith(".") for name in left):
                raise RecordError(
                    f"record folder {str(self.path)!r} has files but no {MANIFEST_NAME}: put it "
                    "back, or name an empty folder to begin anew"
                ) from error
        remove_unnamed(self.path, manifest)
        return manifest

    def _clean_up(self) -> None:
        """Give back the room of files that a failed snapshot wrote."""
        with contextlib.suppress(OSError, RecordError):
            # the new manifest may be in place already: only its way to the disk may have failed
            self.manifest = read_manifest(self.path)
            remove_unnamed(self.path, self.manifest)

    def _chain(self) -> tuple[FileEntry, ...]:
        return self.manifest.rows if self.manifest else ()

    def _chain_is_long(self) -> bool:
        base_rows, *delta_rows = [file.rows for file in self._chain()] or [0]
        return len(delta_rows) >= MAX_DELTAS or sum(delta_rows) > base_rows

    def _write(self, record: Recorded, copy: Copy, chain: tuple[FileEntry, ...]) -> Manifest:
        manifest = self._described(record, copy)
        if self.manifest is None:
            # a folder that has files always has a manifest: one without has lost it
            nothing = dataclasses.replace(manifest, generation=0, position={"cursors": {}})
            write_manifest(self.path, nothing)
        kind = "delta" if chain else "base"
        files = [
            *chain,
            write_rows(self.path, kind, manifest.generation, sorted_groups(copy.rows), record.seed),
        ]
        if copy.pending is None:
            # a record that was opened without them does not lose another's predictions
            kept = self.manifest.pending if self.manifest else None
            files += [kept] if kept else []
        else:
            groups = sorted_groups(copy.pending)
            files.append(write_rows(self.path, "pending", manifest.generation, groups, record.seed))
        manifest = dataclasses.replace(manifest, files=tuple(files), created_s=time.time())
        write_manifest(self.path, manifest)
        return manifest

    def _described(self, record: Recorded, copy: Copy) -> Manifest:
        return Manifest(
            generation=self.manifest.generation + 1 if self.manifest else 1,
            layout=self.layout,
            rank=self.rank,
            world_size=self.world_size,
            created_s=time.time(),
            capacity=record.capacity,
            seed=record.seed,
            decay=record.decay,
            tick=copy.tick,
            position=copy.position,
            files=(),
        )
