"""Open the snapshots of a record that somebody named, and say plainly why that cannot be."""

import contextlib
import os
import shlex
from collections.abc import Generator
from pathlib import Path

from adasel_stream.errors import DamagedSnapshotError, RecordError
from adasel_stream.record.snapshots.layout import MANIFEST_NAME, world_size_of
from adasel_stream.record.snapshots.reading import Snapshot
from adasel_stream.record.snapshots.upkeep import folders_of

__all__ = [
    "check_folder",
    "check_record",
    "lost_manifests",
    "opened",
    "rows_of",
    "telling",
]


def check_folder(path: Path) -> None:
    """Refuse what cannot be a record's folder.

    Raises:
        RecordError: if there is nothing, something else than a folder, or no permission.
    """
    wanted = "expected the folder that LossRecord.open was given"
    try:
        os.listdir(path)
    except FileNotFoundError as error:
        raise RecordError(f"there is no folder {str(path)!r}: {wanted}") from error
    except NotADirectoryError as error:
        raise RecordError(f"{str(path)!r} is no folder: {wanted}") from error
    except OSError as error:
        raise RecordError(f"cannot look into {str(path)!r}: {error.strerror}") from error


def lost_manifests(path: Path) -> list[Path]:
    """Return where manifests should be: a rank writes its first before any other file."""
    folders = [path / name for name in os.listdir(path) if world_size_of(path / name)]
    manifests = [folder / MANIFEST_NAME for folder in folders if any(folder.glob("*.parquet"))]
    return [manifest for manifest in manifests if not manifest.exists()]


def check_record(path: Path) -> None:
    """Refuse a folder that `check_folder` refuses, or that has lost a manifest.

    Raises:
        RecordError: if it is no folder or damaged.
    """
    check_folder(path)
    for manifest in lost_manifests(path):
        raise DamagedSnapshotError(f"{str(manifest)!r} is damaged: it is missing")


@contextlib.contextmanager
def telling(path: Path) -> Generator[None, None, None]:
    """Add to what is said of damage how to learn more."""
    try:
        yield
    except DamagedSnapshotError as error:
        raise RecordError(
            f"{error}. To check every file: adasel-stream record verify {shlex.quote(str(path))}"
        ) from error


@contextlib.contextmanager
def opened(path: Path) -> Generator[list[Snapshot], None, None]:
    """Hold the current snapshots of all ranks open; their owners may go on.

    Raises:
        RecordError: if there is no record, it is damaged, or a newer release wrote it.
    """
    with telling(path), contextlib.ExitStack() as stack:
        check_record(path)
        yield [stack.enter_context(Snapshot(folder)) for folder in folders_of(path)]


def rows_of(snapshots: list[Snapshot]) -> int:
    """Return how many rows the files of snapshots have, a key counted once for each file."""
    return sum(file.rows for snapshot in snapshots for file in snapshot.manifest.rows)
