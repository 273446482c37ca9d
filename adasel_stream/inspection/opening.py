"""Open the snapshots of a record that somebody named, and say plainly why that cannot be."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from adasel_stream.errors import RecordError
from adasel_stream.record.snapshots.columns import DamagedSnapshotError
from adasel_stream.record.snapshots.manifest import Manifest
from adasel_stream.record.snapshots.reading import Snapshot
from adasel_stream.record.snapshots.upkeep import folders_of
from adasel_stream.record.ticks import Ticks

__all__ = ["check_folder", "last_tick", "opened", "rows_of", "telling"]


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


@contextlib.contextmanager
def telling(path: Path) -> Iterator[None]:
    """Add to what is said of damage how to learn more."""
    try:
        yield
    except DamagedSnapshotError as error:
        raise RecordError(
            f"{error}. To check every file: adasel-stream record verify {str(path)!r}"
        ) from error


@contextlib.contextmanager
def opened(path: Path) -> Iterator[list[Snapshot]]:
    """Hold the current snapshots of all ranks open; their owners may go on.

    Raises:
        RecordError: if there is no record, it is damaged, or a newer release wrote it.
    """
    check_folder(path)
    with telling(path), contextlib.ExitStack() as stack:
        yield [stack.enter_context(Snapshot(folder)) for folder in folders_of(path)]


def rows_of(snapshots: list[Snapshot]) -> int:
    """Return how many rows the files of snapshots have, a key counted once for each file."""
    return sum(file.rows for snapshot in snapshots for file in snapshot.manifest.rows)


def last_tick(manifest: Manifest) -> int:
    """Return the record's time when it was saved, the tick from which ages are counted.

    Raises:
        RecordError: if the manifest has no time.
    """
    if not manifest.generation:
        return 1  # nothing was saved yet
    ticks = Ticks(lambda: 0.0)
    ticks.load_state_dict(manifest.position.get("ticks", {}))
    return ticks.last
