"""The serving folder as a trainer sees it."""

import contextlib
import os
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from adasel_stream.serving.listing import Listing, list_in_steps
from adasel_stream.serving.names import segment_name

__all__ = ["Inbox"]

_MOST_DAMAGED: Final = 16


class Inbox:
    """Lists a serving folder, and removes from it what is done with.

    Args:
        folder: the serving folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._damaged: deque[str] = deque()

    def look(self, due: Callable[[], Mapping[str, int]]) -> Iterator[Listing | None]:
        """List the folder in steps of a millisecond or two; what comes last is the listing.

        A writer gives its segments their names in order, but a folder that changes while it is
        listed may show a later one and not an earlier. Before one counts as missing, the folder
        is therefore listed again: what the first listing shows, all earlier ones must be in the
        second, unless they were removed.

        Args:
            due: returns, by writer, the sequence number that is due next; 0 for others.

        Raises:
            OSError: if the folder cannot be listed.
        """
        listing = Listing()
        yield from list_in_steps(self._folder, listing)
        if _has_gap(listing, due()):
            again = Listing()
            yield from list_in_steps(self._folder, again)
            for writer, sequences in listing.segments.items():
                both = {*sequences, *again.segments.get(writer, [])}
                listing.segments[writer] = sorted(s for s in both if s <= sequences[-1])
        self._damaged = deque(listing.damaged)
        yield listing

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


def _has_gap(listing: Listing, due: Mapping[str, int]) -> bool:
    """Say whether a segment seems to be missing, from the one that is due of each writer on."""
    for writer, sequences in listing.segments.items():
        first = due.get(writer, 0)
        ahead = len(sequences) - bisect_left(sequences, first)
        if ahead and sequences[-1] - first >= ahead:
            return True
    return False
