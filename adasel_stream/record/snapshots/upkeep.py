"""Work on a record's folder while no trainer uses it: check every byte, or fold deltas in."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from adasel_stream.errors import DamagedSnapshotError, RecordError
from adasel_stream.ownership import FolderLock
from adasel_stream.record.entries import Entries
from adasel_stream.record.snapshots.files import (
    read_manifest,
    remove_unnamed,
    write_manifest,
    write_rows,
)
from adasel_stream.record.snapshots.layout import MANIFEST_NAME, find_folders
from adasel_stream.record.snapshots.manifest import Manifest
from adasel_stream.record.snapshots.reading import Snapshot, merged

__all__ = ["Compacted", "Finding", "Progress", "compact", "folders_of", "unheard", "verify"]

Progress: TypeAlias = Callable[[int, int], object]
"""Called now and then with the rows done and the rows to do."""


class Finding(NamedTuple):
    """A file that cannot be used, and why."""

    path: Path
    reason: str


class Compacted(NamedTuple):
    """Rows and bytes of the files of all ranks, before and after."""

    rows_before: int
    rows_after: int
    bytes_before: int
    bytes_after: int


def unheard(done: int, total: int) -> None:
    """Take progress and do nothing."""


def folders_of(path: str | os.PathLike[str]) -> list[Path]:
    """Return the folders of a record's ranks.

    Raises:
        RecordError: if there are none, or snapshots of several numbers of ranks, of which none
            is the whole record.
    """
    folders = _found(path)
    sizes = sorted({read_manifest(folder).world_size for folder in folders})
    if len(sizes) > 1:
        raise RecordError(
            f"{os.fspath(path)!r} is being split anew, it has snapshots of {sizes} ranks: train "
            "on until each rank has saved one"
        )
    return folders


def verify(path: str | os.PathLike[str], progress: Progress = unheard) -> list[Finding]:
    """Check every byte of all snapshots of a record; it may be in use.

    Returns:
        A finding for each file that cannot be used, none if all is sound.

    Raises:
        RecordError: if there is no record, or a newer release wrote it.

    >>> import tempfile
    >>> from adasel_stream.record import LossRecord
    >>> with tempfile.TemporaryDirectory() as path:
    ...     LossRecord.open(path, capacity=100).close()
    ...     verify(path)
    []
    """
    folders = _found(path)
    findings: list[Finding] = []
    with contextlib.ExitStack() as stack:
        snapshots: list[Snapshot] = []
        for folder in folders:
            try:
                snapshots.append(stack.enter_context(Snapshot(folder)))
            except DamagedSnapshotError as error:
                findings.append(Finding(folder / MANIFEST_NAME, str(error)))
        files = [(snapshot, file) for snapshot in snapshots for file in snapshot.manifest.files]
        done, total = 0, sum(file.rows for _, file in files)
        for snapshot, file in files:
            try:
                for group in snapshot.rows_of(file).groups():
                    progress(done + len(group.keys), total)
            except DamagedSnapshotError as error:
                findings.append(Finding(snapshot.folder / file.name, str(error)))
            done += file.rows
            progress(done, total)
    return findings


def compact(path: str | os.PathLike[str], progress: Progress = unheard) -> Compacted:
    """Fold all deltas of a record into new bases, in bounded memory.

    Raises:
        RecordError: if there is no record, it is in use, or a file of it is damaged.
        OSError: if a base cannot be written; what was there before is intact.

    >>> import tempfile
    >>> from adasel_stream.record import LossRecord
    >>> with tempfile.TemporaryDirectory() as path:
    ...     LossRecord.open(path, capacity=100).close()
    ...     compact(path).rows_after
    0
    """
    folders = folders_of(path)
    before = [_sizes(read_manifest(folder)) for folder in folders]
    total = sum(rows for rows, _ in before)
    done = 0
    for folder, (rows, _) in zip(folders, before, strict=True):
        _compact_folder(folder, progress, done, total)
        done += rows
        progress(done, total)
    after = [_sizes(read_manifest(folder)) for folder in folders]
    return Compacted(
        rows_before=total,
        rows_after=sum(rows for rows, _ in after),
        bytes_before=sum(size for _, size in before),
        bytes_after=sum(size for _, size in after),
    )


def _found(path: str | os.PathLike[str]) -> list[Path]:
    folders = find_folders(path)
    if not folders:
        raise RecordError(
            f"{os.fspath(path)!r} is no record: it has no rank-...-of-... with a {MANIFEST_NAME}"
        )
    return folders


def _compact_folder(folder: Path, progress: Progress, done: int, total: int) -> None:
    lock = FolderLock(folder)
    try:
        with Snapshot(folder) as snapshot:
            manifest = snapshot.manifest
            if len(manifest.rows) < 2:
                return
            groups = _counted(merged(snapshot), progress, done, total)
            base = write_rows(folder, "base", manifest.generation + 1, groups, manifest.seed)
            kept = [] if manifest.pending is None else [manifest.pending]
        manifest = dataclasses.replace(
            manifest, generation=manifest.generation + 1, files=(base, *kept)
        )
        write_manifest(folder, manifest)
        remove_unnamed(folder, manifest)
    finally:
        lock.release()


def _counted(
    groups: Iterator[Entries], progress: Progress, done: int, total: int
) -> Iterator[Entries]:
    for group in groups:
        yield group
        done += len(group.keys)
        progress(done, total)


def _sizes(manifest: Manifest) -> tuple[int, int]:
    """Return rows and bytes of a snapshot, predictions that wait for labels left out."""
    return sum(file.rows for file in manifest.rows), sum(file.bytes for file in manifest.rows)
