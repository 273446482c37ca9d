"""Remove the snapshots of another number of ranks, once the new ranks have all of it."""

import contextlib
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Final

from adasel_stream.errors import RecordError
from adasel_stream.ownership import FolderLock
from adasel_stream.record.snapshots.files import read_manifest
from adasel_stream.record.snapshots.folder import SnapshotFolder
from adasel_stream.record.snapshots.layout import (
    all_rank_folders,
    rank_folder,
    world_size_of,
)

__all__ = ["retire_layouts"]

_RETIRED: Final = re.compile(r"\.retired-[0-9a-f]{16}")


def retire_layouts(path: Path, own: SnapshotFolder) -> None:
    """Remove folders of other numbers of ranks, if every rank has a snapshot of the new layout.

    Before its first snapshot of a layout a rank has restored its part of all older ones. Whatever
    cannot be removed stays, to be read and removed another time.

    Args:
        path: the record's folder.
        own: this rank's folder in it.
    """
    with contextlib.suppress(OSError, RecordError):
        found = all_rank_folders(path)
        old = [folder for folder in found if world_size_of(folder) != own.world_size]
        if old and _is_complete(path, own):
            for folder in old:
                _remove(folder)
        for name in filter(_RETIRED.fullmatch, os.listdir(path)):
            shutil.rmtree(path / name, ignore_errors=True)


def _is_complete(path: Path, own: SnapshotFolder) -> bool:
    folders = [rank_folder(path, rank, own.world_size) for rank in range(own.world_size)]
    manifests = [read_manifest(folder) for folder in folders]
    return all(each.generation > 0 and each.layout == own.layout for each in manifests)


def _remove(folder: Path) -> None:
    lock = FolderLock(folder)
    try:
        # in one step, so that nobody finds a folder with files missing
        os.rename(folder, folder.with_name(f".retired-{secrets.token_hex(8)}"))
    finally:
        lock.release()
