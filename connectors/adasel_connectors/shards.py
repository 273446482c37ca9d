"""Find shards, and give each a name and a number that do not depend on where it lies.

A shard's name is its path below the folder that was given, with forward slashes. Ids of
instances are made of it, so a data set that moves to another disk keeps its ids.
"""

import glob
import hashlib
import os
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TypeAlias
from weakref import finalize

from adasel_connectors.damage import DamageError

__all__ = [
    "Paths",
    "Shard",
    "ShardFile",
    "Stamp",
    "find_shards",
    "fingerprint",
    "is_below_folder",
    "mapped",
    "number_shards",
    "stamp_of",
]

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A folder, a file, a glob such as `data/2024-*.tar`, or a sequence of files."""

Stamp: TypeAlias = tuple[int, int, int, int]
"""Device, inode, size and time of the last change: differs when a file was replaced or written."""

_SAMPLED_BLOCKS = 16
_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a data set.

    Attributes:
        name: path below the data set's folder, '/' between parts; unique in the data set.
        path: where it lies on this machine.
        number: 31-bit digest of the name; the upper half of its instances' ids.
    """

    name: str
    path: str
    number: int


class ShardFile:
    """A file held open and mapped for reading, and what it was like when it was opened.

    It is closed by `close`, or when nothing refers to it any more.

    Attributes:
        view: its content.
        stamp: what it was like.
    """

    def __init__(self, path: str) -> None:
        """Open and map a file.

        Raises:
            DamageError: the file is missing, empty or cannot be read.
        """
        if os.path.exists(path) and not os.path.isfile(path):
            # a pipe would wait for ever
            raise DamageError("unreadable", "it is not a regular file")
        try:
            with open(path, "rb") as file:
                self.view = mmap(file.fileno(), 0, access=ACCESS_READ)
                self.stamp = _stamp(os.fstat(file.fileno()))
                self._descriptor = os.dup(file.fileno())
        except FileNotFoundError as error:
            raise DamageError("missing", "the file is missing") from error
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise DamageError("unreadable", "the file is empty or cannot be read") from error
        self._closing = finalize(self, os.close, self._descriptor)

    def close(self) -> None:
        """Let go of the file."""
        self.view.close()
        self._closing()

    def is_as_it_was(self) -> bool:
        """Tell whether nobody has written to the file since it was opened."""
        return _stamp(os.fstat(self._descriptor)) == self.stamp

    def read(self, start: int, size: int) -> bytes:
        """Copy bytes without the mapping: while others run, and short where the file was cut.

        Raises:
            DamageError: the disk does not give them.
        """
        try:
            return os.pread(self._descriptor, size, start)
        except OSError as error:
            raise DamageError("unreadable", "the file cannot be read") from error


def find_shards(paths: Paths, suffixes: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    """List shards: the folder they are named from, and their paths by name.

    A folder is searched with its subfolders for files with one of `suffixes`; names whose
    parts begin with '.' or '_' are left out. Folders and globs are sorted by name, a sequence
    keeps its order.

    Args:
        paths: see `Paths`.
        suffixes: lower-case endings of file names, such as `(".tar",)`.

    Raises:
        ValueError: there is no such file, or no shard in the folder.
        TypeError: `paths` is not a path or a sequence of paths.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("b.tar", "a.tar", "notes.txt"):
    ...         _ = Path(folder, name).write_bytes(b"")
    ...     list(find_shards(folder, (".tar",))[1])
    ['a.tar', 'b.tar']
    """
    if isinstance(paths, str | os.PathLike):
        return _find_in_one(os.fspath(paths), suffixes)
    files = [os.path.abspath(_local(os.fspath(path))) for path in paths]
    for file in files:
        if not os.path.isfile(file):
            raise ValueError(f"expected files, found none at {file!r}")
    if not files:
        raise ValueError("paths is empty, expected at least one shard")
    root = Path(os.path.commonpath([os.path.dirname(file) for file in files]))
    found = {Path(file).relative_to(root).as_posix(): file for file in files}
    if len(found) < len(files):
        raise ValueError("paths names the same shard twice")
    return root, found


def number_shards(paths_by_name: dict[str, str]) -> list[Shard]:
    """Number shards by a digest of their names; a later shard gives way when two agree.

    >>> [shard.number for shard in number_shards({"a.tar": "/d/a.tar"})]
    [153536195]
    """
    taken: set[int] = set()
    shards: list[Shard] = []
    for name, path in paths_by_name.items():
        number, salt = _digest31(name), 0
        while number in taken:
            salt += 1
            number = _digest31(f"{name}\0{salt}")
        taken.add(number)
        shards.append(Shard(name, path, number))
    return shards


def is_below_folder(name: str) -> bool:
    """Tell whether a shard's name stays below the folder that it is relative to.

    >>> is_below_folder("2024/a.tar"), is_below_folder("../a.tar")
    (True, False)
    """
    parts = name.split("/")
    return not any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts)


@contextmanager
def mapped(path: str) -> Generator[mmap]:
    """Map a file for reading; the mapping is closed on leaving.

    Raises:
        DamageError: the file is missing, empty or cannot be read.
    """
    with closing(ShardFile(path)) as file:
        yield file.view


def stamp_of(path: str) -> Stamp | None:
    """Say what a file is like now; None where there is none."""
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def fingerprint(view: mmap) -> str:
    """Digest a shard's size and 64 KiB spread over it: enough to notice another file.

    It does not prove that a shard is undamaged; a manifest's sha256 does.
    """
    digest = hashlib.blake2b(len(view).to_bytes(8, "big"), digest_size=16)
    last = max(0, len(view) - _BLOCK_BYTES)
    for i in range(_SAMPLED_BLOCKS):
        start = last * i // (_SAMPLED_BLOCKS - 1)
        digest.update(view[start : start + _BLOCK_BYTES])
    return digest.hexdigest()


def _find_in_one(path: str, suffixes: tuple[str, ...]) -> tuple[Path, dict[str, str]]:
    absolute = os.path.abspath(_local(path))
    if os.path.isfile(absolute):
        return Path(absolute).parent, {os.path.basename(absolute): absolute}
    if os.path.isdir(absolute):
        root, found = Path(absolute), filter(os.path.isfile, _files_below(absolute))
    elif glob.has_magic(path):
        root = _fixed_part(absolute)
        found = filter(os.path.isfile, glob.iglob(absolute, recursive=True))
    else:
        raise ValueError(
            f"expected a folder, a file or a glob, found nothing at {path!r}"
            + ("; braces are not expanded, use a glob" if "{" in path else "")
        )
    names = {Path(file).relative_to(root).as_posix(): file for file in found}
    shards = {name: names[name] for name in sorted(names) if _is_shard(name, suffixes)}
    if not shards:
        raise ValueError(f"expected {' or '.join(suffixes)} files in {path!r}, found none")
    return root, shards


def _local(path: str) -> str:
    scheme, colon, _ = path.partition(":")
    # The rest is left out of the message: addresses may carry secrets.
    if colon and len(scheme) > 1 and "/" not in scheme and not os.path.exists(path):
        raise ValueError(f"expected local files, got an address that starts with {scheme + ':'!r}")
    return path


def _files_below(folder: str) -> Iterable[str]:
    for parent, _, names in os.walk(folder, followlinks=False):
        yield from (os.path.join(parent, name) for name in names)


def _fixed_part(pattern: str) -> Path:
    parts = Path(pattern).parts
    magic = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:magic])


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_shard(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not any(p[0] in "._" for p in name.split("/"))


def _digest31(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1
