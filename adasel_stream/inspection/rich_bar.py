"""A bar on a terminal that is gone when the work is done."""

import contextlib
from collections.abc import Generator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from adasel_stream.record.snapshots import upkeep

__all__ = ["rich_bar"]


@contextlib.contextmanager
def rich_bar(what: str, console: Console | None = None) -> Generator[upkeep.Progress, None, None]:
    """Draw a bar for as long as work takes.

    Args:
        what: is being done.
        console: where to draw; standard error by default.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
