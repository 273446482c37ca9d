"""A small grid that anyone can run in minutes, and the orderings that it must show.

Only orderings that hold with wide margins are checked: what is closer is for the full grid.
"""

import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.evidence.grid import Grid, run
from benchmarks.evidence.store import Results
from benchmarks.evidence.tasks import TASKS

__all__ = ["check"]


class Ordering(NamedTuple):
    """On a task one contestant does better than another, in the mean over the seeds."""

    task: str
    better: str
    worse: str


ORDERINGS = (
    Ordering("click", "auto", "uniform"),
    Ordering("click", "unbiased", "uniform"),
    Ordering("click", "auto", "big_loss"),
    Ordering("click", "uniform", "big_loss"),
    Ordering("click", "full", "uniform"),
    Ordering("line", "uniform", "small_loss"),
    Ordering("line", "auto", "small_loss"),
)

GRID = Grid(
    tasks=("line", "click"),
    contestants=("full", "uniform", "auto", "unbiased", "big_loss", "small_loss"),
    rates=(0.2,),
    seeds=3,
)


def check(jobs: int) -> int:
    """Run the small grid, print a line for each ordering, and give 1 where one does not hold."""
    with tempfile.TemporaryDirectory() as folder:
        results = Results(Path(folder) / "quick.parquet")
        run(GRID, results, None, jobs)
    means: dict[tuple[str, str], float] = {
        (task, name): statistics.fmean(
            row["value"]
            for cell, row in results.rows.items()
            if (cell.task, cell.contestant) == (task, name)
        )
        for task in GRID.tasks
        for name in GRID.contestants
    }
    holds = True
    for task, better, worse in ORDERINGS:
        one, other = means[task, better], means[task, worse]
        right = one > other if TASKS[task].better == "higher" else one < other
        holds = holds and right
        print(
            f"{task}: {better} {one:.4f} {'better than' if right else 'NOT better than'} "
            f"{worse} {other:.4f}"
        )
    return 0 if holds else 1
