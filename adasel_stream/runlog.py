"""The run log: one JSON object a line, readable after any end."""

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["RunLog", "RunRecords", "effective_records", "read_run_log"]


class RunRecords(NamedTuple):
    """What a run log holds.

    Attributes:
        records: one dict a line, in the order written.
        damaged: lines that are no JSON object, such as one cut short by kill -9.
    """

    records: list[dict[str, Any]]
    damaged: int


class RunLog:
    """Append records to a file, each as a line of its own, no more often than wanted.

    A line is handed to the system in one write, so that a process that is killed leaves at
    most its last line cut; the next writer ends that line before it adds its own. After a
    crash of the whole machine the last seconds may be missing, because no line is forced to
    the disk. A write that fails (disk full) warns once, is counted in `failed` and stops
    nothing.

    Args:
        path: file to append to; made if it does not exist.
        every_s: least time between two records that are not forced, at least 0.
        clock: monotonic time in seconds.

    Raises:
        ValueError: if `every_s` is negative or not finite.
        OSError: if the file cannot be opened.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
    >>> with RunLog(path) as log:
    ...     log.write({"steps_total": 1, "loss": float("nan")})
    ...     log.write({"steps_total": 2})  # not due yet
    ...     log.write({"steps_total": 3}, force=True)
    >>> read_run_log(path).records
    [{'steps_total': 1, 'loss': None}, {'steps_total': 3}]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the file for appending."""
        if not 0 <= every_s < math.inf:
            raise ValueError(f"every_s must be at least 0 and finite, got {every_s}")
        self.path = Path(path)
        self.failed = 0
        self._every_s = every_s
        self._clock = clock
        self._due = -math.inf
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._torn = _is_torn(self._file)

    def is_due(self) -> bool:
        """Return whether `write` would write now, so that a caller can skip the snapshot."""
        return self._clock() >= self._due

    def write(self, record: Mapping[str, Any], *, force: bool = False) -> None:
        """Append `record` if one is due, or in any case if `force` is set.

        Args:
            record: values that JSON can hold, and numpy numbers and arrays. Numbers that
                are not finite are written as null.
            force: write whatever the time; for the first, the last and the rare record.

        Raises:
            TypeError: if a value cannot be written as JSON.
            ValueError: if the log is closed.
        """
        if self._file < 0:
            raise ValueError("the run log is closed")
        now = self._clock()
        if not force and now < self._due:
            return
        self._due = now + self._every_s
        line = json.dumps(_plain(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            self._append(line)
        except OSError as error:
            self._count_failure(error)

    def _append(self, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line
        written = os.write(self._file, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError(None, f"{written} of {len(line)} bytes were written")

    def _count_failure(self, error: OSError) -> None:
        self.failed += 1
        if self.failed == 1:
            warnings.warn(
                f"the run log could not be written ({error.strerror}); training goes on",
                RuntimeWarning,
                stacklevel=3,
            )

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "RunLog":
        """Return the log itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()


def _is_torn(file: int) -> bool:
    """Return whether the last line has no end."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_run_log(path: str | os.PathLike[str]) -> RunRecords:
    r"""Read every whole record of a run log, and count the lines that are none.

    Raises:
        OSError: if the file cannot be read.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "run.jsonl"
    >>> _ = path.write_text('{"steps_total": 1}\n{"steps_to')
    >>> read_run_log(path)
    RunRecords(records=[{'steps_total': 1}], damaged=1)
    """
    records: list[dict[str, Any]] = []
    damaged = 0
    with open(path, "rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            record = _parsed(line)
            if record is None:
                damaged += 1
            else:
                records.append(record)
    return RunRecords(records, damaged)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def effective_records(
    records: Sequence[Mapping[str, Any]], *, step: str = "steps_total"
) -> list[Mapping[str, Any]]:
    """Leave out what a resume rolled back, so that steps only rise.

    A run that is killed and resumed from its last checkpoint repeats some steps. What was
    logged of them before the kill is no part of the model's history.

    Args:
        records: in the order written.
        step: key of the step count; records without a number there are left out.

    >>> log = [{"steps_total": 1}, {"steps_total": 5}, {"steps_total": 3}, {"steps_total": 7}]
    >>> [record["steps_total"] for record in effective_records(log)]
    [1, 3, 7]
    """
    kept: list[Mapping[str, Any]] = []
    for record in records:
        here = record.get(step)
        if not isinstance(here, int | float):
            continue
        while kept and kept[-1][step] >= here:
            kept.pop()
        kept.append(record)
    return kept
