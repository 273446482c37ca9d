"""What came out: figures of each arm, differences with their errors, and a verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from adasel_stream.costs import BACKWARD_FORWARDS
from adasel_stream.demo.arms import Arm
from adasel_stream.demo.plan import ADASELECTION, FULL, LABELS, SAME_COST, UNIFORM
from adasel_stream.demo.progressive import BLOCKS, Difference, paired_difference

__all__ = ["HEADERS", "LEGEND", "Figures", "Summary", "row", "summarise"]

LEAST_UPDATES = 2 * BLOCKS
"""Fewer updates leave a model unchanged over a whole block of the stream; then blocks are no
repetitions, and their spread says nothing about luck."""

_SAYS = {
    "better": "does better than",
    "worse": "does worse than",
    "not distinguishable": "cannot be told apart from",
    "too short to judge": "made too few updates to be compared with",
}

HEADERS = ("run", "loss", "predicted/actual", "AUC", "updates", "passes", "vs full", "seconds")
"""Columns of the table that `row` fills."""

LEGEND = (
    "loss: of every flight, before it was trained on; passes: forward passes of one flight, a\n"
    "backward pass counted as two; seconds: training, and scoring where it serves to choose"
)
"""What the columns mean."""


class Figures(NamedTuple):
    """What one arm came to.

    Attributes:
        name: of the arm.
        loss: mean progressive-validation loss, in nats.
        calibration: predicted by actual rate of late flights.
        auc: area under the ROC curve of the progressive predictions.
        updates: optimizer steps.
        trained: samples that it was trained on.
        scored: samples that it had to score to choose.
        passes: its cost in forward passes of one sample, by arithmetic.
        seconds: its cost as measured: training, and choosing where that takes scoring.
        accounting_s: seconds of scoring and choosing that are not counted, because an even
            choice takes neither; they serve the progressive loss.
    """

    name: str
    loss: float
    calibration: float
    auc: float
    updates: int
    trained: int
    scored: int
    passes: float
    seconds: float
    accounting_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a run.

    Attributes:
        rows: samples of the stream.
        figures: of each arm, by name.
        against: differences of AdaSelection's loss to that of each other arm, by name.
    """

    rows: int
    figures: dict[str, Figures]
    against: dict[str, Difference]

    def judged(self, name: str) -> str:
        """Say how AdaSelection did beside another arm, in the words of `Difference.verdict`.

        After fewer than `LEAST_UPDATES` updates it is "too short to judge".
        """
        if self.figures[ADASELECTION].updates < LEAST_UPDATES:
            return "too short to judge"
        return self.against[name].verdict

    def share_of_full(self, name: str, *, measured: bool) -> float:
        """Give an arm's cost as a share of full training's, in passes or in seconds."""
        one, full = self.figures[name], self.figures[FULL]
        return one.seconds / full.seconds if measured else one.passes / full.passes

    @property
    def verdict(self) -> str:
        """Say in words whether selection did better than uniform selection.

        The words follow from the paired difference and its error; nothing else goes in.
        """
        ours, even = self.figures[ADASELECTION].loss, self.figures[UNIFORM].loss
        even_cost = self.figures[SAME_COST].loss
        at_updates, at_cost = self.against[UNIFORM], self.against[SAME_COST]
        return (
            f"AdaSelection {_SAYS[self.judged(UNIFORM)]} uniform selection with as many updates: "
            f"loss {ours:.4f} against {even:.4f}, difference {at_updates} (two standard errors). "
            f"It {_SAYS[self.judged(SAME_COST)]} uniform selection of the same cost: loss "
            f"{even_cost:.4f}, difference {at_cost}."
        )

    @property
    def cost(self) -> str:
        """Say what AdaSelection cost beside full training, by arithmetic and as measured."""
        passes = self.share_of_full(ADASELECTION, measured=False)
        seconds = self.share_of_full(ADASELECTION, measured=True)
        return (
            f"AdaSelection took {passes:.0%} of full training's passes by arithmetic "
            f"({_spared(passes)}) and {seconds:.0%} of its seconds as measured "
            f"({_spared(seconds)})."
        )

    def numbers(self) -> dict[str, Any]:
        """Describe everything in values that JSON can hold; unknown numbers are None."""
        return {
            "rows": self.rows,
            "verdict": self.verdict,
            "cost": self.cost,
            "arms": {name: _plain(one._asdict()) for name, one in self.figures.items()},
            "adaselection_minus": {
                name: _plain({"mean": one.mean, "error": one.error, "verdict": self.judged(name)})
                for name, one in self.against.items()
            },
        }


def summarise(arms: Sequence[Arm], rows: int) -> Summary:
    """Collect the figures of all arms after `rows` samples."""
    by_name = {arm.name: arm.learner.progressive for arm in arms}
    ours = by_name[ADASELECTION]
    against = {
        name: paired_difference(ours, theirs)
        for name, theirs in by_name.items()
        if name != ADASELECTION
    }
    return Summary(rows, {arm.name: _figures(arm) for arm in arms}, against)


def row(summary: Summary, name: str) -> tuple[str, ...]:
    """Give an arm's line of the final table, one text for each of `HEADERS`."""
    one = summary.figures[name]
    return (
        LABELS[one.name],
        f"{one.loss:.4f}",
        f"{one.calibration:.3f}",
        f"{one.auc:.3f}",
        f"{one.updates:,}",
        f"{one.passes:,.0f}",
        f"{summary.share_of_full(name, measured=False):.0%}",
        f"{one.seconds:.1f}",
    )


def _figures(arm: Arm) -> Figures:
    spent, progressive = arm.metrics.phase_seconds, arm.learner.progressive
    trained = arm.metrics.samples_selected
    scored = progressive.seen if arm.scores_to_select else 0
    choosing = spent["score"] + spent["select"]
    return Figures(
        name=arm.name,
        loss=progressive.loss,
        calibration=progressive.calibration,
        auc=progressive.auc,
        updates=arm.learner.updates,
        trained=trained,
        scored=scored,
        passes=scored + (1 + BACKWARD_FORWARDS) * trained,
        seconds=spent["train"] + (choosing if arm.scores_to_select else 0.0),
        accounting_s=0.0 if arm.scores_to_select else choosing,
    )


def _spared(share: float) -> str:
    """Say how much less than the whole a share is, or how much more.

    >>> _spared(0.4), _spared(1.25)
    ('60% saved', '25% more')
    """
    return f"{1 - share:.0%} saved" if share <= 1 else f"{share - 1:.0%} more"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
