"""Rows on their way from the threads of a server to the one that publishes them."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from adasel_stream.serving.segment import ROW, Rows

__all__ = ["RowBuffers", "Sealed", "new_memory"]

# one is filled while others wait for a slow disk
_BUFFERS: Final = 4


@dataclass(frozen=True)
class Sealed:
    """Rows to which no more are added.

    Attributes:
        sequence: number of the segment that they make.
        content: their bytes, 24 a row.
        memory: the buffer in which they lie.
    """

    sequence: int
    content: memoryview
    memory: memoryview

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.content) // ROW.itemsize


def new_memory(segment_rows: int) -> list[memoryview]:
    """Take the memory of all buffers, written once so that no request waits for it."""
    return [memoryview(bytearray(segment_rows * ROW.itemsize)) for _ in range(_BUFFERS)]


class RowBuffers:
    """A few buffers that are filled, sealed, emptied and filled again; no memory is taken later.

    Any thread may call. The lock is held while rows are copied and no longer, so that none waits
    for a disk.

    Args:
        memory: the buffers, all of one size, as `new_memory` takes them.

    Attributes:
        changed: its lock guards everything here; notified when a buffer is sealed.
        memory: the buffers, whatever they hold.
        rows_put: rows that found room.
        rows_refused: rows that found none.

    >>> buffers = RowBuffers(new_memory(segment_rows=2))
    >>> buffers.put(np.zeros(9, ROW))
    >>> buffers.rows_put, buffers.rows_refused, buffers.oldest().sequence
    (8, 1, 0)
    """

    def __init__(self, memory: list[memoryview]) -> None:
        self.changed = threading.Condition(threading.Lock())
        self.memory = memory
        self.rows_put = 0
        self.rows_refused = 0
        self._free = deque(memory)
        self._sealed: deque[Sealed] = deque()
        self._current: memoryview | None = None
        self._filled_bytes = 0
        self._sequence = 0
        self._closed = False

    def put(self, rows: Rows) -> None:
        """Copy rows in as far as there is room, and count them.

        Args:
            rows: shape (b,), contiguous.
        """
        source = rows.view(np.uint8).data
        done = 0
        with self.changed:
            while done < len(source) and (buffer := self._open()) is not None:
                begin = self._filled_bytes
                end = min(begin + len(source) - done, len(buffer))
                # memoryview keeps other threads out while it copies; numpy lets one in that may
                # want the same lock
                buffer[begin:end] = source[done : done + end - begin]
                done += end - begin
                self._filled_bytes = end
                if end == len(buffer):
                    self._seal()
            self.rows_put += done // ROW.itemsize
            self.rows_refused += (len(source) - done) // ROW.itemsize

    def seal(self) -> None:
        """Let no more rows into the buffer that is being filled, if it holds any."""
        with self.changed:
            if self._filled_bytes:
                self._seal()

    def oldest(self) -> Sealed | None:
        """Return the sealed buffer that has waited for longest; it stays where it is."""
        with self.changed:
            return self._sealed[0] if self._sealed else None

    def release(self) -> None:
        """Free the sealed buffer that has waited for longest."""
        with self.changed:
            self._free.append(self._sealed.popleft().memory)

    def close(self) -> None:
        """Refuse whatever is put from now on."""
        with self.changed:
            self._closed = True

    @property
    def has_sealed(self) -> bool:
        """Whether a buffer is sealed and not released."""
        return bool(self._sealed)

    @property
    def exhausted(self) -> bool:
        """Whether the next row finds no room."""
        with self.changed:
            return self._current is None and not self._free

    @property
    def rows_waiting(self) -> int:
        """Rows that were put and not released."""
        with self.changed:
            sealed = sum(buffer.rows for buffer in self._sealed)
            return sealed + self._filled_bytes // ROW.itemsize

    def _open(self) -> memoryview | None:
        if self._closed:
            return None
        if self._current is None and self._free:
            self._current = self._free.popleft()
        return self._current

    def _seal(self) -> None:
        assert self._current is not None
        content = self._current[: self._filled_bytes]
        self._sealed.append(Sealed(self._sequence, content, self._current))
        self._sequence += 1
        self._current, self._filled_bytes = None, 0
        self.changed.notify_all()
