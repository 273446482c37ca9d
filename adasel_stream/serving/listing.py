"""What lies in a serving folder, and removing what the dead left there."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from adasel_stream.serving.life_sign import remove_if_dead
from adasel_stream.serving.names import (
    DAMAGED,
    lock_name,
    writer_and_sequence,
    writer_of_lock,
    writer_of_temporary,
)

__all__ = ["Listing", "list_folder", "list_in_steps", "remove_remains"]

_STEP_NAMES: Final = 1_000


@dataclass
class Listing:
    """The files of a serving folder; those that are not ours are left out.

    Attributes:
        segments: by writer, the sequence numbers of its segments, ascending.
        locks: writers with a lock file, living or dead.
        temporaries: by writer, names of segments that it writes or wrote when it was killed.
        damaged: names of segments that were set aside.
    """

    segments: dict[str, list[int]] = field(default_factory=dict)
    locks: set[str] = field(default_factory=set)
    temporaries: dict[str, list[str]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Note one file."""
        if (segment := writer_and_sequence(name)) is not None:
            self.segments.setdefault(segment[0], []).append(segment[1])
        elif (writer := writer_of_lock(name)) is not None:
            self.locks.add(writer)
        elif (writer := writer_of_temporary(name)) is not None:
            self.temporaries.setdefault(writer, []).append(name)
        elif DAMAGED.fullmatch(name):
            self.damaged.append(name)


def list_folder(folder: Path) -> Listing:
    """List a serving folder.

    Raises:
        OSError: if it cannot be listed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "00c0ffee00c0ffee.000000000007.seg").touch()
    ...     list_folder(Path(folder)).segments
    {'00c0ffee00c0ffee': [7]}
    """
    listing = Listing()
    for _ in list_in_steps(folder, listing):
        pass
    return listing


def list_in_steps(folder: Path, listing: Listing) -> Iterator[None]:
    """List a serving folder a thousand names at a time, for whoever has other things to do.

    Args:
        folder: the folder.
        listing: an empty one, which is complete at the end.

    Raises:
        OSError: if it cannot be listed.
    """
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries, 1):
            # a link or a named pipe is nothing that a writer left here
            if entry.is_file(follow_symlinks=False):
                listing.add(entry.name)
            if number % _STEP_NAMES == 0:
                yield
    for sequences in listing.segments.values():
        sequences.sort()


def remove_remains(folder: Path, listing: Listing) -> set[str]:
    """Remove lock files and beginnings of dead writers, and return the living ones.

    Segments stay: they are to be drained, whoever wrote them.
    """
    living: set[str] = set()
    for writer in listing.locks | set(listing.temporaries):
        if not remove_if_dead(folder / lock_name(writer)):
            living.add(writer)
            continue
        for name in listing.temporaries.get(writer, []):
            with contextlib.suppress(OSError):
                os.unlink(folder / name)
    return living
