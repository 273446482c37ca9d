"""The trainer's side: rows of serving processes go into its loss record, each exactly once."""

import logging
import math
import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from adasel_stream.arguments import integer, number
from adasel_stream.errors import RecordError
from adasel_stream.ownership import FolderLock
from adasel_stream.serving.backlog import Backlog
from adasel_stream.serving.folder import make_folder
from adasel_stream.serving.handover import Handover
from adasel_stream.serving.inbox import Inbox
from adasel_stream.serving.listing import Listing, remove_remains
from adasel_stream.serving.refusals import Refusals
from adasel_stream.serving.served import Cursor, ServedRecord
from adasel_stream.serving.taking import Taken, take

__all__ = ["LossFeed"]

_COUNTS: Final = ("segments_applied", "segments_missing")
_MOST_REMOVED: Final = 16  # files in one poll
_TIDY_EVERY_S: Final = 30.0
# a folder of very many segments is listed less often
_LISTING_SHARE: Final = 0.05
# of writers of which nothing is left; far more than may ever vanish for a moment
_MOST_CURSORS: Final = 1024
_BEGIN: Final[Cursor] = (0, 0)
_log = logging.getLogger(__name__)


class LossFeed:
    """Drain the segments of serving processes into a loss record, a few rows a call.

    Each writer's rows are applied in order, once: how far they were applied stands in
    `record.cursors` and moves together with them. A killed trainer goes on from there:

    - Of a record that is kept on disk, no segment is removed before a snapshot covers it.
    - Of another, whose `state_dict` is kept with the loader's, none is removed before the last
      state but one covers it. So each state should be on disk when the next one is taken; after
      a return to an older one, what is missing is counted.
    - Of a record of which no state was taken or loaded, segments go at once: whoever starts
      again begins with nothing.

    Segments that wait for a snapshot or state that never comes are removed by their writers when
    they reach `max_bytes`, the oldest first.

    A damaged segment is never applied: it is set aside as `*.damaged`, of which 16 stay, and
    counted. A segment of a newer format version stays where it is, and so do all later ones of
    its writer. Files that are not ours are left alone.

    One feed a folder: a second one, in whichever process, is refused until this one is closed, no
    longer used, or dead. Not to be used by two threads at once.

    Args:
        folder: where `LossWriter` writes; created if it is missing.
        poll_every_s: seconds between two looks into the folder, not negative.
        clock: returns seconds and only goes forward.
        wall_clock: returns the unix time in seconds, from which ages of rows are counted; a row
            from the future has age 0.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if poll_every_s is out of its range.
        OSError: if the folder cannot be created; NotADirectoryError if it is a file.
        RecordError: if another feed has the folder.

    >>> import tempfile
    >>> import numpy as np
    >>> from adasel_stream import LossRecord
    >>> from adasel_stream.serving import LossWriter
    >>> record = LossRecord(capacity=100, engine="numpy")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with LossWriter(folder) as writer:
    ...         writer.write(np.array([7, 8]), np.array([0.5, 0.25]))
    ...     LossFeed(folder).poll(record)
    2
    >>> record.lookup(np.array([8])).losses.tolist()
    [0.25]
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        poll_every_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._poll_every_s = number("poll_every_s", poll_every_s)
        if not 0 <= self._poll_every_s < math.inf:
            raise ValueError(
                f"poll_every_s must be a number of seconds, not negative, got {poll_every_s}"
            )
        for name, given in (("clock", clock), ("wall_clock", wall_clock)):
            if not callable(given):
                kind = type(given).__name__
                raise TypeError(f"{name} must return seconds when called, got {kind}")
        self._folder = make_folder(folder)
        self._clock = clock
        self._owner = FolderLock(self._folder, what="serving")
        self._inbox = Inbox(self._folder)
        self._refusals = Refusals(_log, "it is tried again")
        self._backlog = Backlog(self._folder, self._inbox, self._refusals)
        self._finished: deque[tuple[str, int]] = deque()
        self._look: Iterator[Listing | None] | None = None
        self._looked_s = 0.0
        self._list_at_s = self._tidy_at_s = -math.inf
        self._seen: dict[str, Cursor] = {}
        self._handover = Handover(wall_clock)
        self._counts: dict[str, int] = dict.fromkeys(_COUNTS, 0)

    @property
    def counts(self) -> dict[str, int]:
        """What became of segments and rows since this feed was made.

        `segments_applied` to their end, `segments_damaged` and set aside, `segments_missing` in a
        writer's sequence: removed by their writer as too many, or lost. `segments_newer` wait for
        a newer release that can read them, or the one before. `rows_applied`; `rows_ignored` are
        predictions for a record without `pending`, and rows of unknown kinds. `failures` are
        refusals of the operating system; what they concerned is tried again.
        """
        return self._counts | {
            "segments_damaged": self._backlog.damaged,
            "segments_newer": self._backlog.newer,
            "rows_applied": self._handover.rows_applied,
            "rows_ignored": self._handover.rows_ignored,
            "failures": self._refusals.count,
        }

    @property
    def backlog_segments(self) -> int:
        """Segments that are known and not yet applied to their end."""
        return len(self._backlog)

    @property
    def newest_age_s(self) -> float:
        """Age in seconds of the newest row that was applied, infinite before the first."""
        return self._handover.newest_age_s

    def close(self) -> None:
        """Give the folder up, so that another feed may drain it; again, it does nothing."""
        self._owner.release()

    def poll(self, record: ServedRecord, max_rows: int = 16_384) -> int:
        """Apply rows that have come to `record`.

        Nothing to do costs one look at the clock. While a snapshot of the record is being
        copied, nothing is applied.

        Args:
            record: the record; the same in every call.
            max_rows: most rows to take, positive.

        Returns:
            Rows taken, ignored ones included; 0 does not mean that nothing is left.

        Raises:
            TypeError: if max_rows is no integer.
            ValueError: if max_rows is not positive.
            RecordError: if the feed is closed.
        """
        if not self._owner.held:
            raise RecordError(
                f"this feed of {str(self._folder)!r} is closed: make another; a forked child has "
                "none, the folder belongs to its parent"
            )
        busy = len(self._backlog) or self._finished
        if not busy and self._clock() < self._list_at_s:
            return 0
        if integer("max_rows", max_rows) < 1:
            raise ValueError(f"max_rows must be positive, got {max_rows}")
        if record.copying:
            return 0
        if self._clock() >= self._list_at_s:
            self._look_on(record)
        self._remove_finished(record)
        self._backlog.load(max_rows)
        return self._apply(record, max_rows)

    def _look_on(self, record: ServedRecord) -> None:
        """Take the next step of a look into the folder, and the last one's consequences."""
        begin_s = self._clock()
        if self._look is None:
            self._look, self._looked_s = self._inbox.look(lambda: _due(record.cursors)), 0.0
        try:
            listing = next(self._look)
            done = listing is not None
        except OSError as error:
            self._refusals.note("the serving folder cannot be listed", error)
            listing, done = None, True
        if listing is not None:
            self._sort(listing, record)
        end_s = self._clock()
        self._looked_s += end_s - begin_s
        if done:
            self._look = None
            self._list_at_s = end_s + max(self._poll_every_s, self._looked_s / _LISTING_SHARE)

    def _sort(self, listing: Listing, record: ServedRecord) -> None:
        """Tell what waits from what is done with."""
        with record.lock:
            if self._is_disturbed(record):
                self._backlog.clear()
            due, saved = dict(record.cursors), record.saved_cursors
        self._seen = due
        self._backlog.replace(listing.segments, _due(due))
        self._finished = deque(
            (writer, sequence)
            for writer, sequences in listing.segments.items()
            for sequence in sequences[: bisect_left(sequences, _needed_from(writer, due, saved))]
        )
        self._forget_writers(listing, record)
        if self._clock() >= self._tidy_at_s:
            self._tidy_at_s = self._clock() + _TIDY_EVERY_S
            remove_remains(self._folder, listing)

    def _remove_finished(self, record: ServedRecord) -> None:
        """Remove some segments that are done with; one that is needed again by now stays."""
        if not self._finished:
            return
        with record.lock:
            due, saved = record.cursors, record.saved_cursors
        for _ in range(min(len(self._finished), _MOST_REMOVED)):
            writer, sequence = self._finished.popleft()
            if sequence < _needed_from(writer, due, saved):
                self._inbox.remove(writer, sequence)

    def _forget_writers(self, listing: Listing, record: ServedRecord) -> None:
        """Drop the oldest cursors of writers of which nothing is left, if they pile up.

        Not at once: a folder that is not there for a while, as its disk is not, may come back
        with segments that were applied.
        """
        surplus = len(self._seen) - _MOST_CURSORS
        if surplus > 0:
            needed = listing.segments.keys() | listing.locks
            needed |= {item.writer for item in self._backlog.loaded}
            gone = [writer for writer in self._seen if writer not in needed]
            with record.lock:
                for writer in gone[:surplus]:
                    del record.cursors[writer], self._seen[writer]

    def _apply(self, record: ServedRecord, max_rows: int) -> int:
        """Apply loaded rows and move the cursors, both or neither."""
        with record.lock:
            if record.copying:
                return 0
            if self._is_disturbed(record):
                self._start_over()
                return 0
            try:
                taken = take(self._backlog.loaded, record.cursors, max_rows)
                if len(taken.rows):
                    self._handover.give(taken.rows, record)
                record.cursors.update(taken.moves)
                self._seen.update(taken.moves)
                self._finish(taken, record)
            except BaseException:
                self._start_over()  # the next poll reads again what the cursors ask for
                raise
        return len(taken.rows)

    def _is_disturbed(self, record: ServedRecord) -> bool:
        """Say whether the record was given another state since segments were loaded."""
        cursors, seen = record.cursors, self._seen
        writers = (item.writer for item in self._backlog.loaded)
        return any(cursors.get(writer) != seen.get(writer) for writer in writers)

    def _finish(self, taken: Taken, record: ServedRecord) -> None:
        """Count what was applied, and let go of segments of which nothing is left."""
        self._counts["segments_missing"] += taken.missing
        at_once = record.saved_cursors is None
        for _ in range(taken.ended):
            item = self._backlog.loaded.popleft()
            if len(item.rows):
                self._counts["segments_applied"] += 1
                if at_once:
                    self._finished.append((item.writer, item.sequence))

    def _start_over(self) -> None:
        """Forget what was read and look into the folder again at the next poll."""
        self._backlog.clear()
        self._look = None
        self._list_at_s = -math.inf


def _due(cursors: Mapping[str, Cursor]) -> dict[str, int]:
    return {writer: sequence for writer, (sequence, _) in cursors.items()}


def _needed_from(writer: str, due: Mapping[str, Cursor], saved: Mapping[str, Cursor] | None) -> int:
    """Return the first of a writer's segments that has to be applied, or may have to be again."""
    applied = due.get(writer, _BEGIN)
    return (applied if saved is None else min(applied, saved.get(writer, _BEGIN)))[0]
