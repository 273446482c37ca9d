"""Is there little left to learn? An advisory indicator, and a callback.

Little is left where the mean loss of rows that nothing was chosen by, taken before they are trained
on, no longer improves; and, where that is asked for, where selection has nothing to prefer either.
Each gives a confidence, and the indicator is the lesser of the two: a confidence that both hold.

**The loss.** Mean losses of windows, which are candidates that are chosen from together, are
averaged in 16 to 32 blocks, so that they are close to normal. A line through the blocks gives the
improvement d over `horizon` windows and, from what the line leaves over, its standard error e;
where neighbouring blocks are alike by a correlation ρ, e grows by √((1+ρ)/(1-ρ)). With
δ = `least_improvement` · |mean loss|

    confidence = T((δ - |d|) / e),   T Student's distribution of (blocks - 2) degrees of freedom,

which is near 1 where the loss is flat, 0 where it improves or rises, and in between where the noise
hides which. While e > δ/3 hides it more is looked at, by pairs of blocks that become one, and the
number of blocks stays. An improvement below δ counts as none; one that noise hides is not denied.

**Selection.** It has nothing to prefer where its gain over uniform sampling (`paying.Gain`) is
below `least_gain`, with the confidence that the gain's interval gives. An unknown gain, as under a
policy that keeps no control arm, leaves the loss alone to say. It is not asked for by default: a
gain in gradient noise lasts as long as rows differ, so that under a policy that draws by gradients
it says little about what is left to learn.

Once the indicator has been at `confidence` for a quarter of the blocks, the callback is called:
once. A cumulative sum of later blocks above the level of then tells when the loss has risen for
good; that arms the callback anew, and what was seen before is forgotten.

Sources: Schuirmann 1987 for the test that a difference is small; Berger 1982 for the lesser of two
confidences; Page 1954 for the cumulative sum. The paper names such an indicator as future work
(section 5) and leaves open what it is.
"""

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from adasel_stream.arguments import number
from adasel_stream.loss_batch import LARGEST_LOSS
from adasel_stream.paying import Gain
from adasel_stream.trend import error_of, normal, student, trend_of

__all__ = ["StopIndicator", "indicator_for"]

_log = logging.getLogger(__name__)

_BLOCKS: Final = 32
_HELD: Final = _BLOCKS // 4

_HIDES: Final = 1 / 3
"""A standard error of more than this share of δ hides whether the loss improves by δ."""

_SLACK: Final = 1.0
_ALARM: Final = 12.0
"""The loss has risen once its blocks were above the level by this many deviations in sum, less one
deviation a block."""


@dataclass(slots=True)
class _Seen:
    """What was seen since the loss rose last, and counts of the whole run.

    Attributes:
        length: windows of a block.
        blocks: mean losses of the last whole blocks, oldest first, at most `_BLOCKS`.
        losses: number and sum of mean losses of the block that is under way.
        gains: number of known gains of that block, their sum, and that of their upper ends.
        value: the indicator at the end of the last block.
        held: blocks in a row at whose end the indicator was at the confidence that is asked for.
        armed: whether the callback is still to be called.
        level: mean loss when little was left, or the lowest since.
        noise: deviation of a block from that level by chance.
        excess: cumulative sum of blocks above it.
        alarms: calls of the callback, or what would have been such.
        ignored: mean losses that were not finite.
        failures: calls of the callback that raised.
    """

    length: int
    blocks: list[float] = field(default_factory=list)
    losses: tuple[int, float] = (0, 0.0)
    gains: tuple[int, float, float] = (0, 0.0, 0.0)
    value: float = 0.0
    held: int = 0
    armed: bool = True
    level: float = 0.0
    noise: float = 0.0
    excess: float = 0.0
    alarms: int = 0
    ignored: int = 0
    failures: int = 0


class StopIndicator:
    """Say from the stream's mean losses, and selection's gain, how little is left to learn.

    It advises and stops nothing. The memory that it takes is constant.

    Args:
        on_little_left: called with a sentence that says why, once until the loss rises again; what
            it raises is logged the first time, counted in `failures`, and goes no further.
        horizon: windows, at least 64, of which one is what an update's rows are chosen from; an
            improvement is a fall of the loss in so many.
            Losses that come and go, such as by day, should do so within four horizons.
        least_improvement: the smallest improvement that is worth training for, as a share of the
            loss, in (0, 1). Of a loss near 0 that can be negative it is nearly nothing, and the
            indicator then stays low.
        least_gain: a gain over uniform sampling from which on selection still has something to
            prefer, in (0, 1), so that little cannot be left; None to go by the loss alone.
        confidence: of the indicator at which the callback is called, in (0.5, 1).

    Raises:
        ValueError: an argument out of its range.
        TypeError: a horizon that is no whole number, another argument that is none, or a callback
            that cannot be called with a sentence.

    Source: section 5, and the sources that the module names.

    >>> stop = StopIndicator(print, horizon=64)
    >>> for step in range(200):
    ...     stop.observe(2.0)
    little is left to learn: the mean loss, 2, improves by 0 ± 0 in 64 windows
    >>> stop.value, stop.armed
    (1.0, False)
    """

    def __init__(
        self,
        on_little_left: Callable[[str], object] | None = None,
        *,
        horizon: int = 2048,
        least_improvement: float = 0.01,
        least_gain: float | None = None,
        confidence: float = 0.95,
    ) -> None:
        """Begin armed, with nothing seen."""
        if on_little_left is not None and not callable(on_little_left):
            raise TypeError(
                "the callback on_little_left must be a function of a sentence, got "
                f"{type(on_little_left).__name__}"
            )
        if on_little_left is not None:
            _check_takes_a_sentence(on_little_left)
        if not isinstance(horizon, int) or isinstance(horizon, bool):
            raise TypeError(f"horizon must be a whole number, got {type(horizon).__name__}")
        if horizon < 2 * _BLOCKS:
            raise ValueError(f"horizon must be at least {2 * _BLOCKS}, got {horizon}")
        for name, share, least in (
            ("least_improvement", least_improvement, 0.0),
            ("least_gain", least_gain, 0.0),
            ("confidence", confidence, 0.5),
        ):
            if share is not None and not least < number(name, share) < 1:
                raise ValueError(f"{name} must be in ({least:g}, 1), got {share}")
        self._on_little_left = on_little_left
        self._horizon = horizon
        self._least_improvement = least_improvement
        self._least_gain = least_gain
        self._confidence = confidence
        self._seen = _Seen(-(-horizon // _BLOCKS))

    @property
    def settings(self) -> dict[str, float | None]:
        """The numbers; a snapshot is only loaded under those it was taken with."""
        return {
            "horizon": self._horizon,
            "least_improvement": self._least_improvement,
            "least_gain": self._least_gain,
            "confidence": self._confidence,
        }

    @property
    def value(self) -> float:
        """How little is left to learn, in [0, 1]: 1 for little; 0 until `horizon` is known."""
        return self._seen.value

    @property
    def armed(self) -> bool:
        """Whether the callback is still to be called."""
        return self._seen.armed

    @property
    def counts(self) -> dict[str, int]:
        """Monotone counts: alarms, ignored (mean losses not finite), failures (of the callback)."""
        return {name: getattr(self._seen, name) for name in ("alarms", "ignored", "failures")}

    def observe(self, mean_loss: float, gain: Gain | None = None) -> None:
        """Take in one window.

        Args:
            mean_loss: mean loss, before training, of rows that were not chosen by their losses: of
                all candidates, or of the control arm; ignored and counted where not finite.
            gain: gain over uniform sampling as it is known now; None or NaN where it is not.
        """
        seen = self._seen
        if not math.isfinite(mean_loss):
            seen.ignored += 1
            return
        loss = min(max(float(mean_loss), -LARGEST_LOSS), LARGEST_LOSS)
        count, total = seen.losses[0] + 1, seen.losses[1] + loss
        seen.losses = (count, total)
        if gain is not None and math.isfinite(gain.mean) and math.isfinite(gain.high):
            known, mean, high = seen.gains
            seen.gains = (known + 1, mean + float(gain.mean), high + float(gain.high))
        if count >= seen.length:
            self._end_block(total / count)

    def state_dict(self) -> dict[str, Any]:
        """Describe what was seen, in plain data."""
        return asdict(self._seen)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, of an indicator of the same arguments."""
        plain: dict[str, Any] = {**state, "blocks": list(state["blocks"])}
        self._seen = _Seen(**plain)

    def _end_block(self, mean: float) -> None:
        seen = self._seen
        seen.blocks = [*seen.blocks, mean][-_BLOCKS:]
        gain, seen.losses, seen.gains = seen.gains, (0, 0.0), (0, 0.0, 0.0)
        if not seen.armed and self._risen(mean):
            return
        if len(seen.blocks) * seen.length < self._horizon:
            return
        trend = trend_of(seen.blocks)
        worth = self._least_improvement * abs(trend.level)
        scale = self._horizon / seen.length  # from one block to the horizon
        fall, error = scale * trend.fall, scale * trend.error
        seen.value = min(
            student(worth - abs(fall), error, len(seen.blocks) - 2),
            1.0 if self._least_gain is None else _nothing_to_prefer(gain, self._least_gain),
        )
        seen.held = seen.held + 1 if seen.value >= self._confidence else 0
        if not seen.armed:
            seen.level = min(seen.level, trend.level)
        elif seen.held >= _HELD:
            seen.armed, seen.level, seen.noise = False, trend.level, max(trend.noise, worth)
            self._tell(trend.level, fall, error, gain)
        elif abs(fall) - 2 * error < worth < error / _HIDES:
            self._widen(worth / scale)

    def _risen(self, mean: float) -> bool:
        """Add a block to the cumulative sum, and begin anew where that says that the loss rose."""
        seen = self._seen
        above = (mean - seen.level) / max(seen.noise, np.finfo(np.float64).tiny)
        seen.excess = max(0.0, seen.excess + above - _SLACK)
        if seen.excess <= _ALARM:
            return False
        _log.info("the mean loss has risen from %.4g to %.4g: learning goes on", seen.level, mean)
        self._seen = _Seen(-(-self._horizon // _BLOCKS))
        self._seen.alarms, self._seen.ignored = seen.alarms, seen.ignored
        self._seen.failures = seen.failures
        return True

    def _widen(self, worth: float) -> None:
        """Make one block of two, to look at twice as many windows.

        Only once all blocks are taken, and where what hides an improvement of `worth` a block is
        the noise of the newer half, not a bend that will be left behind.
        """
        seen = self._seen
        if len(seen.blocks) < _BLOCKS:
            return
        newer = trend_of(seen.blocks[_BLOCKS // 2 :])
        if error_of(newer.noise, _BLOCKS) > _HIDES * worth:
            seen.blocks = np.reshape(seen.blocks, (-1, 2)).mean(1).tolist()
            seen.length *= 2

    def _tell(
        self, level: float, fall: float, error: float, gain: tuple[int, float, float]
    ) -> None:
        seen = self._seen
        seen.alarms += 1
        reason = (
            f"little is left to learn: the mean loss, {level:.4g}, improves by {fall:.2g} ± "
            f"{2 * error:.2g} in {self._horizon} windows"
        )
        if gain[0]:
            reason += f", and selection gains {100 * gain[1] / gain[0]:.2g} % over a uniform draw"
        _log.info(reason)
        if self._on_little_left is None:
            return
        try:
            self._on_little_left(reason)
        except Exception:  # whatever it raises: an adviser does not end the training
            seen.failures += 1
            if seen.failures == 1:
                _log.exception(
                    "on_little_left raised; training goes on, and later ones are counted"
                )


def _check_takes_a_sentence(callback: Callable[[str], object]) -> None:
    """Find out now, as it may be called in weeks only.

    Raises:
        TypeError: it takes no argument, or more than one.
    """
    try:
        taken = inspect.signature(callback)
    except (TypeError, ValueError):  # some built-in functions do not tell
        return
    try:
        taken.bind("")
    except TypeError as error:
        raise TypeError(
            "the callback on_little_left is called with one sentence, which it does not take: "
            f"{error}"
        ) from None


def _nothing_to_prefer(gain: tuple[int, float, float], least: float) -> float:
    """Give the confidence that the gain, summed with its interval's end, is below the least."""
    known, mean, high = gain
    if not known:
        return 1.0
    margin, error = least - mean / known, (high - mean) / known / 2
    return normal(margin / error) if error > 0 else float(margin > 0)


def indicator_for(stop: StopIndicator | None) -> StopIndicator:
    """Give the indicator that was passed, or one that calls nobody.

    Raises:
        TypeError: it is something else, such as the callback itself.

    >>> indicator_for(None).value
    0.0
    """
    if stop is None:
        return StopIndicator()
    if not isinstance(stop, StopIndicator):
        raise TypeError(f"stop must be such as StopIndicator(callback), got {type(stop).__name__}")
    return stop
