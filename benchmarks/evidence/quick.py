"""A small grid that anyone can run in minutes, and the orderings that it must show.

Only orderings that hold with wide margins are checked: what is closer is for the full grid.
"""

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.evidence.grid import Grid, run
from benchmarks.evidence.merit import calibration
from benchmarks.evidence.standings import Standings
from benchmarks.evidence.store import Cell, Results
from benchmarks.evidence.tasks import TASKS

__all__ = ["check", "judge"]


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

CALIBRATED = ("auto", "unbiased")
"""Contestants whose predicted clicks keep to those there are."""

OFF = 0.05
"""How far off they may be with so few seeds, as a share; a top-k is off by 1 to 3."""

GRID = Grid(
    tasks=("line", "click"),
    contestants=("full", "uniform", "auto", "unbiased", "big_loss", "small_loss"),
    rates=(0.2,),
    seeds=3,
)


def check(jobs: int) -> int:
    """Run the small grid and judge it."""
    with tempfile.TemporaryDirectory() as folder:
        results = Results(Path(folder) / "quick.parquet")
        run(GRID, results, None, jobs)
    return judge(results.rows)


def judge(rows: Mapping[Cell, Mapping[str, Any]]) -> int:
    """Print a line for each ordering and ratio, and give 1 where one does not hold, else 0."""
    holds = True
    for task, better, worse in ORDERINGS:
        one, other = (_mean(rows, task, name) for name in (better, worse))
        right = one > other if TASKS[task].better == "higher" else one < other
        holds = holds and right
        print(
            f"{task}: {better} {one:.4f} {'better than' if right else 'NOT better than'} "
            f"{worse} {other:.4f}"
        )
    for name in CALIBRATED:
        ratio = calibration(Standings(rows, {"click": False}, GRID.contestants), "click", name, 0.2)
        right = abs(ratio - 1) <= OFF
        holds = holds and right
        kept = "kept" if right else "NOT kept"
        print(f"click: predicted over actual of {name} {ratio:.3f}, calibration {kept}")
    return 0 if holds else 1


def _mean(rows: Mapping[Cell, Mapping[str, Any]], task: str, contestant: str) -> float:
    return statistics.fmean(
        row["value"]
        for cell, row in rows.items()
        if (cell.task, cell.contestant) == (task, contestant)
    )
