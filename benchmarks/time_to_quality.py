"""Time to full training's quality with losses that serving has recorded, at one sampling rate.

Tasks of `benchmarks/evidence` with networks so wide that a training step takes milliseconds, as it
does in production, where the evidence's own take a third of one and Python the rest. Full training
goes through all candidates; `auto` through the same ones by recorded losses at a rate. What counts
is processor time, and for each the share of full training's after which it is as good as full
training ends: of a stream the time for all of it, if the loss over it is no higher. Losses come
from a model that is put into service every 20 updates, whose passes are not the trainer's.

Over epochs full training goes on until it gains no more (`LONGER`), since who still gains would
train on. Less training may then do as well without any selection, so uniform sampling at the same
rate is beside it.

Each contestant has the learning rate that did best for it with another seed: who makes fewer
updates may take larger steps, if its gradients allow. Medians over seeds, of which one that never
gets there counts as infinite.
"""

import argparse
import math
import statistics
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.evidence.contestants import CONTESTANTS
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.tasks.networks import perceptron
from benchmarks.evidence.training import Outcome, train, updates_of

WIDE = ("line", "bike-daily", "bike-hourly", "flights", "fashion-20-wrong", "click")
WIDTH = 1024
"""Units of each of three hidden layers."""

LONGER = {"bike-daily": 3, "fashion-20-wrong": 8}
"""How many times longer than in the evidence full training goes on until it gains no more."""

FACTORS = (0.25, 0.5)
"""Learning rates to try, as multiples of a task's own, which is set for up to 128 units."""

TUNING_SEED = 100
TARGET = 0.5


class Run(NamedTuple):
    """Who trains, on which task, at which sampling rate and multiple of the learning rate."""

    task: str
    contestant: str
    rate: float
    factor: float
    data: Path | None

    def seeds(self, seeds: Iterable[int]) -> list[Outcome]:
        """Train with each of the seeds."""
        return [outcome(self, seed) for seed in seeds]


def outcome(this: Run, seed: int) -> Outcome:
    """Train with a wide network."""
    task, who = TASKS[this.task], CONTESTANTS[this.contestant]
    task = replace(
        task,
        learning_rate=task.learning_rate * this.factor,
        updates=task.updates * LONGER.get(this.task, 1),
    )
    problem = task.make(this.data, seed)
    inputs, outputs = problem.train["x"].shape[1], 10 if task.measure == "accuracy" else 1
    problem = replace(problem, network=partial(perceptron, inputs, WIDTH, outputs, layers=3))
    return train(task, problem, who, this.rate, seed, updates_of(task, problem, who, this.rate))


def tuned(task: str, contestant: str, rate: float, data: Path | None) -> Run:
    """Find the learning rate that does best with a seed that counts for nothing else."""
    sign = 1 if TASKS[task].better == "lower" else -1

    def badness(this: Run) -> float:
        value = sign * outcome(this, TUNING_SEED).quality[TASKS[task].measure]
        return value if math.isfinite(value) else math.inf

    return min((Run(task, contestant, rate, factor, data) for factor in FACTORS), key=badness)


def share_of_time(task_name: str, one: Outcome, full: Outcome) -> float:
    """Give the share of full training's time until its quality is reached, infinite if never."""
    task = TASKS[task_name]
    wanted = full.quality[task.measure]

    def reached(value: float) -> bool:
        return value >= wanted if task.better == "higher" else value <= wanted

    if task.kind == "stream":
        there = reached(one.quality[task.measure])
        return one.seconds["all"] / full.seconds["all"] if there else math.inf
    times = [seconds for _, seconds, value in one.curve if reached(value)]
    return min(times) / full.seconds["all"] if times else math.inf


def main() -> None:
    """Print a row for each task and contestant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="as of benchmarks.evidence")
    parser.add_argument("--tasks", nargs="+", choices=WIDE, default=list(WIDE))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'task':<18}{'contestant':<16}{'step':>7}", end="")
    print(f"{'full':>9}{'this':>9}{'time':>7}{'reached':>9}", flush=True)
    seeds, reaching = range(options.seeds), 0
    for task in options.tasks:
        measure = TASKS[task].measure
        whole = tuned(task, "full", 1.0, options.data)
        full = whole.seeds(seeds)
        for name in ("uniform", "auto + serving"):
            own = tuned(task, name, options.rate, options.data)
            ours = own.seeds(seeds)
            pairs = list(zip(ours, full, strict=True))
            time = statistics.median(a.seconds["all"] / b.seconds["all"] for a, b in pairs)
            reached = statistics.median(share_of_time(task, *pair) for pair in pairs)
            reaching += name != "uniform" and reached <= TARGET
            values = [
                statistics.fmean(one.quality[measure] for one in runs) for runs in (full, ours)
            ]
            print(f"{task:<18}{name:<16}{own.factor / whole.factor:>6}x", end="")
            print(f"{values[0]:>9.4f}{values[1]:>9.4f}{time:>7.2f}{reached:>9.2f}", flush=True)
    print(f"reached within {TARGET} of full training's time on {reaching} tasks, target 3")


if __name__ == "__main__":
    main()
