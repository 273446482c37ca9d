"""Keep a record in a folder: restored at the beginning, saved in the background."""

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Final

from adasel_stream.arguments import number
from adasel_stream.errors import DamagedSnapshotError, RecordError
from adasel_stream.record.snapshots.copying import Recorded
from adasel_stream.record.snapshots.counts import SnapshotCounts
from adasel_stream.record.snapshots.folder import SnapshotFolder
from adasel_stream.record.snapshots.layout import rank_folder
from adasel_stream.record.snapshots.manifest import Cursors
from adasel_stream.record.snapshots.restore import restore
from adasel_stream.record.snapshots.retire import retire_layouts

__all__ = ["SnapshotKeeper"]

_log: Final = logging.getLogger(__name__)


class SnapshotKeeper:
    """Owns the folder of one rank's record, for as long as it is not closed.

    Args:
        record: new; what the folder holds is put into it.
        path: the record's folder, created if it is not there.
        save_every_s: seconds from the end of one snapshot to the beginning of the next.
        rank: of this record, in [0, world_size).
        world_size: number of ranks, in [1, 1024].
        salvage: go on from a damaged base with what can be read of it.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of its range.
        RecordError: if the folder has another owner or cannot be restored from.
    """

    def __init__(
        self,
        record: Recorded,
        path: str | os.PathLike[str],
        *,
        save_every_s: float,
        rank: int = 0,
        world_size: int = 1,
        salvage: bool = False,
    ) -> None:
        if not 0 < number("save_every_s", save_every_s) <= threading.TIMEOUT_MAX:
            raise ValueError(f"save_every_s must be a positive number, got {save_every_s}")
        self._record, self._path = record, Path(path)
        with _advising(self._path):
            self._folder = SnapshotFolder(rank_folder(path, rank, world_size), rank, world_size)
            try:
                restored = restore(record, self._path, self._folder, salvage=salvage)
            except BaseException:
                self._folder.close()
                raise
        manifest = self._folder.manifest
        self._cursors: Cursors = manifest.cursors if manifest else {}
        self._counts = SnapshotCounts(
            damaged_files=restored.damaged_files,
            restored_rows=restored.rows,
            created_s=manifest.created_s if manifest and manifest.generation else 0.0,
            total_bytes=sum(file.bytes for file in manifest.files) if manifest else 0,
        )
        self._save_every_s = save_every_s
        self._saving, self._closing = threading.Lock(), threading.Event()
        self._thread = threading.Thread(
            target=self._save_for_ever, name="adasel-record-snapshots", daemon=True
        )
        _open_keepers.add(self)
        atexit.register(self.close)
        self._thread.start()

    @property
    def counts(self) -> SnapshotCounts:
        """What became of the snapshots so far."""
        return self._counts

    @property
    def cursors(self) -> Cursors:
        """How far the segments of each serving writer are in a durable snapshot."""
        return dict(self._cursors)

    def save(self, *, full: bool = False) -> None:
        """Write a snapshot now, after one that is under way.

        Args:
            full: write a new base and drop the deltas.

        Raises:
            RecordError: if it cannot be written, the one before is intact then; or if this
                process does not own the folder, being a forked child, or having closed it.
        """
        if not self._folder.lock.held:
            raise RecordError(
                f"record folder {str(self._folder.path)!r} is not held by this process: it was "
                "closed, or this is a forked child, which does not keep its parent's record"
            )
        with self._saving:
            began_s = time.monotonic()
            try:
                manifest = self._folder.save(self._record, full=full)
            # whatever it is, Arrow's own errors among them: training and later snapshots go on
            except Exception as error:
                self._counts = replace(self._counts, failed=self._counts.failed + 1)
                reason = getattr(error, "strerror", None) or type(error).__name__
                raise RecordError(
                    f"cannot write a snapshot to {str(self._folder.path)!r}: {reason}; the one "
                    "before is intact"
                ) from error
            new = [file for file in manifest.files if f"-{manifest.generation:012d}." in file.name]
            self._cursors = manifest.cursors
            self._counts = replace(
                self._counts,
                saved=self._counts.saved + 1,
                created_s=manifest.created_s,
                duration_s=time.monotonic() - began_s,
                written_bytes=sum(file.bytes for file in new),
                total_bytes=sum(file.bytes for file in manifest.files),
            )
            retire_layouts(self._path, self._folder)

    def close(self, *, save: bool = True) -> None:
        """Give the folder up; again, it does nothing.

        Args:
            save: write a last snapshot before.

        Raises:
            RecordError: if the last snapshot cannot be written; the folder is given up.
        """
        atexit.unregister(self.close)
        _open_keepers.discard(self)
        if self._closing.is_set() or not self._folder.lock.held:
            return
        self._closing.set()
        self._thread.join()
        try:
            if save:
                self.save()
        finally:
            self._folder.close()

    def before_fork(self) -> None:
        """Let no slice be half copied when a process forks."""
        self._record.lock.acquire()

    def after_fork(self, *, in_child: bool) -> None:
        """Go on; a child has a record that nobody keeps."""
        if in_child:
            self._record.copying = False
        self._record.lock.release()

    def _save_for_ever(self) -> None:
        while not self._closing.wait(self._save_every_s):
            try:
                self.save()
            except RecordError as error:
                _log.warning("%s; trying again in %g s", error, self._save_every_s)


@contextlib.contextmanager
def _advising(path: Path) -> Generator[None]:
    """Say what to do about a damaged manifest; of other files `restore` says it."""
    try:
        yield
    except DamagedSnapshotError as error:
        raise DamagedSnapshotError(
            f"{error}; restore {str(path)!r} from a copy, or move it away to begin anew"
        ) from error


class _Forking(threading.local):
    """The keepers that this thread holds while it forks: others may be about to fork as well."""

    def __init__(self) -> None:
        self.keepers: list[SnapshotKeeper] = []


_open_keepers: Final[set[SnapshotKeeper]] = set()
_forking: Final = _Forking()


def _before_fork() -> None:
    # in the same order in every thread, so that no two wait for each other
    _forking.keepers = sorted(_open_keepers, key=id)
    for keeper in _forking.keepers:
        keeper.before_fork()


def _after_fork(*, in_child: bool) -> None:
    for keeper in _forking.keepers:
        keeper.after_fork(in_child=in_child)
    _forking.keepers = []


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _after_fork(in_child=False),
    after_in_child=lambda: _after_fork(in_child=True),
)
