"""Bring a record back from its folder, whatever its capacity and number of ranks were.

A rank's own snapshot is read whole. Snapshots of another number of ranks are there only after
that number has changed: of those a rank reads its range of virtual shards. All rows go through
`place`, where the newest win, so it need not be known which folder is newer.
"""

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from adasel_stream.errors import DamagedSnapshotError, RecordError
from adasel_stream.ownership import FolderLock
from adasel_stream.record.entries import Entries
from adasel_stream.record.snapshots.columns import SHARDS
from adasel_stream.record.snapshots.copying import Recorded, Rows
from adasel_stream.record.snapshots.files import read_manifest
from adasel_stream.record.snapshots.folder import SnapshotFolder
from adasel_stream.record.snapshots.layout import (
    all_rank_folders,
    find_folders,
    shard_range,
    world_size_of,
)
from adasel_stream.record.snapshots.manifest import FileEntry, Manifest
from adasel_stream.record.snapshots.reading import Snapshot

__all__ = ["Restored", "restore"]

_log: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class Restored:
    """What a restore found.

    Attributes:
        rows: read from files; a key counts once for each file that has it.
        damaged_files: files that could not be used, or not all of them; what they held is
            unknown now.
        foreign: whether there were snapshots of another number of ranks.
    """

    rows: int = 0
    damaged_files: int = 0
    foreign: bool = False


def restore(
    record: Recorded, path: Path, own: SnapshotFolder, *, salvage: bool = False
) -> Restored:
    """Put into a new record what its folder holds, and decide the layout of later snapshots.

    A damaged delta ends what is read of its snapshot: the files before it are kept, and a
    warning is logged.

    Args:
        record: without rows, of any capacity.
        path: the record's folder.
        own: this rank's folder in it.
        salvage: go on from a damaged base with the row groups that can still be read, instead
            of raising; the base is kept as `*.damaged`.

    Raises:
        RecordError: if a base is damaged, a snapshot has another seed or was written by a newer
            release, or another owner holds a snapshot of another number of ranks.

    >>> import tempfile
    >>> from adasel_stream.record import LossRecord
    >>> from adasel_stream.record.snapshots.layout import rank_folder
    >>> with tempfile.TemporaryDirectory() as path:
    ...     record = LossRecord.open(path, capacity=100)
    ...     record.update(np.array([3]), np.array([0.5]))
    ...     record.close()
    ...     own = SnapshotFolder(rank_folder(path, 0, 1), rank=0, world_size=1)
    ...     restore(LossRecord(capacity=200), Path(path), own)
    ...     own.close()
    Restored(rows=1, damaged_files=0, foreign=False)
    """
    others = [path for path in all_rank_folders(path) if world_size_of(path) != own.world_size]
    with contextlib.ExitStack() as stack:
        for folder in others:
            stack.callback(FolderLock(folder, shared=True).release)
        folders = find_folders(path)
        foreign = [folder for folder in others if folder in folders]
        restored = Restored(foreign=bool(foreign))
        own.layout = _layout([read_manifest(folder) for folder in folders], own.world_size)
        # own last: of rows with equal ticks the later stays
        wanted = [folder for folder in (*foreign, own.path) if folder in folders]
        snapshots = [stack.enter_context(Snapshot(folder)) for folder in wanted]
        snapshots = [snapshot for snapshot in snapshots if snapshot.manifest.generation]
        if snapshots:
            _load_position(record, snapshots, own)
        for snapshot in snapshots:
            mine = snapshot.folder == own.path
            shards = range(SHARDS) if mine else shard_range(own.rank, own.world_size)
            # a tick counts from its own record's beginning
            shift = round(_began_s(snapshot) - min(map(_began_s, snapshots)))
            _Reader(record, snapshot, shards, shift, restored, salvage=salvage).read()
    record.take_late()  # what was read is in files already
    own.broken = restored.foreign or restored.damaged_files > 0
    return restored


def _layout(manifests: list[Manifest], world_size: int) -> int:
    """Number a layout so that every rank which finds these manifests gives the same number."""
    written = [manifest for manifest in manifests if manifest.generation]
    newest = max((manifest.layout for manifest in written), default=0)
    current = {manifest.world_size for manifest in written if manifest.layout == newest}
    return newest if world_size in current else newest + 1


def _load_position(record: Recorded, snapshots: list[Snapshot], own: SnapshotFolder) -> None:
    """Give a record the time of all snapshots, their cursors, and its own counts."""
    cursors: dict[str, tuple[int, int]] = {}
    position = record.position()
    for snapshot in snapshots:
        manifest = snapshot.manifest
        if manifest.seed != record.seed:
            raise RecordError(
                f"the snapshot in {str(snapshot.folder)!r} is of a record with seed "
                f"{manifest.seed}, this one has {record.seed}: open it with seed={manifest.seed}"
            )
        for writer, cursor in manifest.cursors.items():
            # segments that one rank has applied may be gone already
            cursors[writer] = max(cursor, cursors.get(writer, cursor))
        if snapshot.folder == own.path:
            position = manifest.position
    record.load_position(position | {"cursors": cursors, "ticks": _ticks(snapshots)})


def _ticks(snapshots: list[Snapshot]) -> dict[str, float]:
    """Return a clock that has run since the first of several began, and was read last."""
    clocks = [_clock(snapshot) for snapshot in snapshots]
    if len(clocks) == 1:
        return clocks[0]
    read_s = max(clock["read_s"] for clock in clocks)
    began_s = min(map(_began_s, snapshots))
    return {"read_s": read_s, "elapsed_s": read_s - began_s}


def _clock(snapshot: Snapshot) -> dict[str, float]:
    match snapshot.manifest.position.get("ticks"):
        case {"read_s": float(read_s), "elapsed_s": float(elapsed_s)}:
            return {"read_s": read_s, "elapsed_s": elapsed_s}
        case _:
            raise DamagedSnapshotError(
                f"the manifest in {str(snapshot.folder)!r} is damaged: it has no time"
            )


def _began_s(snapshot: Snapshot) -> float:
    """Return the reading of the clock at which a snapshot's ticks began."""
    clock = _clock(snapshot)
    return clock["read_s"] - clock["elapsed_s"]


def _set_aside(damaged: Path) -> Path:
    """Give a damaged file a second name, which no snapshot removes."""
    aside = damaged.with_name(f"{damaged.name}.damaged")
    with contextlib.suppress(OSError):  # a file system without links, or an earlier attempt
        os.link(damaged, aside)
    return aside if aside.exists() else damaged


class _Reader:
    """Reads one snapshot into a record.

    Args:
        record: its time is that of all snapshots.
        snapshot: to read.
        shards: that are wanted.
        shift: seconds from the beginning of the record's ticks to that of the snapshot's.
        restored: counts what is read.
        salvage: as in `restore`.
    """

    def __init__(
        self,
        record: Recorded,
        snapshot: Snapshot,
        shards: range,
        shift: int,
        restored: Restored,
        *,
        salvage: bool,
    ) -> None:
        self._record = record
        self._snapshot = snapshot
        self._shards = shards
        self._restored = restored
        self._salvage = salvage
        self._shift = shift
        self._last_tick = record.tick

    def read(self) -> None:
        """Read all files, or those before the first that is damaged."""
        manifest = self._snapshot.manifest
        for entry in manifest.rows:
            if not self._read_file(entry, self._record):
                break
        if manifest.pending is not None and self._record.pending is not None:
            self._read_file(manifest.pending, self._record.pending)

    def _read_file(self, entry: FileEntry, table: Rows) -> bool:
        try:
            for group in self._snapshot.rows_of(entry).groups(self._shards):
                self._place(table, group)
        except DamagedSnapshotError as error:
            self._restored.damaged_files += 1
            if entry.kind != "base":
                _log.warning("%s; what it holds is unknown again, files before it count", error)
                return False
            if not self._salvage:
                raise RecordError(
                    f"{error}; put it back from a copy, or pass salvage=True to go on with what "
                    "can still be read"
                ) from error
            before = self._restored.rows
            for group in self._snapshot.readable_groups(entry, self._shards):
                self._place(table, group)
            _log.warning(
                "%s; %d of its %d rows could be read, and it is kept as %r",
                error,
                self._restored.rows - before,
                entry.rows,
                str(_set_aside(self._snapshot.folder / entry.name)),
            )
        return True

    def _place(self, table: Rows, group: Entries) -> None:
        if self._shift:
            ticks = group.values["tick"].astype(np.int64) + self._shift
            group.values["tick"] = np.clip(ticks, 1, self._last_tick)
        table.place(group)
        self._restored.rows += len(group.keys)
