"""What came out: figures of each arm, differences with their errors, and a verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from adasel_stream.costs import BACKWARD_FORWARDS
from adasel_stream.demo.arms import Arm
from adasel_stream.demo.plan import (
    ADASELECTION,
    FULL,
    LABELS,
    SAME_COST,
    SCORING,
    SERVING,
    UNIFORM,
)
from adasel_stream.demo.progressive import BLOCKS, Difference, paired_difference
from adasel_stream.demo.served import ServedArm

__all__ = ["HEADERS", "LEGEND", "Figures", "Served", "Summary", "row", "summarise"]

LEAST_UPDATES = 2 * BLOCKS
"""Fewer updates leave a model unchanged over a whole block of the stream; then blocks are no
repetitions, and their spread says nothing about luck."""

_SAYS = {
    "better": "does better than",
    "worse": "does worse than",
    "not distinguishable": "cannot be told apart from",
}

_COMPARED = {
    UNIFORM: "uniform selection with as many updates",
    SAME_COST: "uniform selection of the same cost",
}
_COMPARED_SERVED = {
    SCORING: "AdaSelection with scoring",
    UNIFORM: "uniform selection of the same cost",
    FULL: "full training",
}
"""What the verdict compares the subject with, the second where losses come from serving."""

HEADERS = ("run", "loss", "predicted/actual", "AUC", "updates", "passes", "vs full", "seconds")
"""Columns of the table that `row` fills."""

LEGEND = (
    "loss: of every flight, before it was trained on; passes: forward passes of one flight, a\n"
    "backward pass counted as two; seconds: processor time of training, and of choosing where\n"
    "it is not even"
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
        seconds: its cost as measured, processor time: training, and choosing where that is not
            even.
        accounting_s: seconds that are not counted, because the arm could do without: they serve
            the progressive loss.
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


class Served(NamedTuple):
    """What the second process did.

    Attributes:
        rows: losses that it wrote.
        seconds: processor time that its forward passes took.
        unknown: candidates whose loss the trainer did not know in time.
        turn_rows: flights between two models that were published.
    """

    rows: int
    seconds: float
    unknown: int
    turn_rows: int


@dataclass(frozen=True, slots=True)
class Summary:
    """The result of a run.

    Attributes:
        rows: samples of the stream.
        subject: name of the arm that the run is about.
        figures: of each arm, by name.
        against: differences of the subject's loss to that of each other arm, by name.
        served: what the second process did; None where losses come from scoring.
    """

    rows: int
    subject: str
    figures: dict[str, Figures]
    against: dict[str, Difference]
    served: Served | None = None

    def judged(self, name: str) -> str:
        """Say how the subject did beside another arm, in the words of `Difference.verdict`.

        After fewer than `LEAST_UPDATES` updates it is "too short to judge".
        """
        return "too short to judge" if self._too_short else self.against[name].verdict

    @property
    def _too_short(self) -> bool:
        return self.figures[self.subject].updates < LEAST_UPDATES

    def share_of_full(self, name: str, *, measured: bool) -> float:
        """Give an arm's cost as a share of full training's, in passes or in seconds."""
        one, full = self.figures[name], self.figures[FULL]
        return one.seconds / full.seconds if measured else one.passes / full.passes

    @property
    def verdict(self) -> str:
        """Say in words whether selection did better than uniform selection.

        The words follow from the paired difference and its error; nothing else goes in.
        """
        if self.served is None:
            return self._judgement("AdaSelection", _COMPARED)
        spent, scoring = (self.share_of_full(name, measured=False) for name in (SERVING, SCORING))
        judgement = self._judgement("AdaSelection with losses from serving", _COMPARED_SERVED)
        return (
            f"With losses from serving, AdaSelection needs {spent:.0%} of full training's passes; "
            f"with scoring, {scoring:.0%}. {judgement}"
        )

    def _judgement(self, who: str, others: Mapping[str, str]) -> str:
        """Say how the subject did beside other arms, or that it is too early to say."""
        ours = self.figures[self.subject]
        if self._too_short:
            return (
                f"Too few updates to compare AdaSelection with uniform selection: {ours.updates}, "
                f"and {LEAST_UPDATES} at least are needed; let it learn from more flights."
            )
        told = ". It ".join(
            f"{_SAYS[self.judged(name)]} {other}: loss {self.figures[name].loss:.4f}, difference "
            f"{self.against[name]}"
            for name, other in others.items()
        )
        return f"{who} (loss {ours.loss:.4f}) {told}. All ± are two standard errors."

    @property
    def cost(self) -> str:
        """Say what AdaSelection cost beside full training, by arithmetic and as measured."""
        if self.served is None:
            return self._cost_of(ADASELECTION, "AdaSelection")
        scoring = self._cost_of(SCORING, "With scoring, it")
        return f"{self._cost_of(SERVING, 'With losses from serving, AdaSelection')} {scoring}"

    def _cost_of(self, name: str, who: str) -> str:
        passes = self.share_of_full(name, measured=False)
        seconds = self.share_of_full(name, measured=True)
        return (
            f"{who} took {passes:.0%} of full training's passes by arithmetic ({_spared(passes)}) "
            f"and {seconds:.0%} of its seconds as measured ({_spared(seconds)})."
        )

    def numbers(self) -> dict[str, Any]:
        """Describe everything in values that JSON can hold; unknown numbers are None."""
        served = {} if self.served is None else {"served": self.served._asdict()}
        return {
            "rows": self.rows,
            "verdict": self.verdict,
            "cost": self.cost,
            "arms": {name: _plain(one._asdict()) for name, one in self.figures.items()},
            f"{self.subject}_minus": {
                name: _plain({"mean": one.mean, "error": one.error, "verdict": self.judged(name)})
                for name, one in self.against.items()
            },
            **served,
        }


def summarise(arms: Sequence[Arm], rows: int) -> Summary:
    """Collect the figures of all arms after `rows` samples; the first arm is the subject."""
    subject = arms[0]
    against = {
        arm.name: paired_difference(subject.learner.progressive, arm.learner.progressive)
        for arm in arms[1:]
    }
    figures = {arm.name: _figures(arm) for arm in arms}
    served = _served(subject) if isinstance(subject, ServedArm) else None
    return Summary(rows, subject.name, figures, against, served)


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
    scored = progressive.seen if arm.charges.scores else 0
    return Figures(
        name=arm.name,
        loss=progressive.loss,
        calibration=progressive.calibration,
        auc=progressive.auc,
        updates=arm.learner.updates,
        trained=trained,
        scored=scored,
        passes=scored + (1 + BACKWARD_FORWARDS) * trained,
        seconds=sum(spent[phase] for phase in arm.charges.cost),
        accounting_s=float(sum(spent[phase] for phase in arm.charges.comparison)),
    )


def _served(arm: ServedArm) -> Served:
    return Served(
        rows=arm.serving.rows,
        seconds=arm.serving.seconds,
        unknown=arm.metrics.score_rows["unknown"],
        turn_rows=arm.turn_rows,
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
