"""The picture of a running demo on a terminal."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.spinner import Spinner
from rich.table import Table

from adasel_stream.demo.arms import Arm
from adasel_stream.demo.screen import COLUMNS, cells

__all__ = ["RichScreen"]


class RichScreen:
    """A bar and a table of running figures that are redrawn in place.

    Args:
        console: where to draw; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        """Draw nothing yet."""
        self._console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("flights"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._bar.add_task("flights", total=None)
        self._live = Live(console=self._console, refresh_per_second=4)
        self._live.start()

    def say(self, sentence: str) -> None:
        """Print a line above the picture."""
        self._live.console.print(sentence, markup=False, highlight=False)

    def busy(self, sentence: str) -> None:
        """Show it beside a spinner until something else is shown."""
        self._live.update(Spinner("dots", text=sentence))

    def show(self, seen: int, rows: int, arms: Sequence[Arm]) -> None:
        """Redraw bar and table."""
        self._bar.update(self._task, total=rows, completed=seen)
        table = Table(box=None, pad_edge=False)
        for name in COLUMNS:
            table.add_column(name, justify="left" if name == COLUMNS[0] else "right")
        for arm in arms:
            table.add_row(*cells(arm))
        self._live.update(Group(table, self._bar))

    def close(self) -> None:
        """Stop redrawing; the last picture stays."""
        self._live.stop()
