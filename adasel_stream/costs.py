"""What a configuration can save, by arithmetic, before the first step."""

import sys
import warnings
from typing import NamedTuple

__all__ = ["BACKWARD_FORWARDS", "Cost", "cost_of", "tell"]

BACKWARD_FORWARDS = 2.0
"""A backward pass costs about this many forward passes."""


class Cost(NamedTuple):
    """Compute for each candidate, as a share of training on it.

    Attributes:
        score: share that scoring takes.
        train: share that training on the selected rows takes.
        saved: 1 - score - train; negative when selection costs more than it spares.
        pays: whether anything can be saved, at best where losses are known.
        line: the same in a sentence.
    """

    score: float
    train: float
    saved: float
    pays: bool
    line: str


def cost_of(
    sampling_rate: float,
    *,
    forward: bool,
    record: bool,
    proxy: bool = False,
    gives_up: bool = False,
) -> Cost:
    """Weigh a scoring forward on every candidate against training on a share of them.

    Args:
        sampling_rate: in (0, 1].
        forward: whether candidates are scored by a forward pass.
        record: whether recorded losses may spare that pass.
        proxy: whether something cheaper scores, of unknown cost.
        gives_up: whether rows are drawn evenly, and nothing is scored, where scoring cannot pay.

    >>> round(cost_of(0.2, forward=True, record=False).saved, 2)
    0.47
    """
    whole = 1 + BACKWARD_FORWARDS
    score = 1 / whole if forward else 0.0
    saved = round(1 - score - sampling_rate, 12)
    at_best = 1 - sampling_rate if record else saved
    pays = at_best > 0
    evenly = gives_up and not pays
    if evenly:
        score, saved = 0.0, 1 - sampling_rate
    scoring = [
        (evenly, ", drawn evenly and not scored,"),
        (forward, f", scoring all of it at {_percent(score)} of the cost of training,"),
        (proxy, ", scoring all of it by a proxy that is not counted here,"),
    ]
    line = (
        f"adasel_stream: training on {_percent(sampling_rate)} of the stream"
        + next((words for holds, words in scoring if holds), "")
        + (
            f" can save {_percent(saved)} of full training's compute"
            if saved >= 0
            else f" costs {_percent(-saved)} more than full training"
        )
        + (
            f", up to {_percent(at_best)} where losses are known"
            if forward and record and pays
            else ""
        )
        + f" (a backward pass taken as {BACKWARD_FORWARDS:g} forward passes)"
    )
    return Cost(score, sampling_rate, saved, pays, line)


def tell(cost: Cost, *, stacklevel: int) -> None:
    """Print the cost to stderr, and warn at the caller's line when selection cannot pay.

    Args:
        cost: what to tell.
        stacklevel: how many calls above this one the caller is.
    """
    print(cost.line, file=sys.stderr)
    if not cost.pays:
        warnings.warn(
            f"selection cannot pay at sampling_rate={cost.train:g}: scoring costs at least as much "
            "as it spares; lower the rate, or select from recorded losses",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
