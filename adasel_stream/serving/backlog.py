"""Segments that wait for a trainer: which comes next, and reading it whole."""

import errno
import logging
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from adasel_stream.serving.inbox import Inbox
from adasel_stream.serving.refusals import Refusals
from adasel_stream.serving.segment import (
    ROW,
    DamagedSegmentError,
    NewerSegmentError,
    Rows,
    read_segment,
)

__all__ = ["Backlog", "Loaded"]

# small segments must not turn one poll into many milliseconds of opening files
_MOST_READ: Final = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A segment in memory, every byte of it checked.

    Attributes:
        writer: who wrote it.
        sequence: its number.
        rows: shape (n,); none if it was damaged and set aside.
    """

    writer: str
    sequence: int
    rows: Rows


class Backlog:
    """Segments in the order in which they are to be applied: each writer's own, writers in turn.

    Args:
        folder: the serving folder.
        inbox: where damaged segments are set aside.
        refusals: where failures are noted.

    Attributes:
        loaded: segments in memory, next first; to be popped when they are done with.
        damaged: segments that were damaged.
        newer: segments that a newer release has to read, or that follow one of those.
    """

    def __init__(self, folder: Path, inbox: Inbox, refusals: Refusals) -> None:
        self.loaded: deque[Loaded] = deque()
        self.damaged = 0
        self.newer = 0
        self._folder = folder
        self._inbox = inbox
        self._refusals = refusals
        # the writer whose turn it is comes first
        self._waiting: dict[str, deque[int]] = {}
        # by writer that a newer release has to read, the last of its segments that was counted
        self._newer: dict[str, int] = {}

    def __len__(self) -> int:
        """Return the number of segments that are known and not done with."""
        return len(self.loaded) + sum(map(len, self._waiting.values()))

    def clear(self) -> None:
        """Forget all segments."""
        self.loaded.clear()
        self._waiting.clear()

    def replace(self, segments: Mapping[str, list[int]], due: Mapping[str, int]) -> None:
        """Take over a new listing; what is loaded stays.

        Args:
            segments: by writer, sequence numbers, ascending.
            due: by writer, the next number to apply; 0 for others.
        """
        next_due = dict(due) | {item.writer: item.sequence + 1 for item in self.loaded}
        for writer in segments.keys() & self._newer.keys():
            self._count_newer(writer, segments[writer])
        writers = sorted(segments.keys() - self._newer.keys())
        turn = bisect_left(writers, next(iter(self._waiting), ""))
        self._waiting = {}
        for writer in writers[turn:] + writers[:turn]:
            first = bisect_left(segments[writer], next_due.get(writer, 0))
            if waiting := deque(segments[writer][first:]):
                self._waiting[writer] = waiting

    def load(self, rows: int) -> None:
        """Read segments, one of each writer in turn, until so many rows are loaded or none is left.

        Few calls are needed, not one, when segments are very small.
        """
        missing = rows - sum(len(item.rows) for item in self.loaded)
        for _ in range(_MOST_READ):
            if missing <= 0 or not self._waiting:
                return
            writer = next(iter(self._waiting))
            waiting = self._waiting.pop(writer)
            sequence = waiting.popleft()
            try:
                loaded = self._read(writer, sequence)
            except NewerSegmentError as error:
                self._newer[writer] = sequence - 1
                self._count_newer(writer, [sequence, *waiting])
                _log.warning("%s; it is left as it is", error)
                continue
            except OSError as error:  # this writer has to wait until the next listing
                self._refusals.note("a segment cannot be read", error)
                continue
            if loaded is not None:
                self.loaded.append(loaded)
                missing -= len(loaded.rows)
            if waiting:
                self._waiting[writer] = waiting

    def _count_newer(self, writer: str, sequences: list[int]) -> None:
        """Count those of a writer's segments that were not yet; ascending, all it has."""
        self.newer += len(sequences) - bisect_right(sequences, self._newer[writer])
        self._newer[writer] = max(self._newer[writer], sequences[-1])

    def _read(self, writer: str, sequence: int) -> Loaded | None:
        """Read one segment; None if its writer removed it, which the next one shows as a gap."""
        try:
            return Loaded(writer, sequence, read_segment(self._folder, writer, sequence))
        except FileNotFoundError:
            return None
        except DamagedSegmentError as error:
            reason: Exception = error
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            reason = error
        self.damaged += 1
        _log.warning("%s; it is set aside", reason)
        self._inbox.set_aside(writer, sequence)
        return Loaded(writer, sequence, np.empty(0, ROW))
