"""How far long work has come: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

from adasel_stream.record.snapshots.upkeep import Progress

__all__ = ["plain_lines", "showing"]


def plain_lines(
    what: str,
    file: TextIO,
    *,
    every_s: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Return what writes a line of text when one is due, none for work that is soon done.

    Args:
        what: is being done, such as "reading".
        file: where to write.
        every_s: seconds between lines, and before the first.
        clock: returns seconds.

    >>> show = plain_lines("reading", sys.stdout, every_s=0)
    >>> show(1000, 4000)
    reading: 25%, 1,000 of 4,000 rows
    """
    due = clock() + every_s

    def show(done: int, total: int) -> None:
        nonlocal due
        if clock() >= due and done < total:
            due = clock() + every_s
            print(f"{what}: {done / total:.0%}, {done:,} of {total:,} rows", file=file, flush=True)

    return show


def showing(what: str) -> AbstractContextManager[Progress]:
    """Show on standard error how far work has come, for as long as it takes.

    Args:
        what: is being done, such as "reading".
    """
    if sys.stderr.isatty():
        try:
            from adasel_stream.inspection.rich_bar import rich_bar
        except ImportError:
            pass
        else:
            return rich_bar(what)
    return nullcontext(plain_lines(what, sys.stderr))
