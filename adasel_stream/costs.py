"""What a configuration can save, by arithmetic, before the first step."""

from typing import NamedTuple

__all__ = ["BACKWARD_FORWARDS", "Cost", "cost_of"]

BACKWARD_FORWARDS = 2.0
"""A backward pass costs about this many forward passes."""


class Cost(NamedTuple):
    """Compute for each candidate, as a share of training on it.

    Attributes:
        score: share that scoring takes.
        train: share that training on the selected rows takes.
        saved: 1 - score - train; negative when selection costs more than it spares.
        line: the same in a sentence.
    """

    score: float
    train: float
    saved: float
    line: str


def cost_of(sampling_rate: float, *, forward: bool, record: bool) -> Cost:
    """Weigh a scoring forward on every candidate against training on a share of them.

    Args:
        sampling_rate: in (0, 1].
        forward: whether candidates are scored by a forward pass.
        record: whether recorded losses may spare that pass.

    >>> round(cost_of(0.2, forward=True, record=False).saved, 2)
    0.47
    """
    whole = 1 + BACKWARD_FORWARDS
    score = 1 / whole if forward else 0.0
    saved = 1 - score - sampling_rate
    line = (
        f"adasel_stream: training on {sampling_rate:.0%} of the stream"
        + (f", scoring all of it at {score:.0%} of the cost of training," if forward else "")
        + f" can save {max(saved, 0):.0%} of full training's compute"
        + (f", up to {1 - sampling_rate:.0%} where losses are known" if forward and record else "")
        + f" (a backward pass taken as {BACKWARD_FORWARDS:g} forward passes)"
    )
    return Cost(score, sampling_rate, saved, line)
