"""Which arms there are, what each of them may train on, and in which turns."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from adasel_stream.costs import BACKWARD_FORWARDS
from adasel_stream.demo.arms import BY_SCORING, EVEN, Arm, Charges, FullArm, SelectingArm
from adasel_stream.demo.learner import BATCH_SIZE, Learner
from adasel_stream.demo.served import ServedArm
from adasel_stream.demo.serving import Serving
from adasel_stream.demo.stopwatch import Stopwatch
from adasel_stream.loader import SelectingLoader
from adasel_stream.metrics import Metrics
from adasel_stream.policies import auto

__all__ = [
    "ADASELECTION",
    "FULL",
    "LABELS",
    "PAINTS",
    "SAME_COST",
    "SCORING",
    "SCORING_COST",
    "SERVING",
    "UNIFORM",
    "ahead_rows",
    "candidates_for",
    "make_arms",
    "turn_rows",
    "turns",
]

ADASELECTION, UNIFORM, SAME_COST, FULL = "adaselection", "uniform", "uniform_same_cost", "full"
"""Names of the arms, for files and metrics."""

SERVING, SCORING = "adaselection_serving", "adaselection_scoring"
SCORING_COST = "uniform_scoring_cost"
"""Names where AdaSelection runs twice, with losses from serving and with scoring."""

LABELS = {
    ADASELECTION: "AdaSelection",
    SERVING: "AdaSelection, serving",
    SCORING: "AdaSelection, scoring",
    UNIFORM: "uniform",
    SAME_COST: "uniform, same cost",
    SCORING_COST: "uniform, scoring's cost",
    FULL: "full training",
}
"""Names of the arms, for people."""

PAINTS = {
    ADASELECTION: 0,
    SCORING: 0,
    SERVING: 1,
    UNIFORM: 2,
    SAME_COST: 3,
    SCORING_COST: 3,
    FULL: 4,
}
"""Numbers of the arms' colours, in all charts; arms of the same kind have the same."""

_TURNS = 128


def make_arms(
    new_source: Callable[[int], Any],
    sizes: Sequence[int],
    rows: int,
    *,
    sampling_rate: float,
    seed: int,
    serving: Serving | None = None,
) -> list[Arm]:
    """Make all contestants, equal but for what they train on.

    Args:
        new_source: opens the stream in batches of a given size, with `state_dict`.
        sizes: how many values each code can take.
        rows: samples of the stream.
        sampling_rate: share that AdaSelection and uniform train on, in (0, 1].
        seed: of first weights, the same for all, and of selection.
        serving: what gives losses of the first arm, or None to do without that arm.

    Returns:
        AdaSelection with losses from serving; AdaSelection with scoring; uniform at the same rate
        and so with as many updates; uniform with as many forward and backward passes as
        AdaSelection with scoring needs; everything.
    """
    candidates = candidates_for(sampling_rate)

    def learner() -> Learner:
        return Learner(sizes, rows, seed)

    arms: list[Arm] = []
    if serving is not None:
        arms.append(
            ServedArm(
                SERVING,
                new_source(candidates),
                learner(),
                serving=serving,
                turn_rows=turn_rows(rows, sampling_rate),
                ahead_rows=ahead_rows(sampling_rate),
                sampling_rate=sampling_rate,
                seed=seed,
            )
        )
    for name, methods, rate, charges in _plans(sampling_rate, beside_serving=serving is not None):
        source = new_source(candidates)
        arms.append(_selecting(name, source, learner(), methods, rate, seed, charges))
    return [*arms, FullArm(FULL, new_source(candidates), learner())]


def _plans(
    sampling_rate: float, *, beside_serving: bool
) -> list[tuple[str, Sequence[str], float, Charges]]:
    """Give name, methods, rate and charges of the arms for which samples are scored."""
    same_cost = min(1.0, sampling_rate + 1 / (1 + BACKWARD_FORWARDS))
    ours, theirs = (SCORING, SCORING_COST) if beside_serving else (ADASELECTION, SAME_COST)
    return [
        (ours, auto().methods, sampling_rate, BY_SCORING),
        (UNIFORM, ("uniform",), sampling_rate, EVEN),
        (theirs, ("uniform",), same_cost, EVEN),
    ]


def _selecting(
    name: str,
    source: Any,
    learner: Learner,
    methods: Sequence[str],
    sampling_rate: float,
    seed: int,
    charges: Charges,
) -> SelectingArm:
    watch = Stopwatch()
    policy = "auto" if len(methods) > 1 else "unbiased"
    metrics = Metrics(
        methods,
        run=name,
        sampling_rate=sampling_rate,
        batch_size=BATCH_SIZE,
        policy=policy,
        clock=watch,
    )
    loader = SelectingLoader(
        source,
        score=learner.score,
        model=learner.network,
        sampling_rate=sampling_rate,
        policy=policy,
        methods=methods,
        batch_size=BATCH_SIZE,
        seed=seed,
        metrics=metrics,
    )
    return SelectingArm(loader, learner, watch, charges)


def candidates_for(sampling_rate: float) -> int:
    """Give the size of candidate batch of which one update's samples are selected.

    >>> candidates_for(0.2)
    320
    """
    return round(BATCH_SIZE / sampling_rate)


def turn_rows(rows: int, sampling_rate: float) -> int:
    """Give the samples of one turn: about a 128th of the stream, in whole candidate batches.

    >>> turn_rows(327_346, 0.2), turn_rows(4000, 0.2)
    (2240, 320)
    """
    batch = candidates_for(sampling_rate)
    return batch * max(1, rows // (batch * _TURNS))


def ahead_rows(sampling_rate: float) -> int:
    """Give how many samples past the end of its turn an arm reads at most.

    A candidate batch that ends before the turn may fill no batch, and the next one then does.

    >>> ahead_rows(0.2)
    640
    """
    return 2 * candidates_for(sampling_rate)


def turns(rows: int, sampling_rate: float, done: int = 0) -> Iterator[float]:
    """Say up to which sample each turn goes, the last one to the end of the stream.

    Args:
        rows: samples of the stream.
        sampling_rate: share of candidates to train on.
        done: turns that are over.

    >>> list(turns(1000, 0.2)), list(turns(1000, 0.2, done=2))
    ([320, 640, inf], [inf])
    """
    step = turn_rows(rows, sampling_rate)
    # a turn never ends inside the last batch: its rows would wait with nothing to follow
    last = rows - candidates_for(sampling_rate)
    yield from range((done + 1) * step, last, step)
    yield math.inf
