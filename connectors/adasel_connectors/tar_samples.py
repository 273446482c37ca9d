"""Group the members of a tar archive into samples.

A sample is a run of neighbouring regular files whose names agree up to the first dot of the
last part; that is its key, the rest is the extension of one part. This is the convention of
the webdataset format.
"""

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import TypeAlias

from adasel_connectors.damage import DamageError, shown
from adasel_connectors.tar_walk import END, REGULAR, walk

__all__ = ["Limits", "Part", "RawSample", "Samples", "count_samples"]

Part: TypeAlias = bytes | tuple[int, int]
"""Content; or, where it is deferred, its first byte in the archive and its size."""

RawSample: TypeAlias = tuple[str, list[Part], DamageError | None, int]
"""Key, one part for each extension asked for, what is wrong with it, where the next begins."""

_SLASH = ord("/")
_METADATA = re.compile(rb"__[^/.]*__(?:[./]|$)")
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Limits:
    """What is too large to be read; nothing larger is ever allocated.

    Attributes:
        member_bytes: of one part of a sample, at least 1.
        sample_bytes: of all its parts together, at least 1.
    """

    member_bytes: int
    sample_bytes: int


class Samples:
    """The samples of one archive, from `offset` on.

    Attributes:
        ignored: members passed over so far: other extensions, no extension, hidden files,
            metadata named `__...__`.
    """

    def __init__(
        self,
        view: mmap,
        extensions: Mapping[bytes, int],
        limits: Limits,
        *,
        deferred: frozenset[int] = frozenset(),
        offset: int = 0,
        end_required: bool = True,
    ) -> None:
        """Start at a member's offset; `extensions` maps lower-case names to columns.

        The content of `deferred` columns is not read.
        """
        self._view = view
        self._columns = extensions
        self._deferred = deferred
        self._limits = limits
        self._offset = offset
        self._end_required = end_required
        self.ignored = 0

    def __iter__(self) -> Generator[RawSample]:
        """Yield samples in the archive's order, unusable ones with their damage.

        Raises:
            DamageError: the archive's structure cannot be trusted any further. A sample whose
                parts may go on there is not given.
        """
        view, columns = self._view, self._columns
        member_bytes, sample_bytes = self._limits.member_bytes, self._limits.sample_bytes
        count, deferred = len(columns), self._deferred
        whole = (1 << count) - 1
        key: bytes | None = None
        nothing: list[Part] = [b""] * count
        parts = nothing
        seen = taken = 0  # seen: one bit for each part that is there
        damage: DamageError | None = None
        for name, kind, start, size, at in walk(
            view, self._offset, end_required=self._end_required
        ):
            stem, _, extension = name.partition(b".")
            if _SLASH in extension:
                stem, extension = _split(name)
            if stem != key:
                if kind is not END and _passed_over(stem, name):
                    self.ignored += 1
                    continue
                if key is not None:
                    if seen != whole and damage is None:
                        damage = self._incomplete(seen)
                    yield _sample(key, parts, damage, at)
                key, parts, seen, taken, damage = stem, nothing.copy(), 0, 0, None
                if kind is END:
                    return
            column = columns.get(extension)
            if column is None and (column := columns.get(extension.lower())) is None:
                self.ignored += 1
                continue
            taken += size
            if kind is not REGULAR:
                damage = DamageError("not_regular", f"part of it is a {kind}", one_sample=True)
            elif size > member_bytes or taken > sample_bytes:
                damage = DamageError("too_large", f"it has {taken} bytes or more", one_sample=True)
            elif seen >> column & 1:
                damage = DamageError("duplicate_part", "it has one part twice", one_sample=True)
            else:
                parts[column] = (start, size) if column in deferred else view[start : start + size]
                seen |= 1 << column

    def _incomplete(self, seen: int) -> DamageError:
        absent = [name for name, i in self._columns.items() if not seen >> i & 1]
        named = " and no ".join(f"{shown(name)} part" for name in absent)
        return DamageError(
            "incomplete", f"it has no {named}, which extensions asks for", one_sample=True
        )


def count_samples(view: mmap) -> int:
    """Count the samples of an archive, unusable ones included.

    Raises:
        DamageError: the archive's structure cannot be trusted.
    """
    return sum(1 for _ in Samples(view, {}, Limits(1, 1)))


def _split(name: bytes) -> tuple[bytes, bytes]:
    folder, slash, base = name.rpartition(b"/")
    stem, _, extension = base.partition(b".")
    return folder + slash + stem, extension


def _passed_over(stem: bytes, name: bytes) -> bool:
    """Tell files that are no samples: hidden, without extension, or `__metadata__`."""
    if stem == name or not stem or stem.endswith(b"/"):
        return True
    return stem.startswith(b"__") and _METADATA.match(name) is not None


def _sample(
    raw_key: bytes, parts: list[Part], damage: DamageError | None, offset: int
) -> RawSample:
    try:
        key = raw_key.decode()
    except UnicodeDecodeError:
        key = raw_key.decode("utf-8", "backslashreplace")
        damage = damage or DamageError("unsafe_key", "its key is not UTF-8", one_sample=True)
    # Keys are never used as paths here, but whoever writes results by key would do so.
    if not key.isprintable() and _CONTROL.search(key):
        damage = damage or DamageError(
            "unsafe_key", "its key has control characters", one_sample=True
        )
    if key[0] == "/" or (".." in key and ".." in key.split("/")):
        damage = damage or DamageError(
            "unsafe_key", "its key leads out of a folder", one_sample=True
        )
    return key, parts, damage, offset
