"""A writer's files in the serving folder, never more of them than it was allowed."""

import contextlib
import os
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple

from adasel_stream.serving.life_sign import LifeSign
from adasel_stream.serving.listing import list_folder, remove_remains
from adasel_stream.serving.names import lock_name, segment_name
from adasel_stream.serving.segment import ROW, rows_in, segment_bytes, write_segment

__all__ = ["Outbox", "disk_bytes"]

# a file of a few rows costs a block and its share of the folder; this bounds their number, too
_LEAST_BYTES: Final = 16 * 1024


class _Published(NamedTuple):
    name: str
    rows: int


def disk_bytes(rows: int) -> int:
    """Return what a segment of so many rows is taken to need on disk, in bytes.

    >>> disk_bytes(1)
    16384
    """
    return max(_LEAST_BYTES, segment_bytes(rows))


class Outbox:
    """Publishes the segments of one writer and removes the oldest when they are too many.

    What dead writers left counts as this one's own, oldest of all: else a server that is started
    again and again while no trainer drains would fill the disk.

    Not to be used by two threads at once.

    Args:
        folder: the serving folder.
        writer: 16 hexadecimal digits that no other writer has.
        max_bytes: most that these segments take on disk, in bytes.

    Attributes:
        segments_published: segments that got their name.
        rows_removed: rows in segments that were removed before a trainer did.
    """

    def __init__(self, folder: Path, writer: str, max_bytes: int) -> None:
        self._folder = folder
        self._writer = writer
        self._max_bytes = max_bytes
        self._sign = LifeSign(folder / lock_name(writer))
        self._published: deque[_Published] = deque()
        self._bytes = 0
        self.segments_published = 0
        self.rows_removed = 0

    def publish(self, sequence: int, content: memoryview) -> None:
        """Publish one segment, after making room for it.

        Raises:
            OSError: if it could not be published; the same sequence number may be tried again.
        """
        rows = len(content) // ROW.itemsize
        self._sign.show()
        if not self.segments_published:
            self._inherit()
        while self._published and self._bytes + disk_bytes(rows) > self._max_bytes:
            self._remove_oldest()
        write_segment(self._folder, self._writer, sequence, content)
        self._note(segment_name(self._writer, sequence), rows)
        self.segments_published += 1

    def close(self) -> None:
        """Say that nothing more will come; what was published stays."""
        self._sign.hide()

    def abandon(self) -> None:
        """Leave all files to the process that this one was forked from."""
        self._sign.abandon()

    def _inherit(self) -> None:
        """Take over what dead writers published."""
        listing = list_folder(self._folder)
        living = remove_remains(self._folder, listing)
        found: list[tuple[float, str, int]] = []
        for writer in listing.segments.keys() - living:
            for sequence in listing.segments[writer]:
                name = segment_name(writer, sequence)
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(self._folder / name)
                    found.append((status.st_mtime, name, rows_in(status.st_size)))
        self._published.clear()
        self._bytes = 0
        for _, name, rows in sorted(found):
            self._note(name, rows)

    def _note(self, name: str, rows: int) -> None:
        self._published.append(_Published(name, rows))
        self._bytes += disk_bytes(rows)

    def _remove_oldest(self) -> None:
        """Forget the oldest segment; a trainer goes in order, so it has drained that one first."""
        oldest = self._published[0]
        try:
            os.unlink(self._folder / oldest.name)
            self.rows_removed += oldest.rows
        except FileNotFoundError:
            pass
        self._published.popleft()
        self._bytes -= disk_bytes(oldest.rows)
