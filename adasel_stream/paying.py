"""Is selection paying? What a run has seen of it, and whether it goes on or falls back.

A draw by scores pays where the gradient that it estimates varies less than an even draw's of as
many rows. Of a window, the candidates that are chosen from together, both can be known: the
squared distance of the drawn rows' weighted last-layer gradient from that of all candidates, and
the same for an even draw of as many rows that is made for comparison; to both the distance of the
candidates' own mean from the stream's is added, which no choice from them changes. With their means
over the last windows

    gain = 1 - squared error by scores / squared error of an even draw

is the share of uniform sampling's gradient noise that selection removes: at most 1 less the
sampling rate, as for training on all candidates. Without a last layer the
variances of independent draws, Σ g²(1/π - 1), stand in. Rows of the control arm tell them once they
are trained on: they were drawn evenly, whatever π the scores had proposed for them, and the
trainer's backward pass shows their gradients g.

`Watch` is what was seen, a frozen value; the functions take one and give the next. A run falls back
to an even draw for one of `REASONS` and comes back by itself, except where the arithmetic of a
configuration says from the start that it cannot pay. Nothing here touches a device.

Sources: Horvitz and Thompson 1952 for the variances; the delta method for the interval of their
ratio; Page 1954 for the cumulative sum that finds drift; Katharopoulos and Fleuret 2018, section
3.3, for weighing the gain by what it costs.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, NamedTuple

from adasel_stream.arguments import number

__all__ = [
    "REASONS",
    "Gain",
    "Rules",
    "Watch",
    "after_batch",
    "after_costs",
    "after_sight",
    "gain_of",
]

REASONS: Final = ("no_gain", "nonfinite_loss", "drift", "unseen", "cost")
"""Why a run falls back to an even draw."""

Reason = Literal["", "no_gain", "nonfinite_loss", "drift", "unseen", "cost"]

_SLACK: Final = 0.5
_ALARM: Final = 25.0
"""The loss has drifted once it was above its mean by this many standard deviations in sum, less
half of one a window: five windows of five, or fifty of one."""


_SUDDEN: Final = 3.0
"""Standard errors by which the last few windows must exclude a gain on their own: they are looked
at again and again, and one time in twenty would be often."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When to fall back, and when to come back.

    Attributes:
        control: share of the candidates that are the control arm, drawn evenly, in (0, 1).
        judged_by: what selection must not lose to uniform at: "updates", as many trained rows, or
            "time", as many rows as uniform trains on in the time that selection takes.
        window: windows of candidates that count, about: those that were compared, and their losses.
        least: such windows that must have been seen before anything is decided.
        hold: windows that a fall back for drift or losses that are not finite lasts.
        compare_every: one window in so many is compared with an even draw, and at first as many as
            must have been seen before anything is decided.
        probe_every: while there is no gain, one window in so many is scored, the others are drawn
            from unscored.
        nonfinite: share of losses that are not finite which is too many, in (0, 1).

    Raises:
        ValueError: a value out of its range.
        TypeError: a share that is no number.
    """

    control: float = 0.05
    judged_by: Literal["updates", "time"] = "updates"
    window: int = 400
    least: int = 50
    hold: int = 20
    compare_every: int = 8
    probe_every: int = 8
    nonfinite: float = 0.05

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("control", "nonfinite"):
            share = number(name, getattr(self, name))
            if not 0 < share < 1:
                raise ValueError(f"{name} must be in (0, 1), got {share}")
        for name in ("window", "least", "hold", "compare_every", "probe_every"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise ValueError(f"{name} must be a whole number of 1 or more, got {count!r}")
        if self.judged_by not in ("updates", "time"):
            raise ValueError(f"judged_by must be 'updates' or 'time', got {self.judged_by!r}")


class Gain(NamedTuple):
    """Gain over uniform sampling with an interval of two standard errors; NaN where unknown.

    It is the share of uniform sampling's gradient noise that selection removes, at most 1 less the
    sampling rate, and below 0 where selection adds to it. Judged by time, the noise is first
    multiplied by one plus the seconds of selecting for each of training: uniform sampling trains on
    so many more rows.
    """

    mean: float
    low: float
    high: float


_UNKNOWN: Final = Gain(math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Watch:
    """What was seen of a run, as far as it matters now.

    Attributes:
        reason: why the run has fallen back to an even draw; empty while it selects.
        since: windows since that was decided.
        batches: windows with known variances, at most those that count.
        sums: faded sums of ours, even, and squared-weight sums of their products.
        recent: the same of few windows, as many as must have been seen before anything is decided.
        scales: smoothed even variances of last-layer gradients of candidates and of trained rows,
            by which either is divided: their units differ, and both shrink as a model learns.
        level: smoothed mean loss of windows, its variance, and how many it knows; then the same of
            the control arm in windows that were not all scored, whose losses are of other rows.
        excess: cumulative sums of standardised losses above either mean.
        nonfinite: smoothed share of losses that are not finite.
        cost: seconds that selection takes for a row it emits, over those that training takes.
    """

    reason: Reason = ""
    since: int = 0
    batches: int = 0
    sums: tuple[float, ...] = (0.0,) * 5
    recent: tuple[float, ...] = (0.0,) * 5
    scales: tuple[float, ...] = (0.0,) * 2
    level: tuple[float, ...] = (0.0,) * 6
    excess: tuple[float, ...] = (0.0,) * 2
    nonfinite: float = 0.0
    cost: float = math.nan

    @property
    def stream_loss(self) -> float:
        """Smoothed mean loss of the stream before training, of whichever is known of more windows.

        NaN where nothing is known.
        """
        own, arm = self.level[:3], self.level[3:]
        mean, _, known = own if own[2] >= arm[2] else arm
        return mean if known else math.nan

    @property
    def selecting(self) -> bool:
        """Whether rows are drawn by their scores."""
        return not self.reason

    def scores(self, rules: Rules) -> bool:
        """Whether the next window shall be scored: always, or now and then as a probe."""
        if self.reason not in ("no_gain", "unseen", "cost"):
            return True
        return self.reason == "no_gain" and self.since % rules.probe_every == 0

    def state_dict(self) -> dict[str, Any]:
        """Describe what was seen, in plain data."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> "Watch":
        """Go on from what `state_dict` described."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in state.items()
        }
        return cls(**values)


def gain_of(watch: Watch, rules: Rules) -> Gain:
    """Estimate the gain over uniform, by what `rules` judge it.

    >>> gain_of(Watch(), Rules()).mean
    nan
    """
    return _gain(watch, rules, watch.sums, errors=2)


def _gain(watch: Watch, rules: Rules, sums: tuple[float, ...], *, errors: float) -> Gain:
    ours, even, *squares = sums
    price = 1 + watch.cost if rules.judged_by == "time" else 1.0
    if watch.batches < 2 or even <= 0 or math.isnan(price):  # an error needs two
        return _UNKNOWN
    ratio = ours / even
    spread = squares[0] - 2 * ratio * squares[1] + ratio * ratio * squares[2]
    margin = errors * math.sqrt(max(spread, 0.0)) / even
    return Gain(1 - ratio * price, 1 - (ratio + margin) * price, 1 - (ratio - margin) * price)


def after_batch(
    watch: Watch,
    rules: Rules,
    *,
    variances: tuple[float, float] | None = None,
    mean_loss: float = math.nan,
    nonfinite: float | None = None,
    trained: bool = False,
) -> Watch:
    """Take in what a window of candidates showed, or rows of it once trained on, and decide.

    Args:
        watch: what was seen before.
        rules: when to fall back.
        variances: of the gradient, drawn by scores and drawn evenly, or None if unknown.
        mean_loss: mean loss of rows that were drawn evenly or not at all; NaN if unknown.
        nonfinite: share of losses that were not finite, in [0, 1]; None if unknown.
        trained: whether it comes from rows that were trained on, whose window was heard of before.

    >>> watch, rules = Watch(), Rules(least=3)
    >>> for _ in range(3):
    ...     watch = after_batch(watch, rules, variances=(3.0, 2.0), mean_loss=1.0)
    >>> watch.reason, gain_of(watch, rules).mean
    ('no_gain', -0.5)
    """
    if variances is not None and all(map(math.isfinite, variances)) and variances[1] > 0:
        watch = _with_variances(watch, rules, *variances, kind=int(trained))
    watch = _with_level(watch, rules, mean_loss, kind=int(trained))
    if nonfinite is not None:
        smoothed = watch.nonfinite + (nonfinite - watch.nonfinite) / 20
        watch = replace(watch, nonfinite=smoothed)
    return _decided(replace(watch, since=watch.since + (not trained)), rules)


def after_costs(watch: Watch, *, selecting_s: float, training_s: float) -> Watch:
    """Take in the seconds that finding and that training emitted rows took lately.

    Args:
        watch: what was seen before; the rows came from a window that was scored.
        selecting_s: scoring and selection, in seconds.
        training_s: training, in seconds.
    """
    if not training_s > 0:
        return watch
    cost = selecting_s / training_s
    known = not math.isnan(watch.cost)
    return replace(watch, cost=watch.cost + (cost - watch.cost) / 50 if known else cost)


def after_sight(watch: Watch, *, seen: bool) -> Watch:
    """Take in whether gradients of trained rows can be seen, where losses alone are known.

    Args:
        watch: what was seen before.
        seen: whether they were, or time and again were not.

    >>> after_sight(Watch(), seen=False).reason
    'unseen'
    >>> after_sight(Watch(reason="unseen"), seen=True).selecting
    True
    """
    if watch.reason == "unseen" and seen:
        return replace(watch, reason="", since=0)
    return watch if seen or watch.reason in ("unseen", "cost") else _fallen(watch, "unseen")


def _with_variances(watch: Watch, rules: Rules, ours: float, even: float, kind: int) -> Watch:
    scale = watch.scales[kind]
    scale = scale + (even - scale) / 50 if scale else even
    scales = tuple(scale if place == kind else one for place, one in enumerate(watch.scales))
    watch, ours, even = replace(watch, scales=scales), ours / scale, even / scale
    # probes are few: what was seen before the fall back must not hold up the return
    window = rules.window if watch.selecting else min(rules.window, rules.least)
    new = (ours, even, ours * ours, ours * even, even * even)
    sums = _faded(watch.sums, new, window)
    recent = _faded(watch.recent, new, min(rules.least, window))
    return replace(watch, batches=min(watch.batches + 1, window), sums=sums, recent=recent)


def _faded(sums: tuple[float, ...], new: tuple[float, ...], window: int) -> tuple[float, ...]:
    """Add to sums over about so many windows; those of squares fade by the square."""
    keep = 1 - 1 / window
    fade = (keep, keep, keep**2, keep**2, keep**2)
    return tuple(f * s + n for f, s, n in zip(fade, sums, new, strict=True))


def _with_level(watch: Watch, rules: Rules, loss: float, kind: int) -> Watch:
    if not math.isfinite(loss):
        return watch
    levels, excesses = [watch.level[:3], watch.level[3:]], list(watch.excess)
    mean, variance, known = levels[kind]
    excess = 0.0
    if known >= rules.least and variance > 0:
        excess = max(0.0, excesses[kind] + (loss - mean) / math.sqrt(variance) - _SLACK)
    known = min(known + 1, float(rules.window))
    step = loss - mean
    mean += step / known
    variance += (step * (loss - mean) - variance) / known
    levels[kind], excesses[kind] = (mean, variance, known), excess
    return replace(watch, level=(*levels[0], *levels[1]), excess=tuple(excesses))


def _decided(watch: Watch, rules: Rules) -> Watch:
    gain = gain_of(watch, rules)
    if watch.reason in ("unseen", "cost"):
        return watch
    if watch.nonfinite > rules.nonfinite:
        return _fallen(watch, "nonfinite_loss")
    if max(watch.excess) > _ALARM:
        # the level is learnt anew; what speaks for or against selection stays, as drifts may repeat
        return _fallen(replace(watch, level=Watch().level, excess=Watch().excess), "drift")
    if watch.reason in ("drift", "nonfinite_loss"):
        return watch if watch.since < rules.hold else replace(watch, reason="", since=0)
    if watch.reason == "no_gain":
        return replace(watch, reason="", since=0) if gain.low > 0 else watch
    if watch.batches < min(rules.least, rules.window):
        return watch
    lost = _gain(watch, rules, watch.recent, errors=_SUDDEN).high < 0
    return _fallen(watch, "no_gain") if gain.high < 0 or lost else watch


def _fallen(watch: Watch, reason: Reason) -> Watch:
    return replace(watch, reason=reason, since=0)
