"""The thread of a writer that does everything which may wait for a disk."""

import logging
import threading
import time

from adasel_stream.serving.buffers import RowBuffers
from adasel_stream.serving.outbox import Outbox
from adasel_stream.serving.refusals import Refusals

__all__ = ["Publisher"]

_log = logging.getLogger(__name__)


class Publisher:
    """Publishes what lies in buffers, in the order in which it came.

    Args:
        buffers: where server threads put rows.
        outbox: where segments go; used by this thread alone.
        publish_every_s: longest that rows wait before their buffer is sealed, in seconds.

    Attributes:
        buffers, outbox: as given.
        rows_discarded: rows that made room for newer ones while the disk took none, or were left
            when the thread ended.
        refusals: what the operating system refused: to publish, or to start the thread.
    """

    def __init__(self, buffers: RowBuffers, outbox: Outbox, publish_every_s: float) -> None:
        self.buffers = buffers
        self.outbox = outbox
        self.rows_discarded = 0
        self.refusals = Refusals(_log, "rows wait in memory, and are dropped when it is full")
        self._publish_every_s = publish_every_s
        self._thread: threading.Thread | None = None
        self._asked = 0
        self._answered = 0
        self._refused = False
        self._closing = False

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread is not None:
            return
        with self.buffers.changed:
            if self._thread is not None or self._closing:
                return
            self._thread = thread = threading.Thread(target=self._run, name="publish", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread to be had: rows wait for the next try, then drop
            self._thread = None
            self.refusals.note("no thread can be started to publish losses", error)

    def flush(self, timeout_s: float) -> bool:
        """Publish all that was put so far, and say whether that succeeded in time."""
        changed = self.buffers.changed
        with changed:
            if self._thread is not None and not self._closing:
                self._asked += 1
                asked = self._asked
                changed.notify_all()
                return changed.wait_for(lambda: self._answered >= asked, timeout_s) and (
                    not self._refused
                )
        return self.buffers.rows_waiting == 0

    def close(self, timeout_s: float) -> None:
        """Publish all that was put, as far as that succeeds in time, and end the thread."""
        end_s = time.monotonic() + timeout_s
        self.buffers.close()
        self.flush(timeout_s)
        with self.buffers.changed:
            self._closing = True
            self.buffers.changed.notify_all()
        if self._thread is not None:
            self._thread.join(max(0.0, end_s - time.monotonic()))
        self.rows_discarded += self.buffers.rows_waiting

    def _run(self) -> None:
        due_s = time.monotonic() + self._publish_every_s
        while not self._closing:
            with self.buffers.changed:
                wait_s = max(0.0, due_s - time.monotonic())
                self.buffers.changed.wait_for(self._is_needed, wait_s)
                asked = self._asked
            everything = asked > self._answered or time.monotonic() >= due_s
            self._refused = not (self._publish_sealed() and (not everything or self._publish_all()))
            if everything:
                due_s = time.monotonic() + self._publish_every_s
            with self.buffers.changed:
                self._answered = asked
                self.buffers.changed.notify_all()
        self.outbox.close()

    def _is_needed(self) -> bool:
        # what the disk refused is tried again when the time is over, not at every new buffer
        waiting = self.buffers.has_sealed and not self._refused
        return waiting or self._closing or self._asked > self._answered

    def _publish_all(self) -> bool:
        self.buffers.seal()
        return self._publish_sealed()

    def _publish_sealed(self) -> bool:
        """Publish sealed buffers, oldest first; say whether none is left."""
        while (sealed := self.buffers.oldest()) is not None:
            try:
                self.outbox.publish(sealed.sequence, sealed.content)
            except OSError as error:
                self.refusals.note("losses cannot be published", error)
                if not self.buffers.exhausted:
                    return False
                # of what finds no room the oldest losses are worth least
                self.rows_discarded += sealed.rows
            self.buffers.release()
        return True
