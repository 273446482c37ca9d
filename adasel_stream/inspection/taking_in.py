"""Put a file of losses into a record that no trainer has open."""

import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from adasel_stream.errors import DamagedSnapshotError, RecordError
from adasel_stream.inspection.opening import check_folder
from adasel_stream.record import LossRecord
from adasel_stream.record.pending import PendingLabels
from adasel_stream.record.snapshots.exchange import import_rows
from adasel_stream.record.snapshots.files import read_manifest
from adasel_stream.record.snapshots.layout import MANIFEST_NAME, find_folders
from adasel_stream.record.snapshots.manifest import Manifest
from adasel_stream.record.snapshots.upkeep import Progress, unheard
from adasel_stream.record.table import WAYS, buckets_for

__all__ = ["Taken", "take_in"]

# all of a file is saved, or nothing
_NEVER_S: Final = 1e9
_ROOM: Final = 8
_SAME_CLOCK_S: Final = 86_400


class Taken(NamedTuple):
    """What came of it.

    Attributes:
        rows: of the file, that the record held when they came.
        entries: ids that the record holds now.
        capacity: its slots.
        ranks: that shared the record before; it has one now.
    """

    rows: int
    entries: int
    capacity: int
    ranks: int


def take_in(
    path: Path, source: Path, capacity: int | None = None, progress: Progress = unheard
) -> Taken:
    """Open a record, put a file in, and save it; in each bucket the newest stay.

    Args:
        path: the record's folder, created if it is not there.
        source: a `.parquet` or `.csv` file, see `import_rows`.
        capacity: slots, not below those that the record has; None for as many as these.
        progress: told of rows read.

    Raises:
        ValueError: if a record is new and has no capacity, or more slots than `capacity`; or if
            the source has another ending.
        RecordError: if a trainer has the record open, or one of both is damaged; the record is
            as it was.
    """
    if os.path.lexists(path):
        check_folder(path)
    if (path / MANIFEST_NAME).exists():
        raise RecordError(
            f"{str(path)!r} is the folder of one rank: name the record's own, {str(path.parent)!r}"
        )
    manifests = [read_manifest(folder) for folder in find_folders(path)]
    record = LossRecord.open(
        path,
        _slots(path, capacity, manifests),
        save_every_s=_NEVER_S,
        engine="numpy",
        **_settings(manifests),
    )
    try:
        if record.snapshots.damaged_files:
            raise DamagedSnapshotError(f"a file of the record {str(path)!r} is damaged")
        rows = import_rows(record, source, progress)
        record.save()
    finally:
        record.close(save=False)
    return Taken(rows, len(record), record.capacity, len(manifests))


def _slots(path: Path, capacity: int | None, manifests: list[Manifest]) -> int:
    """Return how many slots to open a record with; never so few that it would forget."""
    before = sum(manifest.capacity for manifest in manifests)
    if not (capacity or before):
        raise ValueError(f"there is no record {str(path)!r} yet: a new one needs --capacity")
    if capacity and WAYS * buckets_for(capacity) < before:
        raise ValueError(
            f"--capacity must be at least the {before:,} slots of the record {str(path)!r}, got "
            f"{capacity:,}: leave it out to keep them; for a smaller record, export this one and "
            "import the file into a new folder"
        )
    return capacity or before


def _settings(manifests: list[Manifest]) -> dict[str, Any]:
    """Return how to open a record so that it stays as it is."""
    if not manifests:
        return {}
    settings: dict[str, Any] = {"seed": manifests[0].seed, "decay": manifests[0].decay}
    waiting = [manifest.pending.rows for manifest in manifests if manifest.pending is not None]
    if waiting:
        # so roomy that hardly a bucket overflows; no label comes while the file is taken in
        settings["pending"] = PendingLabels(
            max(1, _ROOM * sum(waiting)), lambda p, _: p, ttl_s=None
        )
    read_s, saved_s = max((_read_s(manifest), manifest.created_s) for manifest in manifests)
    if abs(saved_s - read_s) > _SAME_CLOCK_S:
        # the record's clock is not that of the day, but such as a count of steps
        settings["clock"] = lambda: read_s
    return settings


def _read_s(manifest: Manifest) -> float:
    """Return the last reading of a record's clock."""
    return float(manifest.position.get("ticks", {}).get("read_s", manifest.created_s))
