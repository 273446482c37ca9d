"""What is counted: claims over all tasks and rates, gaps closed, calibration, times."""

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from benchmarks.evidence.paired import Difference, mean_of, paired, share_closed, value_at
from benchmarks.evidence.standings import Standings

__all__ = [
    "KEPT",
    "SOON",
    "Claims",
    "InTime",
    "Reached",
    "against_uniform_in_time",
    "calibrated",
    "calibration",
    "claims",
    "diverged",
    "gap_closed",
    "in_time",
    "reached",
    "soon",
    "with_headroom",
]

CALIBRATION = "predicted / actual"

KEPT = 0.02
"""A ratio of predicted to actual that differs by no more than this share from uniform's is kept."""


SOON = 0.5
"""Share of full training's time in which its quality is to be reached."""


class Claims(NamedTuple):
    """In how many places, a task at a rate each, something can be said of a contestant.

    Attributes:
        places: where it and uniform took part with at least two common seeds.
        not_worse: where it is not worse than uniform by two standard errors.
        better: where it is better than uniform by two standard errors, and neither diverged.
        near_best: where it is within one standard error of the best single method, or better.
        compared: where there is a single method to be compared with.
    """

    places: int
    not_worse: int
    better: int
    near_best: int
    compared: int


def claims(standings: Standings, contestant: str, singles: Sequence[str]) -> Claims:
    """Count where claims hold, at equal updates.

    The best single method of a place is known after the fact only, and being the best of many
    flatters it.

    Args:
        standings: results.
        contestant: whose claims to count.
        singles: the methods that it is compared with.
    """
    found = [
        (difference, _to_best(standings, contestant, singles, task, rate))
        for task, rate in standings.places
        for difference in [standings.difference(task, contestant, "uniform", rate)]
        if difference.seeds > 1
    ]
    best = [difference for _, difference in found if difference is not None]
    return Claims(
        places=len(found),
        not_worse=sum(not one.is_worse for one, _ in found),
        better=sum(one.is_better for one, _ in found),
        near_best=sum(one.at_least(-1) for one in best),
        compared=len(best),
    )


def with_headroom(standings: Standings, contestant: str) -> tuple[int, int]:
    """Count the places where it is better than uniform, of those where full training is.

    Elsewhere several times the updates buy nothing, and so can no choice of rows.

    Returns:
        places where it is better by two standard errors, and where full training is.
    """
    gaps = [
        (task, rate)
        for task, rate in standings.places
        if standings.difference(task, "full", "uniform", rate).is_better
    ]
    better = [
        standings.difference(task, contestant, "uniform", rate).is_better for task, rate in gaps
    ]
    return sum(better), len(gaps)


def diverged(standings: Standings, contestant: str) -> list[tuple[str, float]]:
    """Give the places, task and rate, in which a seed of a contestant diverged."""
    return [
        (task, rate)
        for task, rate in standings.places
        if not all(map(math.isfinite, standings.values(task, contestant, rate).values()))
    ]


def _to_best(
    standings: Standings, contestant: str, singles: Sequence[str], task: str, rate: float
) -> Difference | None:
    sign = 1 if standings.higher[task] else -1
    means = {
        name: sign * standings.mean(task, name, rate).value
        for name in singles
        if name != contestant
    }
    finite = {name: mean for name, mean in means.items() if math.isfinite(mean)}
    if not finite:
        return None
    return standings.difference(task, contestant, max(finite, key=finite.__getitem__), rate)


def gap_closed(standings: Standings, task: str, contestant: str, rate: float) -> float:
    """Say how much of the gap between uniform and full training is closed, by the means.

    NaN where there is no gap: where full training is not better by two standard errors.
    """
    if not standings.difference(task, "full", "uniform", rate).is_better:
        return math.nan
    value, uniform, full = (
        standings.mean(task, name, rate).value for name in (contestant, "uniform", "full")
    )
    return share_closed(value, uniform, full)


def calibration(standings: Standings, task: str, contestant: str, rate: float) -> float:
    """Give what is predicted in all, over what there is; NaN where a task has no such thing."""
    rows = standings.seeds(task, contestant, rate).values()
    values = [row["quality"].get(CALIBRATION, math.nan) for row in rows]
    return fmean(values) if values else math.nan


def calibrated(standings: Standings, contestant: str) -> tuple[int, int]:
    """Count the places where what is predicted over what there is keeps to uniform's.

    Returns:
        places where the two ratios differ by at most `KEPT`, and places where there are such.
    """
    pairs = [
        (
            calibration(standings, task, contestant, rate),
            calibration(standings, task, "uniform", rate),
        )
        for task, rate in standings.places
    ]
    known = [own / uniform for own, uniform in pairs if math.isfinite(own / uniform)]
    return sum(abs(one - 1) <= KEPT for one in known), len(known)


class Reached(NamedTuple):
    """How soon a contestant is as good as full training at its end.

    Attributes:
        seeds: of how many seeds there are curves.
        times: how many of them get there.
        share: of full training's time that it takes, the median over all seeds, of which one that
            does not get there takes for ever; NaN without any seed.
    """

    seeds: int
    times: int
    share: float


def reached(
    standings: Standings, task: str, contestant: str, rate: float, budget: str = "updates"
) -> Reached:
    """Look up in the curves when full training's quality is reached.

    That quality is full training's mean less one standard error, so that full training itself
    gets there more often than not.
    """
    higher = standings.higher[task]
    full = standings.mean(task, "full", rate)
    slack = 0.0 if math.isnan(full.error) else full.error
    target = full.value - slack if higher else full.value + slack
    whole = standings.seconds(task, "full", rate)
    rows = standings.seeds(task, contestant, rate, budget).values()
    found = [
        next(
            (
                seconds
                for _, seconds, value in row["curve"]
                if (value >= target if higher else value <= target)
            ),
            math.inf,
        )
        for row in rows
    ]
    share = median(found) / whole if found else math.nan
    return Reached(len(found), sum(map(math.isfinite, found)), share)


def soon(standings: Standings, tasks: Sequence[str], rate: float) -> list[tuple[str, str]]:
    """Give contestants, and tasks, that get there in at most `SOON` of full training's time."""
    return [
        (name, task)
        for name in standings.contestants
        if name != "full"
        for task in tasks
        if any(
            reached(standings, task, name, rate, budget).share <= SOON
            for budget in ("updates", "time")
        )
    ]


def against_uniform_in_time(
    standings: Standings, task: str, contestant: str, rate: float
) -> tuple[float, Difference]:
    """Compare with uniform sampling at the rate that takes as long, on a stream.

    A stream is read once, so that whoever has time left can only raise the rate. What uniform
    sampling reaches in a time is read off between its rates and full training, seed by seed.

    Returns:
        the contestant's time as a share of full training's, and the paired difference.
    """
    rates = standings.rates(task)
    sources = [("uniform", one) for one in rates] + [("full", 1.0)]
    uniform: dict[int, float] = {}
    for seed, row in standings.seeds(task, contestant, rate).items():
        points = [
            (rows[seed]["seconds"]["all"], rows[seed]["value"])
            for name, one in sources
            for rows in [standings.seeds(task, name, one)]
            if seed in rows
        ]
        if points:
            uniform[seed] = value_at(points, row["seconds"]["all"])
    own = standings.values(task, contestant, rate)
    whole = mean_of(
        row["seconds"]["all"] for row in standings.seeds(task, "full", rate).values()
    ).value
    share = standings.seconds(task, contestant, rate) / whole
    return share, paired(own, uniform, higher=standings.higher[task])


class InTime(NamedTuple):
    """In how many places a contestant beats uniform sampling in as much time, and loses to it."""

    places: int
    better: int
    worse: int


def in_time(standings: Standings, contestant: str, streams: Sequence[str]) -> InTime:
    """Count by two standard errors, over epochs at full training's time, on streams at its own."""
    found = [
        standings.difference(task, contestant, "uniform", rate, "time")
        for task in standings.tasks
        if task not in streams
        for rate in standings.rates(task, "time")
    ]
    found += [
        against_uniform_in_time(standings, task, contestant, rate)[1]
        for task in streams
        for rate in standings.rates(task)
    ]
    known = [one for one in found if one.seeds > 1]
    better = sum(one.is_better for one in known)
    worse = sum(one.is_worse for one in known)
    return InTime(len(known), better, worse)
