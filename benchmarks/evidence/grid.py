"""Run the cells that are missing, in worker processes, with a bar that shows how far it is."""

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.evidence.contestants import CONTESTANTS
from benchmarks.evidence.problem import Problem
from benchmarks.evidence.standings import RATE
from benchmarks.evidence.store import Cell, Results
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.training import train, updates_of

__all__ = ["ROOT", "Grid", "cells_of", "revision_of", "run"]

ROOT = Path(__file__).parents[2]

NEEDS_IDS_AGAIN = ("auto + record", "loss_history", "infobatch rule")
"""Contestants that live on meeting an instance again, which a stream read once does not offer."""

UNFIT = {("wikitext", "reducible_loss")}
"""There are too few sequences to keep some aside for a reference model."""


@dataclass(frozen=True)
class Grid:
    """What to run.

    Attributes:
        tasks: names of tasks.
        contestants: names of contestants.
        rates: sampling rates.
        seeds: how many, or None for as many as a task asks for.
        timed: contestants that also run with the time that full training takes.
        timed_rates: rates at which they do.
    """

    tasks: Sequence[str]
    contestants: Sequence[str]
    rates: Sequence[float]
    seeds: int | None
    timed: Sequence[str] = ()
    timed_rates: Sequence[float] = ()


def cells_of(grid: Grid) -> list[Cell]:
    """List the cells, seed by seed, so that a grid that was stopped has every task.

    Those that need the time of others come last. Streams are read once, so that more time than
    their updates take is of no use there.
    """
    seeds = {task: grid.seeds or TASKS[task].seeds for task in grid.tasks}
    pairs = [
        (seed, task)
        for seed in range(max(seeds.values(), default=0))
        for task in grid.tasks
        if seed < seeds[task]
    ]
    cells = [
        Cell(task, name, _rate_of(name, rate), seed, "updates")
        for seed, task in pairs
        for rate in grid.rates
        for name in grid.contestants
        if _fits(task, name)
    ]
    timed = [
        Cell(task, name, rate, seed, "time")
        for seed, task in pairs
        for rate in grid.timed_rates
        for name in grid.timed
        if _fits(task, name) and TASKS[task].kind == "epochs"
    ]
    return list(dict.fromkeys([*cells, *timed]))


def run(grid: Grid, results: Results, data: Path | None, jobs: int) -> None:
    """Run what is missing and save as it comes.

    Raises:
        DataError: a data set is missing or damaged; cells that were done are saved.
        ResultsError: what is there was run by other code, or cannot be written.
    """
    results.check(revision_of(ROOT), grid.rates)
    results.check_place()
    missing = [cell for cell in cells_of(grid) if cell not in results.rows]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeRemainingColumn(compact=True)) as progress,
        ProcessPoolExecutor(
            jobs, mp_context=get_context("spawn"), initializer=_start_worker
        ) as pool,
    ):
        bar = progress.add_task("cells", total=len(missing))
        try:
            for budget in ("updates", "time"):
                cells = [cell for cell in missing if cell.budget == budget]
                for cell, row in _finished(cells, results, data, pool, jobs):
                    results.add(cell, row)
                    progress.update(bar, advance=1, description=f"{cell.task}, {cell.contestant}")
        finally:
            if results.rows:
                results.save()


def _start_worker() -> None:
    """Use one thread, and end with the main process, however that ends."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "only workers call this"
    parent.join()
    os._exit(1)


def _finished(
    missing: Sequence[Cell],
    results: Results,
    data: Path | None,
    pool: ProcessPoolExecutor,
    jobs: int,
) -> Iterable[tuple[Cell, dict[str, Any]]]:
    """Keep the workers busy, and give rows as they come."""
    waiting = list(reversed(missing))
    under_way: dict[Future[dict[str, Any]], Cell] = {}
    revision = revision_of(ROOT)
    while waiting or under_way:
        while waiting and len(under_way) < 2 * jobs:
            cell = waiting.pop()
            updates = _timed_updates(cell, results) if cell.budget == "time" else None
            if cell.budget == "time" and updates is None:
                continue  # what it is measured by is not there
            under_way[pool.submit(_cell, cell, data, updates, revision)] = cell
        for future in wait(under_way, return_when=FIRST_COMPLETED).done:
            yield under_way.pop(future), future.result()


def _cell(cell: Cell, data: Path | None, updates: int | None, revision: str) -> dict[str, Any]:
    """Run a cell in a worker."""
    task, contestant = TASKS[cell.task], CONTESTANTS[cell.contestant]
    problem = _problem(cell.task, data, cell.seed)
    if updates is None:
        updates = updates_of(task, problem, contestant, cell.rate)
    curve = cell.rate in (RATE, 1.0)  # no other is shown
    outcome = train(task, problem, contestant, cell.rate, cell.seed, updates, curve=curve)
    return {
        "updates": outcome.updates,
        "candidates": outcome.candidates,
        "measure": task.measure,
        "value": outcome.quality.get(task.measure, float("nan")),
        "quality": outcome.quality,
        "seconds": outcome.seconds,
        "curve": [list(point) for point in outcome.curve],
        "revision": revision,
    }


@lru_cache(maxsize=2)
def _problem(task: str, data: Path | None, seed: int) -> Problem:
    return TASKS[task].make(data, seed)


def _timed_updates(cell: Cell, results: Results) -> int | None:
    """Say how many updates take as long as full training, by the same seed's measured time."""
    full = results.rows.get(Cell(cell.task, "full", 1.0, cell.seed, "updates"))
    own = results.rows.get(cell._replace(budget="updates"))
    if full is None or own is None or own["updates"] == 0:
        return None
    each = own["seconds"]["all"] / own["updates"]
    return max(1, int(full["seconds"]["all"] / each))


def _fits(task: str, contestant: str) -> bool:
    if TASKS[task].kind == "stream" and contestant in (*NEEDS_IDS_AGAIN, "full, equal updates"):
        return False
    return (task, contestant) not in UNFIT


def _rate_of(contestant: str, rate: float) -> float:
    return 1.0 if contestant == "full" else rate


def revision_of(root: Path) -> str:
    """Name the code that decides results: the commit that changed it last, and what is not in one.

    >>> revision_of(Path("/nowhere"))
    'unknown'
    """
    commit = _git(root, "log", "-1", "--format=%h", "--abbrev=7").strip()
    changes = _git(root, "diff", "HEAD")
    changed = f"+{hashlib.sha256(changes.encode()).hexdigest()[:7]}" if changes else ""
    return f"{commit}{changed}" if commit else "unknown"


def _git(root: Path, *command: str) -> str:
    """Ask git about the code."""
    paths = ("--", "adasel_stream", "benchmarks/evidence")
    done = subprocess.run(
        ["git", "-C", str(root), *command, *paths], capture_output=True, text=True, check=False
    )
    return done.stdout
