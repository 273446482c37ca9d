"""Replace a file in one step: after a crash the old or the new one is there, never a mixture."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(
    path: str | os.PathLike[str], chunks: Iterable[bytes | memoryview], *, durable: bool = True
) -> None:
    """Write `chunks` to a temporary beside `path` and rename it over `path`.

    A failure before the rename leaves the old file as it was and removes the
    temporary. The temporary of a writer that was killed is removed by the next call
    for the same path; one that a living writer holds is left alone.

    Args:
        path: the file to replace or create, mode 0600; its folder must exist.
        chunks: the new content, asked for one by one, so that it need not fit in memory.
        durable: wait until the content, then the rename, has reached the disk. Without it a
            killed process still leaves the old or the new file, a power cut may leave neither.

    Raises:
        OSError: whatever the operating system refused. After a failed flush of the folder
            the new file is already in place.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     replace_file(f"{folder}/state", [b"old"])
    ...     replace_file(f"{folder}/state", [b"n", b"ew"])
    ...     print(Path(folder, "state").read_text(), os.listdir(folder))
    new ['state']
    """
    target = Path(os.path.abspath(path))
    _remove_stale(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # A file system without locks only loses the removal of stale temporaries. Whoever looks
        # for those just before this call makes the rename fail, and the old file stays.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        for chunk in chunks:
            _write_all(descriptor, chunk)
        if durable:
            _flush(descriptor)
        # Renamed before the close, which would give up the lock that says "still being written".
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(descriptor)
    if durable:
        _flush_folder(target.parent)


def _remove_stale(target: Path) -> None:
    of_target = re.compile(re.escape(f".{target.name}.") + r"[0-9a-f]{16}\.tmp")
    for name in filter(of_target.fullmatch, os.listdir(target.parent)):
        with contextlib.suppress(OSError):
            _remove_unlocked(target.with_name(name))


def _remove_unlocked(temporary: Path) -> None:
    # A killed process holds no lock any more, on whichever machine of a shared disk it ran;
    # its process number would say nothing there, and is given to others here.
    descriptor = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(temporary)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, chunk: bytes | memoryview) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _flush(descriptor: int) -> None:
    if sys.platform == "darwin":
        # fsync stops at the drive's cache there; what goes further not every file system can do.
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    os.fsync(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # what a file system says that cannot flush folders
            raise
    finally:
        os.close(descriptor)
