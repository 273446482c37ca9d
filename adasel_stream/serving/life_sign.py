"""A locked file says that its writer lives; a killed process holds no lock any more."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from adasel_stream.ownership import is_in_place, open_lock_file

__all__ = ["LifeSign", "remove_if_dead"]

# each try but the first means that a trainer took the new file for a dead writer's
_TRIES: Final = 100


class LifeSign:
    """A file that stays locked while this process holds it.

    Locked by flock and not by lockf: a trainer in the same process that looks at the file and
    closes it would give up a lock of the other kind. A forked child shares this kind until it
    calls `abandon`.

    Args:
        path: the file; its folder must exist when `show` is called.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def show(self) -> None:
        """Make sure that the file is there and locked.

        Raises:
            OSError: if it cannot be created.
        """
        for _ in range(_TRIES):
            if self._descriptor is not None and is_in_place(self._descriptor, self._path):
                return
            self.abandon()
            self._lock()
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(self._path))

    def hide(self) -> None:
        """Remove the file and give up the lock, if it was shown."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self.abandon()

    def abandon(self) -> None:
        """Close the file without a word, as the child does in which a parent's sign is left."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self) -> None:
        self._descriptor = open_lock_file(self._path)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a trainer is removing the file: the next try makes a new one
            self.abandon()
        except OSError:  # no locks here: no writer ever looks dead, and only tidying is lost
            pass


def remove_if_dead(path: Path) -> bool:
    """Remove the sign of a writer that is dead, and say whether it is.

    A writer without a file is dead, too. One whose file may not be opened counts as living.

    >>> remove_if_dead(Path("no such file"))
    True
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
