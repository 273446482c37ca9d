"""Results, looked up by who, where and at which rate."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from statistics import fmean
from typing import Any

from benchmarks.evidence.paired import Difference, Mean, mean_of, paired, ranks
from benchmarks.evidence.store import Cell

__all__ = ["RATE", "Place", "Standings"]

RATE = 0.2
"""Sampling rate of what is shown at one rate alone: times, phases and the claims about images."""

Place = tuple[str, float]
"""A task and a sampling rate."""


class Standings:
    """What the cells say about each other.

    Args:
        rows: rows of results by cell.
        higher: whether higher values are better, by task; tasks in the order of tables.
        order: names of contestants in the order of tables.
    """

    def __init__(
        self,
        rows: Mapping[Cell, Mapping[str, Any]],
        higher: Mapping[str, bool],
        order: Sequence[str],
    ) -> None:
        self.rows = rows
        self.higher = higher
        self._order = order
        self._seeds: dict[tuple[str, str, float, str], dict[int, Mapping[str, Any]]] = {}
        for cell, row in rows.items():
            key = (cell.task, cell.contestant, cell.rate, cell.budget)
            self._seeds.setdefault(key, {})[cell.seed] = row

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks of which there are results."""
        there = {cell.task for cell in self.rows}
        return [task for task in self.higher if task in there]

    @cached_property
    def contestants(self) -> list[str]:
        """Contestants of which there are results."""
        there = {cell.contestant for cell in self.rows}
        return [name for name in self._order if name in there]

    def rates(self, task: str, budget: str = "updates") -> list[float]:
        """Sampling rates at which a task was run, ascending."""
        return sorted(
            {
                cell.rate
                for cell in self.rows
                if cell.task == task and cell.budget == budget and cell.contestant != "full"
            }
        )

    @cached_property
    def places(self) -> list[Place]:
        """Tasks at each of their rates."""
        return [(task, rate) for task in self.tasks for rate in self.rates(task)]

    def seeds(
        self, task: str, contestant: str, rate: float, budget: str = "updates"
    ) -> dict[int, Mapping[str, Any]]:
        """Rows by seed; full training is the same at every rate."""
        at = 1.0 if contestant == "full" else rate
        return self._seeds.get((task, contestant, at, budget), {})

    def values(
        self, task: str, contestant: str, rate: float, budget: str = "updates"
    ) -> dict[int, float]:
        """Values by seed."""
        rows = self.seeds(task, contestant, rate, budget)
        return {seed: row["value"] for seed, row in rows.items()}

    def mean(self, task: str, contestant: str, rate: float, budget: str = "updates") -> Mean:
        """Mean over the seeds."""
        return mean_of(self.values(task, contestant, rate, budget).values())

    def difference(
        self, task: str, one: str, other: str, rate: float, budget: str = "updates"
    ) -> Difference:
        """How much better `one` did than `other`, by pairs of seeds."""
        values = (self.values(task, name, rate, budget) for name in (one, other))
        return paired(*values, higher=self.higher[task])

    def seconds(self, task: str, contestant: str, rate: float, budget: str = "updates") -> float:
        """Processor time of a run, the mean over seeds; NaN where there is none."""
        rows = self.seeds(task, contestant, rate, budget).values()
        return fmean(row["seconds"]["all"] for row in rows) if rows else float("nan")

    def over_rates(self, task: str, contestant: str) -> Mean:
        """Value averaged over the rates, seed by seed, as Table 5 does."""
        every = [self.values(task, contestant, rate) for rate in self.rates(task)]
        if not every:
            return mean_of([])
        common = set.intersection(*map(set, every))
        return mean_of(fmean(values[seed] for values in every) for seed in common)

    def ranks(self, task: str, names: Sequence[str]) -> dict[str, float]:
        """Rank of each of `names` on a task, averaged over the rates, as Table 4 does.

        Those that did not take part at every rate are left out.
        """
        rates = self.rates(task)
        there = [
            name for name in names if all(self.values(task, name, rate) for rate in rates) and rates
        ]
        each = [
            ranks(
                {name: self.mean(task, name, rate).value for name in there},
                higher=self.higher[task],
            )
            for rate in rates
        ]
        return {name: fmean(places[name] for places in each) for name in there}

    def overall_ranks(self, names: Sequence[str]) -> dict[str, float]:
        """Rank averaged over all tasks, of those of `names` that took part in all of them."""
        everywhere = [
            name for name in names if all(name in self.ranks(task, [name]) for task in self.tasks)
        ]
        each = [self.ranks(task, everywhere) for task in self.tasks]
        return {name: fmean(places[name] for places in each) for name in everywhere if each}
