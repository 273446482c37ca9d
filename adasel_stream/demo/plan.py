"""Which arms there are, and what each of them may train on."""

from collections.abc import Callable, Sequence
from typing import Any

from adasel_stream.costs import BACKWARD_FORWARDS
from adasel_stream.demo.arms import Arm, FullArm, SelectingArm
from adasel_stream.demo.learner import BATCH_SIZE, Learner
from adasel_stream.methods import DEFAULT_METHODS

__all__ = [
    "ADASELECTION",
    "FULL",
    "LABELS",
    "SAME_COST",
    "UNIFORM",
    "candidates_for",
    "make_arms",
]

ADASELECTION, UNIFORM, SAME_COST, FULL = "adaselection", "uniform", "uniform_same_cost", "full"
"""Names of the arms, for files and metrics."""

LABELS = {
    ADASELECTION: "AdaSelection",
    UNIFORM: "uniform",
    SAME_COST: "uniform, same cost",
    FULL: "full training",
}
"""Names of the arms, for people."""


def make_arms(
    new_source: Callable[[int], Any],
    sizes: Sequence[int],
    rows: int,
    *,
    sampling_rate: float,
    seed: int,
) -> list[Arm]:
    """Make all contestants, equal but for what they train on.

    Args:
        new_source: opens the stream in batches of a given size, with `state_dict`.
        sizes: how many values each code can take.
        rows: samples of the stream.
        sampling_rate: share that AdaSelection and uniform train on, in (0, 1].
        seed: of first weights, the same for all, and of selection.

    Returns:
        AdaSelection; uniform at the same rate and so with as many updates; uniform with as many
        forward and backward passes as AdaSelection needs, scoring included; everything.
    """
    candidates = candidates_for(sampling_rate)
    arms: list[Arm] = [
        SelectingArm(
            name,
            new_source(candidates),
            Learner(sizes, rows, seed),
            methods=methods,
            sampling_rate=rate,
            scores_to_select=name == ADASELECTION,
            seed=seed,
        )
        for name, methods, rate in _plans(sampling_rate)
    ]
    return [*arms, FullArm(FULL, new_source(candidates), Learner(sizes, rows, seed))]


def _plans(sampling_rate: float) -> list[tuple[str, Sequence[str], float]]:
    """Give name, methods and rate of the arms that select."""
    same_cost = min(1.0, sampling_rate + 1 / (1 + BACKWARD_FORWARDS))
    return [
        (ADASELECTION, DEFAULT_METHODS, sampling_rate),
        (UNIFORM, ("uniform",), sampling_rate),
        (SAME_COST, ("uniform",), same_cost),
    ]


def candidates_for(sampling_rate: float) -> int:
    """Give the size of candidate batch of which one update's samples are selected.

    >>> candidates_for(0.2)
    320
    """
    return round(BATCH_SIZE / sampling_rate)
