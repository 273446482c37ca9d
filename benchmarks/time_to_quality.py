"""Time to full training's quality with losses that serving has recorded.

Tasks of `benchmarks/evidence` with networks so wide that a training step takes milliseconds, as it
does in production, where the evidence's own take a third of one and Python the rest. Full training
goes through all candidates; `auto` through the same ones by recorded losses at a rate, uniform
sampling at that rate beside it. What counts is processor time, and for each the share of full
training's after which it is as good as full training ends: of a stream the time for all of it, if
the loss over it is no higher. Losses come from a model that is put into service every 20 updates,
whose passes are not the trainer's. Medians over seeds.
"""

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.evidence.contestants import CONTESTANTS
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.tasks.networks import perceptron
from benchmarks.evidence.training import Outcome, train, updates_of

WIDTHS = {"bike-daily": 1024, "bike-hourly": 1024, "click": 512}
"""Units of each of three hidden layers."""

RATES = (0.1, 0.2, 0.3, 0.4)
TARGET = 0.5


def run(task_name: str, contestant: str, rate: float, seed: int, data: Path | None) -> Outcome:
    """Train with a wide network."""
    task, who = TASKS[task_name], CONTESTANTS[contestant]
    problem = task.make(data, seed)
    inputs, outputs = problem.train["x"].shape[1], 10 if task.measure == "accuracy" else 1
    problem = replace(
        problem, network=partial(perceptron, inputs, WIDTHS[task_name], outputs, layers=3)
    )
    return train(task, problem, who, rate, seed, updates_of(task, problem, who, rate))


def share_of_time(task_name: str, one: Outcome, full: Outcome) -> float | None:
    """Give the share of full training's time until its quality is reached, or None if never."""
    task = TASKS[task_name]
    wanted = full.quality[task.measure]

    def reached(value: float) -> bool:
        return value >= wanted if task.better == "higher" else value <= wanted

    if task.kind == "stream":
        there = reached(one.quality[task.measure])
        return one.seconds["all"] / full.seconds["all"] if there else None
    times = [seconds for _, seconds, value in one.curve if reached(value)]
    return min(times) / full.seconds["all"] if times else None


class Row(NamedTuple):
    """What came out for a contestant at a rate: values, and shares of full training's time."""

    full: float
    value: float
    time: float
    to_quality: float | None


def compared(task: str, name: str, rate: float, full: list[Outcome], data: Path | None) -> Row:
    """Run a contestant with the seeds of `full` and hold it against them."""
    ours = [run(task, name, rate, seed, data) for seed in range(len(full))]
    pairs = list(zip(ours, full, strict=True))
    shares = [share_of_time(task, one, whole) for one, whole in pairs]
    known = [share for share in shares if share is not None]
    measure = TASKS[task].measure
    return Row(
        statistics.fmean(one.quality[measure] for one in full),
        statistics.fmean(one.quality[measure] for one in ours),
        statistics.median(a.seconds["all"] / b.seconds["all"] for a, b in pairs),
        statistics.median(known) if 2 * len(known) > len(shares) else None,
    )


def main() -> None:
    """Print a row for each task, contestant and rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="as of benchmarks.evidence")
    parser.add_argument("--tasks", nargs="+", choices=WIDTHS, default=list(WIDTHS))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'task':<14}{'contestant':<16}{'rate':>5}{'full':>9}{'this':>9}{'time':>7}{'reached':>9}"
    )
    for task in options.tasks:
        full = [run(task, "full", 1.0, seed, options.data) for seed in range(options.seeds)]
        reached = []
        for name in ("uniform", "auto + serving"):
            for rate in RATES:
                row = compared(task, name, rate, full, options.data)
                if name != "uniform" and row.to_quality is not None:
                    reached.append(row.to_quality)
                shown = "never" if row.to_quality is None else f"{row.to_quality:.2f}"
                print(f"{task:<14}{name:<16}{rate:>5}{row.full:>9.4f}{row.value:>9.4f}", end="")
                print(f"{row.time:>7.2f}{shown:>9}", flush=True)
        best = f"{min(reached):.2f}" if reached else "never"
        print(f"{task}: reached after {best} of full training's time, target {TARGET}")


if __name__ == "__main__":
    main()
