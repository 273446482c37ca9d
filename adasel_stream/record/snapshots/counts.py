"""What became of a record's snapshots, in numbers."""

from dataclasses import dataclass

__all__ = ["SnapshotCounts"]


@dataclass(frozen=True, slots=True)
class SnapshotCounts:
    """What became of a record's snapshots.

    Attributes:
        saved: snapshots written since the record was opened.
        failed: snapshots that could not be written.
        damaged_files: files that could not be used when the record was opened.
        restored_rows: rows read when the record was opened.
        created_s: seconds since 1970 at which the current snapshot was complete, 0 before the
            first; it may be of an earlier run.
        duration_s: seconds that the last one took to copy and write.
        written_bytes: size of the files that the last one wrote.
        total_bytes: size of all files of the current snapshot.
    """

    saved: int = 0
    failed: int = 0
    damaged_files: int = 0
    restored_rows: int = 0
    created_s: float = 0.0
    duration_s: float = 0.0
    written_bytes: int = 0
    total_bytes: int = 0
