"""The parts of docs/results.md that are numbers."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from benchmarks.evidence.contestants import Contestant
from benchmarks.evidence.markdown import errors, number, percent, table, with_error
from benchmarks.evidence.merit import (
    KEPT,
    SOON,
    against_uniform_in_time,
    calibrated,
    calibration,
    claims,
    diverged,
    gap_closed,
    in_time,
    reached,
    soon,
    with_headroom,
)
from benchmarks.evidence.problem import Task
from benchmarks.evidence.published import COLUMNS, TABLE_4
from benchmarks.evidence.standings import RATE, Standings

__all__ = [
    "claims_table",
    "costs_table",
    "headlines",
    "paper_ranks",
    "paper_values",
    "ranks_table",
    "reached_table",
    "stream_table",
    "streams_in_time",
    "task_table",
    "time_table",
]


def headlines(
    standings: Standings, singles: Sequence[str], streams: Sequence[str], name: str = "auto"
) -> list[str]:
    """Say in sentences how often what holds of one contestant, at equal updates and in time."""
    counted = claims(standings, name, singles)
    ranks = standings.overall_ranks([one for one in standings.contestants if one != "full"])
    first = min(ranks, key=ranks.__getitem__, default="nobody")
    place = sum(rank < ranks[name] for rank in ranks.values()) + 1 if name in ranks else 0
    better, gaps = with_headroom(standings, name)
    lines = [
        f"`{name}` not worse than uniform (paired, 2 standard errors): "
        f"{counted.not_worse} of {counted.places}",
        f"`{name}` better than uniform (paired, 2 standard errors): "
        f"{counted.better} of {counted.places}",
        f"of the places where full training, with all its updates, is better than uniform: "
        f"{better} of {gaps}",
        f"`{name}` within one standard error of the best single method, or better: "
        f"{counted.near_best} of {counted.compared}",
        f"`{name}` first in average rank: "
        + ("yes" if first == name else f"no, number {place} of {len(ranks)}; first is `{first}`"),
    ]
    if lost := diverged(standings, "uniform"):
        lines.insert(
            2,
            "a seed of uniform diverged, so that nobody counts as better there: "
            + ", ".join(f"{task} at {rate}" for task, rate in lost),
        )
    if "click" in standings.tasks:
        rates = standings.rates("click")
        closed = ", ".join(percent(gap_closed(standings, "click", name, rate)) for rate in rates)
        ratios = [calibration(standings, "click", name, rate) for rate in rates]
        shown = ", ".join(map(str, rates))
        lines += [
            f"click: gap between uniform and full training closed by `{name}` at rates {shown}: "
            f"{closed}",
            f"click: predicted over actual clicks of `{name}` at these rates: "
            + ", ".join(number(ratio, 3) for ratio in ratios),
        ]
    kept, places = calibrated(standings, name)
    if places:
        lines.append(
            f"predicted over actual of `{name}` within {KEPT:.0%} of uniform's: {kept} of {places}"
        )
    equal = "full, equal updates"
    for task in ("fashion", "fashion-20-wrong"):
        for rate in standings.rates(task):
            difference = standings.difference(task, name, equal, rate)
            if rate == RATE and difference.seeds:
                lines.append(
                    f"{task} at rate {rate}: `{name}` against full training cut to as many updates "
                    f"{with_error(standings.mean(task, name, rate))} to "
                    f"{with_error(standings.mean(task, equal, rate))}, {errors(difference)} "
                    "standard errors"
                )
    timed = in_time(standings, name, streams)
    own, uniform = (_share_of_time(standings, one, RATE) for one in (name, "uniform"))
    lines += [
        "time: in these small networks, where choosing takes longer than a training step, "
        f"`{name}` at rate {RATE} takes {own} of the time of full training with all its updates, "
        f"uniform {uniform}",
        f"`{name}` in as much time as uniform: better in {timed.better} of {timed.places} places, "
        f"worse in {timed.worse}",
    ]
    epochs = [task for task in standings.tasks if task not in streams]
    if epochs:
        early = [f"`{one}` on {task}" for one, task in soon(standings, epochs, RATE)]
        lines.append(
            f"as good as full training after {SOON:.0%} of its time or less, at rate {RATE} in "
            f"these networks: {', '.join(early) or 'nobody, on no task'}; of networks so wide that "
            "a step takes milliseconds benchmarks/evidence/README.md tells"
        )
    return lines


def claims_table(standings: Standings, singles: Sequence[str]) -> str:
    """Count the same claims for everyone."""
    rows: list[list[str]] = []
    for name in standings.contestants:
        if name in ("full", "uniform"):
            continue
        one = claims(standings, name, singles)
        rows.append(
            [
                name,
                f"{one.not_worse} of {one.places}",
                f"{one.better} of {one.places}",
                f"{one.near_best} of {one.compared}",
            ]
        )
    return table(["contestant", "not worse than uniform", "better", "near the best single"], rows)


def ranks_table(standings: Standings) -> tuple[str, Mapping[str, float]]:
    """Give average ranks by task and over all of them, and the latter as numbers."""
    names = [name for name in standings.contestants if name != "full"]
    overall = standings.overall_ranks(names)
    tasks = {task: standings.ranks(task, names) for task in standings.tasks}
    ordered = sorted(names, key=lambda name: overall.get(name, math.inf))
    rows = [
        [
            name,
            number(overall.get(name, math.nan), 3),
            *(number(places.get(name, math.nan), 3) for places in tasks.values()),
        ]
        for name in ordered
    ]
    return table(["contestant", "all", *tasks], rows), overall


def paper_ranks(standings: Standings) -> str:
    """Set average ranks among the paper's contestants beside its Table 4."""
    rows: list[list[str]] = []
    for task in (one for one in TABLE_4 if one in standings.tasks):
        ours = standings.ranks(task, list(COLUMNS))
        for source, ranks in (("here", ours), ("paper", TABLE_4[task])):
            cells = (number(ranks.get(name, math.nan), 3) for name in COLUMNS)
            rows.append([f"{task}, {source}", *cells])
    return table(["task", *COLUMNS.values()], rows)


def paper_values(standings: Standings, tasks: Mapping[str, Task]) -> str:
    """Set values averaged over the rates beside the paper's Table 5."""
    rows: list[list[str]] = []
    for name in (one for one in standings.tasks if tasks[one].published):
        task = tasks[name]
        ours = (with_error(standings.over_rates(name, one)) for one in COLUMNS)
        theirs = (number(task.published.get(one, math.nan)) for one in COLUMNS)
        rows += [[f"{name}, {task.measure}, here", *ours], [f"{name}, paper", *theirs]]
    return table(["task", *COLUMNS.values()], rows)


def task_table(standings: Standings, task: str) -> str:
    """Give every contestant's value at each rate, and its difference to uniform in errors."""
    rates = standings.rates(task)
    rows = [
        [
            name,
            *(
                f"{with_error(standings.mean(task, name, rate))} "
                f"({errors(standings.difference(task, name, 'uniform', rate))})"
                if standings.values(task, name, rate)
                else "-"
                for rate in rates
            ),
        ]
        for name in standings.contestants
        if any(standings.values(task, name, rate) for rate in rates)
    ]
    return table(["contestant", *(f"rate {rate:g}" for rate in rates)], rows)


def time_table(standings: Standings, tasks: Sequence[str]) -> str:
    """Compare at full training's time, over epochs."""
    rows = [
        [
            f"{task}, {rate:g}, {name}",
            number(fmean(row["updates"] for row in cells.values()), 4),
            percent(
                standings.seconds(task, name, rate, "time") / standings.seconds(task, "full", rate)
            ),
            with_error(standings.mean(task, name, rate, "time")),
            errors(standings.difference(task, name, "uniform", rate, "time")),
        ]
        for task in tasks
        for rate in standings.rates(task, "time")
        for name in standings.contestants
        for cells in [standings.seeds(task, name, rate, "time")]
        if cells
    ]
    headers = ["task, rate, contestant", "updates", "time of full's", "value", "against uniform"]
    return table(headers, rows)


def streams_in_time(standings: Standings, tasks: Sequence[str], names: Sequence[str]) -> str:
    """Compare on streams with uniform sampling at the rate that takes as long."""
    rows: list[list[str]] = []
    for task in tasks:
        for name in names:
            cells: list[str] = []
            for rate in standings.rates(task):
                if not standings.values(task, name, rate):
                    cells.append("-")
                    continue
                share, difference = against_uniform_in_time(standings, task, name, rate)
                cells.append(f"{errors(difference)}, {percent(share)}")
            rows.append([f"{task}, {name}", *cells])
    rates = sorted({rate for task in tasks for rate in standings.rates(task)})
    return table(["task, contestant", *(f"rate {rate:g}" for rate in rates)], rows)


def reached_table(standings: Standings, tasks: Sequence[str], names: Sequence[str]) -> str:
    """Say who gets to full training's quality, how often, and in which share of its time."""
    rows: list[list[str]] = []
    for name in names:
        for budget in ("updates",) if name == "full" else ("updates", "time"):
            found = [reached(standings, task, name, RATE, budget) for task in tasks]
            if not any(one.seeds for one in found):
                continue
            cells = [
                "-"
                if not one.seeds
                else f"{one.times}/{one.seeds}"
                + (f", {percent(one.share)}" if math.isfinite(one.share) else ", never")
                for one in found
            ]
            rows.append([name if name == "full" else f"{name}, equal {budget}", *cells])
    return table(["contestant", *tasks], rows)


def stream_table(standings: Standings, task: str, names: Sequence[str]) -> str:
    """Give the gap that is closed, and predicted over actual, at each rate of a stream."""
    rates = standings.rates(task)
    rows: list[list[str]] = []
    for name in names:
        cells: list[str] = []
        for rate in rates:
            ratio = calibration(standings, task, name, rate)
            closed = percent(gap_closed(standings, task, name, rate))
            cells.append(closed + ("" if math.isnan(ratio) else f", {number(ratio, 3)}"))
        rows.append([name, *cells])
    return table(["contestant", *(f"rate {rate:g}" for rate in rates)], rows)


def costs_table(standings: Standings, contestants: Mapping[str, Contestant]) -> str:
    """Give the time of every contestant as a share of full training's, over all tasks."""
    rates = sorted({rate for _, rate in standings.places})
    rows: list[list[str]] = []
    for name in standings.contestants:
        cells = [_share_of_time(standings, name, rate) for rate in rates]
        losses = contestants[name].losses if contestants[name].kind == "selected" else "-"
        rows.append([name, losses, *cells])
    return table(["contestant", "losses", *(f"rate {rate:g}" for rate in rates)], rows)


def _share_of_time(standings: Standings, name: str, rate: float) -> str:
    """Give the share of full training's time, averaged over tasks."""
    shares = [
        standings.seconds(task, name, rate) / standings.seconds(task, "full", rate)
        for task in standings.tasks
        if standings.values(task, name, rate) and standings.values(task, "full", rate)
    ]
    return percent(fmean(shares)) if shares else "-"
