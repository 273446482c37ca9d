"""Errors that a run can raise.

Wrong arguments raise `ValueError` or `TypeError` at construction. Everything
that happens later derives from `AdaselError`::

    AdaselError
    ├── BatchError         a candidate batch that cannot be used: ragged leaves, no ids
    ├── ScoreError         the score did not give one loss per row
    ├── MethodError        a selection method did not give one preference per row
    ├── SourceError        the wrapped source raised or cannot be resumed
    │   └── ShardError     a damaged shard or sample, named by shard, offset and reason
    ├── DecodeError        chosen samples cannot be decoded, one after the other
    ├── RecordError        the loss record was given what it cannot hold, or has no place to be
    │   └── DamagedSnapshotError     a file of its snapshot does not hold what it should
    └── CheckpointError    a checkpoint that cannot be written, read or loaded
        ├── CorruptCheckpointError   its checksum or layout does not hold
        └── CheckpointVersionError   it was written by a newer format version
"""

__all__ = [
    "AdaselError",
    "BatchError",
    "CheckpointError",
    "CheckpointVersionError",
    "CorruptCheckpointError",
    "DamagedSnapshotError",
    "DecodeError",
    "MethodError",
    "RecordError",
    "ScoreError",
    "ShardError",
    "SourceError",
]


class AdaselError(Exception):
    """Root of every run-time failure of this package."""


class BatchError(AdaselError):
    """A candidate batch has leaves of different lengths, no rows or no ids."""


class ScoreError(AdaselError):
    """The score returned something other than one loss per candidate."""


class MethodError(AdaselError):
    """A selection method returned something other than one preference per candidate."""


class SourceError(AdaselError):
    """The wrapped source raised, or cannot continue where a snapshot left off."""


class ShardError(SourceError):
    """A shard or one of its samples is damaged or breaks a limit."""


class DecodeError(AdaselError):
    """Nothing that was chosen can be decoded: the decoder or the source must be at fault."""


class RecordError(AdaselError):
    """The loss record was given what it cannot hold, or its folder cannot be used."""


class DamagedSnapshotError(RecordError):
    """A file of a record's snapshot does not hold what it should."""


class CheckpointError(AdaselError):
    """A checkpoint cannot be written, read or loaded."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint's checksum, lengths or layout do not hold."""


class CheckpointVersionError(CheckpointError):
    """A checkpoint was written by a newer format version; the file is left untouched."""
