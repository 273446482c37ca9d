"""What a serving process needs: losses in, never waiting for a disk."""

import atexit
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.util import Finalize, register_after_fork
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from adasel_stream.arguments import floats_for_ids, int64_ids, integer, number, whole
from adasel_stream.serving.buffers import RowBuffers, new_memory
from adasel_stream.serving.folder import make_folder
from adasel_stream.serving.names import new_writer
from adasel_stream.serving.outbox import Outbox, disk_bytes
from adasel_stream.serving.publisher import Publisher
from adasel_stream.serving.segment import LOSS, MAX_ROWS, PREDICTION, ROW

__all__ = ["LossWriter"]

_VERSIONS: Final = 2**16
_LAST_SECOND: Final = 2**32 - 1


class LossWriter:
    """Hand losses, or predictions that wait for their label, from a server to the trainer.

    `write` copies rows into memory taken beforehand, and a thread publishes them as files in a
    folder that a trainer's `LossFeed` drains. A request never waits for the disk: while that is
    slow, full or gone, rows wait in memory, and when there is no more room, they are dropped and
    counted. What was published survives the end of this process, kill -9 included.

    Any number of threads may call. A forked child writes under a name of its own and begins
    with nothing: what its parent had written is published by the parent. The first `write` of a
    process also starts the thread.

    Args:
        folder: where to, on a disk that the trainer sees; created if it is missing. Files have
            mode 0600: run trainer and servers as one user.
        version: version of the model that gives the losses, see `version`.
        segment_rows: rows after which a segment is published at once, in [1, 2**20]. Four
            buffers of so many rows, 24 bytes each, are taken here.
        publish_every_s: seconds after which rows are published anyway, positive.
        max_bytes: most that published segments of this writer, and those that dead writers left,
            take on disk while no trainer removes them, see `LossFeed`; then the oldest are removed
            and their rows counted as dropped, applied or not. At least one segment; a small one
            counts as 16 KiB.
        clock: returns the unix time in seconds.

    Attributes:
        version: version of the model, kept modulo 65,536; set it when a new model is served.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of its range.
        OSError: if the folder cannot be created; NotADirectoryError if it is a file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, LossWriter(folder, version=3) as writer:
    ...     writer.write(np.array([7, 8]), np.array([0.5, np.nan]))
    ...     writer.publish(), writer.counts["rows_written"], writer.counts["rows_rejected"]
    (True, 1, 1)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        version: int = 0,
        segment_rows: int = 65_536,
        publish_every_s: float = 1.0,
        max_bytes: int = 2**30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        segment_rows = whole("segment_rows", segment_rows, 1, MAX_ROWS)
        self._publish_every_s = number("publish_every_s", publish_every_s)
        if not 0 < self._publish_every_s <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"publish_every_s must be a positive number of seconds, got {publish_every_s}"
            )
        self._max_bytes = integer("max_bytes", max_bytes)
        if self._max_bytes < (least := disk_bytes(segment_rows)):
            raise ValueError(
                f"max_bytes must be at least {least}, one segment of {segment_rows} rows, got "
                f"{max_bytes}"
            )
        if not callable(clock):
            raise TypeError(f"clock must return seconds when called, got {type(clock).__name__}")
        self.version = integer("version", version)
        self._clock = clock
        self._folder = make_folder(folder)
        self._begin(new_memory(segment_rows))
        _living.add(self)

    def write(
        self, ids: object, losses: npt.NDArray[np.floating[Any]], *, version: int | None = None
    ) -> None:
        """Write losses; rows whose loss is not finite are rejected and counted.

        Args:
            ids: int64, shape (b,), or b strings, each of which stands for its `instance_ids`.
            losses: floating point, shape (b,); beyond float32's range counts as infinite.
            version: version of the model that gave them, this writer's if None.

        Raises:
            TypeError: if ids or losses have a wrong type.
            ValueError: if their shapes do not match.
        """
        self._write("losses", ids, losses, LOSS, version)

    def write_predictions(
        self, ids: object, predictions: npt.NDArray[np.floating[Any]], *, version: int | None = None
    ) -> None:
        """Write scalar predictions whose labels the trainer will learn later.

        The same as `write`, but the trainer keeps them as pending until the label comes.
        """
        self._write("predictions", ids, predictions, PREDICTION, version)

    def publish(self, timeout_s: float = 10.0) -> bool:
        """Publish what was written so far, now, and say whether that succeeded in time.

        This waits for the disk; no request should.
        """
        return self._publisher.flush(timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Publish what was written so far, as far as that succeeds in time, and end.

        Rows that are written afterwards are dropped and counted. A process that ends in peace
        closes its writers by itself; until then each keeps its memory.
        """
        if self in _living:
            _living.discard(self)
            self._publisher.close(timeout_s)

    @property
    def counts(self) -> dict[str, int]:
        """What became of rows since this process began to write.

        `rows_written` found room in memory, `rows_rejected` were not finite. `rows_dropped`
        found no room, or were written and given up: because the disk took none for too long, or
        because `max_bytes` were published and still there. `segments_published`; `failures` are
        refusals of the operating system: to publish, or to start the thread that does.
        """
        publisher = self._publisher
        buffers, outbox = publisher.buffers, publisher.outbox
        return {
            "rows_written": buffers.rows_put,
            "rows_dropped": buffers.rows_refused + publisher.rows_discarded + outbox.rows_removed,
            "rows_rejected": self._rows_rejected,
            "segments_published": outbox.segments_published,
            "failures": publisher.refusals.count,
        }

    def __enter__(self) -> Self:
        """Return this writer."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _begin(self, memory: list[memoryview]) -> None:
        outbox = Outbox(self._folder, new_writer(), self._max_bytes)
        self._publisher = Publisher(RowBuffers(memory), outbox, self._publish_every_s)
        self._rows_rejected = 0

    def _begin_in_child(self) -> None:
        """Begin anew in a forked child; locks may be held by threads that it does not have."""
        self._publisher.outbox.abandon()
        self._begin(self._publisher.buffers.memory)

    def _write(
        self, name: str, ids: object, values: object, kind: int, version: int | None
    ) -> None:
        checked = int64_ids(ids)
        numbers = floats_for_ids(name, values, len(checked))
        of_model = integer("version", self.version if version is None else version)
        # np.zeros would let go of the interpreter for a moment, and a server that does so all the
        # time keeps the publishing thread out for seconds: it never gets to ask for its turn.
        rows = np.empty(len(checked), ROW)
        rows["id"] = checked
        rows["value"] = numbers
        rows["second"] = min(max(int(self._clock()), 0), _LAST_SECOND)
        rows["version"] = of_model % _VERSIONS
        rows["kind"], rows["zero"] = kind, 0
        keep = np.isfinite(numbers)
        if not keep.all():
            rows = rows[keep]
            with self._publisher.buffers.changed:
                self._rows_rejected += len(checked) - len(rows)
        self._publisher.buffers.put(rows)
        self._publisher.start()


# what was written must be published even if nothing else holds the writer any more
_living: set[LossWriter] = set()


def _close_all() -> None:
    for writer in list(_living):
        writer.close()


def _begin_in_child() -> None:
    for writer in list(_living):
        writer._begin_in_child()  # pyright: ignore[reportPrivateUsage] - of the class above


def _close_all_at_end() -> None:
    Finalize(None, _close_all, exitpriority=0)


atexit.register(_close_all)
# A child of multiprocessing ends without atexit, and forgets when it begins what its parent had
# registered. A child that another forked, as servers do, has atexit alone.
_close_all_at_end()
register_after_fork(_close_all, lambda _: _close_all_at_end())
os.register_at_fork(after_in_child=_begin_in_child)
