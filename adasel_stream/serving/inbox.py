"""The serving folder as a trainer sees it."""

import contextlib
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from adasel_stream.serving.life_sign import remove_if_dead
from adasel_stream.serving.names import (
    DAMAGED,
    lock_name,
    segment_name,
    writer_and_sequence,
    writer_of_lock,
    writer_of_temporary,
)

__all__ = ["Inbox", "Listing"]

_MOST_DAMAGED: Final = 16


@dataclass
class Listing:
    """What lies in the folder, files that are not ours left out.

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

    def has_gap(self, expected: Mapping[str, int]) -> bool:
        """Whether a segment seems to be missing, from the next expected one of each writer on."""
        for writer, sequences in self.segments.items():
            first = expected.get(writer, 0)
            ahead = [sequence for sequence in sequences if sequence >= first]
            if ahead and ahead[-1] - first >= len(ahead):
                return True
        return False


class Inbox:
    """Lists a serving folder, and removes from it what is done with.

    Args:
        folder: the serving folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._damaged: deque[str] = deque()

    def list(self, expected: Mapping[str, int]) -> Listing:
        """List the folder.

        A writer gives its segments their names in order, but a folder that changes while it is
        listed may show a later one and not an earlier. Before one counts as missing, the folder
        is therefore listed again: what the first listing shows, all earlier ones must be in the
        second, unless they were removed.

        Args:
            expected: by writer, the sequence number that is due next; 0 for others.

        Raises:
            OSError: if the folder cannot be listed.
        """
        listing = self._list()
        if listing.has_gap(expected):
            again = self._list()
            for writer, sequences in listing.segments.items():
                both = {*sequences, *again.segments.get(writer, [])}
                listing.segments[writer] = sorted(s for s in both if s <= sequences[-1])
        self._damaged = deque(listing.damaged)
        return listing

    def remove(self, writer: str, sequence: int) -> None:
        """Remove a segment, if it is there and may be removed."""
        with contextlib.suppress(OSError):
            os.unlink(self._folder / segment_name(writer, sequence))

    def set_aside(self, writer: str, sequence: int) -> None:
        """Give a damaged segment another name; a few are kept for whoever wants to look."""
        name = segment_name(writer, sequence)
        with contextlib.suppress(OSError):
            os.rename(self._folder / name, self._folder / f"{name}.damaged")
            self._damaged.append(f"{name}.damaged")
        while len(self._damaged) > _MOST_DAMAGED:
            with contextlib.suppress(OSError):
                os.unlink(self._folder / self._damaged.popleft())

    def tidy(self, listing: Listing) -> None:
        """Remove what dead writers left behind, their segments excepted."""
        for writer in listing.locks | set(listing.temporaries):
            if remove_if_dead(self._folder / lock_name(writer)):
                for name in listing.temporaries.get(writer, []):
                    with contextlib.suppress(OSError):
                        os.unlink(self._folder / name)

    def _list(self) -> Listing:
        listing = Listing()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                # a link or a named pipe is nothing that a writer left here
                if entry.is_file(follow_symlinks=False):
                    listing.add(entry.name)
        for sequences in listing.segments.values():
            sequences.sort()
        return listing
