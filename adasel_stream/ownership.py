"""Ownership of a folder: one process at a time, and free at once when that is killed.

flock, not POSIX record locks. Those are a process's: a second open of the record in the same
process would be let in, and closing any other descriptor of the lock file would give up the
lock in silence. A flock belongs to the open file: both are refused and held. But a forked child
shares the open file and would hold the lock when its parent is dead, so a child closes it at
its first moment; a program that is executed never has it.
"""

import contextlib
import fcntl
import os
import socket
import weakref
from pathlib import Path
from typing import Final
from weakref import WeakSet

from adasel_stream.errors import RecordError

__all__ = ["LOCK_NAME", "FolderLock", "is_in_place", "open_lock_file"]

LOCK_NAME: Final = "owner.lock"
_HOLDER_BYTES: Final = 200


class FolderLock:
    """Hold a folder until `release` or the end of the process.

    Args:
        folder: it must exist.
        what: lies in it, for messages.
        shared: hold it together with others that only read.

    Raises:
        RecordError: if another owner holds it, or the file system cannot lock.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = FolderLock(Path(folder))
    ...     lock.held, lock.release(), lock.held
    (True, None, False)
    """

    def __init__(self, folder: Path, *, what: str = "record", shared: bool = False) -> None:
        descriptor = _locked(folder, what, shared=shared)
        if not shared:
            _name_holder(descriptor)
        self._descriptor = descriptor
        self._closing = weakref.finalize(self, os.close, descriptor)
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds the folder; a forked child does not."""
        return self._closing.alive

    def is_of(self, descriptor: int) -> bool:
        """Say whether this process holds the folder whose lock file is open there."""
        return self.held and os.path.sameopenfile(self._descriptor, descriptor)

    def release(self) -> None:
        """Give the folder up; again, it does nothing."""
        self._closing()


_held: Final[WeakSet[FolderLock]] = WeakSet()


def _release_all() -> None:
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_all)


def open_lock_file(path: Path) -> int:
    """Open a lock file, or create it with mode 0600, and return its descriptor.

    Raises:
        OSError: if that is refused; a link is no lock file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def is_in_place(descriptor: int, path: Path) -> bool:
    """Say whether `path` still leads to an open file, which is locked in vain if it does not."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    return False


def _locked(folder: Path, what: str, *, shared: bool) -> int:
    path = folder / LOCK_NAME
    while True:
        try:
            descriptor = open_lock_file(path)
        except OSError as error:
            raise RecordError(f"cannot open {str(path)!r}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # whoever removed the folder held the lock of a file that is not there any more
            if is_in_place(descriptor, path):
                return descriptor
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise RecordError(
                f"{what} folder {str(folder)!r} has an owner already, {holder}, or use another "
                "folder; ranks of one job have one each"
            ) from error
        except OSError as error:
            os.close(descriptor)
            raise RecordError(
                f"cannot lock {str(path)!r}: {error.strerror}; a {what} folder needs a file system "
                "with locks"
            ) from error
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    """Say who holds a lock file, and what to do."""
    # not by its number, which another container may have, too
    if any(lock.is_of(descriptor) for lock in list(_held)):
        return "this process: close the other one first"
    name = os.pread(descriptor, _HOLDER_BYTES, 0).decode("ascii", "replace")
    return f"{name or 'which has not named itself yet'}: stop that process"


def _name_holder(descriptor: int) -> None:
    # only for the message that another would get; a full disk must not keep the owner out
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        name = f"process {os.getpid()} on {socket.gethostname()}"
        os.pwrite(descriptor, name.encode("ascii", "replace")[:_HOLDER_BYTES], 0)
