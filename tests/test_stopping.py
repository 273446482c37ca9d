import json
import logging
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream.paying import Gain
from adasel_stream.stopping import StopIndicator

HORIZON = 256
"""Batches within which a loss must improve by 1 %."""

Floats = npt.NDArray[np.float64]


def times(horizons: int) -> Floats:
    """Count horizons, one value a candidate batch."""
    return np.arange(horizons * HORIZON) / HORIZON


def noisy(mean: Floats, seed: int, *, spread: float = 0.05, alike: float = 0.0) -> list[float]:
    """Scatter mean losses by a factor; neighbours are alike by a correlation."""
    noise = np.random.default_rng(seed).normal(size=len(mean))
    for i in range(1, len(mean) if alike else 0):
        noise[i] = alike * noise[i - 1] + math.sqrt(1 - alike**2) * noise[i]
    losses: list[float] = (mean * np.exp(spread * noise - spread**2 / 2)).tolist()
    return losses


def learnt(t: Floats) -> Floats:
    """Fall from 3 to 1; from 5.3 horizons on by less than 1 % in a horizon."""
    return 1 + 2 * np.exp(-t)


def alarms(
    losses: list[float], gain: Gain | None = None, least_gain: float | None = 0.1
) -> tuple[list[float], StopIndicator]:
    """Give the horizons at which the callback was called, and the indicator afterwards."""
    when: list[float] = []
    now = 0
    stop = StopIndicator(
        lambda _: when.append(now / HORIZON), horizon=HORIZON, least_gain=least_gain
    )
    for now, loss in enumerate(losses, 1):  # noqa: B007 # the callback reads it
        stop.observe(loss, gain)
    return when, stop


@pytest.mark.parametrize("alike", [0.0, 0.5])
@pytest.mark.parametrize("spread", [0.02, 0.1])
def test_no_false_alarm_while_the_loss_improves(spread: float, alike: float) -> None:
    """Twice the least improvement that counts: no alarm in 100 runs of 20 horizons."""
    mean = np.exp(-0.02 * times(20))
    calls = [alarms(noisy(mean, seed, spread=spread, alike=alike))[0] for seed in range(100)]
    assert calls == [[]] * 100


@pytest.mark.parametrize("period", [0.3, 1.0, 4.0])
def test_no_false_alarm_where_losses_come_and_go(period: float) -> None:
    """Cycles of ± 5 % and up to four horizons do not look like a plateau: none in 10 runs."""
    t = times(20)
    mean = np.exp(-0.04 * t) * (1 + 0.05 * np.sin(2 * np.pi * t / period))
    assert [alarms(noisy(mean, seed))[0] for seed in range(10)] == [[]] * 10


@pytest.mark.parametrize(
    ("spread", "alike", "latest"), [(0.01, 0.0, 8), (0.05, 0.0, 12), (0.05, 0.5, 16)]
)
def test_a_plateau_is_found(spread: float, alike: float, latest: int) -> None:
    """Every time in 20 runs, not before the loss is flat, and later the more noise there is."""
    mean = learnt(times(24))
    for seed in range(20):
        when, stop = alarms(noisy(mean, seed, spread=spread, alike=alike))
        assert len(when) == 1
        assert 5.3 <= when[0] <= latest
        assert not stop.armed


def test_a_plateau_does_not_arm_it_again() -> None:
    """In 10 runs of 100 horizons after the alarm: one call each, and the loss has not risen."""
    for seed in range(10):
        when, stop = alarms(noisy(learnt(times(110)), seed, spread=0.03))
        assert len(when) == 1
        assert not stop.armed


@pytest.mark.parametrize(("jump", "within"), [(0.05, 1.0), (0.2, 0.3)])
def test_a_jump_arms_it_again(jump: float, within: float) -> None:
    """Drift is noticed, the larger the sooner; once it is learnt there is one more call."""
    t = times(40)
    risen = np.where(t >= 18, jump * np.exp(-(t - 18) / 2), 0.0)
    for seed in range(10):
        losses = noisy(learnt(t) + risen, seed, spread=0.02)
        soon = int((18 + within) * HORIZON)
        when, stop = alarms(losses[:soon])
        assert len(when) == 1
        assert stop.armed
        assert stop.value == 0.0
        assert len(alarms(losses)[0]) == 2


def test_a_rising_loss_is_no_plateau() -> None:
    """What gets worse can be learnt: the indicator stays at 0."""
    when, stop = alarms(noisy(np.exp(0.05 * times(20)), 0, spread=0.02))
    assert when == []
    assert stop.value < 0.01


def test_a_loss_that_falls_again_after_the_alarm_lowers_the_indicator() -> None:
    """It follows the loss; the callback waits for a rise."""
    t = times(26)
    mean = learnt(t) * np.exp(-0.1 * np.maximum(t - 18, 0))
    when, stop = alarms(noisy(mean, 0, spread=0.02))
    assert len(when) == 1
    assert stop.value < 0.01
    assert not stop.armed


@pytest.mark.parametrize(
    ("gain", "little"),
    [
        (None, True),
        (Gain(math.nan, math.nan, math.nan), True),
        (Gain(0.0, -0.05, 0.05), True),
        (Gain(-0.4, -0.5, -0.3), True),
        (Gain(0.4, 0.3, 0.5), False),
        (Gain(0.05, -0.2, 0.3), False),
    ],
)
def test_selection_must_have_nothing_to_prefer(gain: Gain | None, little: bool) -> None:
    """A flat loss is not enough while there is a gain, or may be one; an unknown one is no veto."""
    when, stop = alarms(noisy(np.ones(8 * HORIZON), 0, spread=0.01), gain)
    assert bool(when) is little
    assert (stop.value >= 0.95) is little


def test_a_gain_is_no_veto_where_nobody_asks_for_it() -> None:
    """Under label noise gradients differ to the end, and selection gains to the end."""
    when, stop = alarms(noisy(np.ones(8 * HORIZON), 0, spread=0.01), Gain(0.4, 0.3, 0.5), None)
    assert when
    assert stop.value >= 0.95
    assert StopIndicator().settings["least_gain"] is None


def test_losses_that_are_not_finite_are_left_out_and_counted() -> None:
    """Everything else is as if they had never come."""
    losses = noisy(learnt(times(6)), 0)
    _, without = alarms(losses)
    broken = [math.nan, math.inf, -math.inf]
    _, stop = alarms([one for loss in losses for one in (loss, *broken)])
    assert stop.counts == {**without.counts, "ignored": 3 * len(losses)}
    assert {**stop.state_dict(), "ignored": 0} == without.state_dict()


def test_what_the_callback_raises_stays_there(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged the first time with its traceback, and counted every time."""

    def broken(_: str) -> None:
        raise RuntimeError("no such pager")

    stop = StopIndicator(broken, horizon=64)
    with caplog.at_level(logging.ERROR):
        for loss in (1.0, 2.0, 4.0):
            for _ in range(200):
                stop.observe(loss)
    assert stop.counts == {"alarms": 3, "ignored": 0, "failures": 3}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "no such pager" in caplog.text


def test_the_reason_tells_the_numbers() -> None:
    """Level, improvement with its error, and the gain."""
    reasons: list[str] = []
    stop = StopIndicator(reasons.append, horizon=64)
    for _ in range(200):
        stop.observe(0.25, Gain(0.02, 0.01, 0.03))
    assert reasons == [
        "little is left to learn: the mean loss, 0.25, improves by 0 ± 0 in 64 windows, "
        "and selection gains 2 % over a uniform draw"
    ]


@given(cut=st.integers(0, 12 * HORIZON), gain=st.booleans())
def test_it_goes_on_exactly_from_its_state(cut: int, gain: bool) -> None:
    """Through JSON, at any batch, the rest of the run is the same to the last bit."""
    losses = noisy(learnt(times(12)), 1)
    gains = [Gain(0.0, -0.01, 0.01) if gain else None] * len(losses)
    one, other = StopIndicator(horizon=HORIZON), StopIndicator(horizon=HORIZON)
    for loss, known in zip(losses[:cut], gains[:cut], strict=True):
        one.observe(loss, known)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for loss, known in zip(losses[cut:], gains[cut:], strict=True):
        one.observe(loss, known)
        other.observe(loss, known)
        assert other.value == one.value
    assert json.dumps(other.state_dict()) == json.dumps(one.state_dict())


def test_its_state_is_the_callers_own() -> None:
    """A state that was taken does not change with the indicator, nor the other way round."""
    stop, other = StopIndicator(horizon=64), StopIndicator(horizon=64)
    for _ in range(100):
        stop.observe(1.0)
    state = stop.state_dict()
    before = json.dumps(state)
    other.load_state_dict(state)
    for _ in range(100):
        stop.observe(2.0)
        other.observe(3.0)
    assert json.dumps(state) == before


def test_its_size_does_not_grow() -> None:
    """A hundred horizons of noise leave 32 numbers and a few more."""
    _, stop = alarms(noisy(np.ones(100 * HORIZON), 0, spread=1.0))
    state = stop.state_dict()
    assert len(state.pop("blocks")) <= 32
    assert len(json.dumps(state)) < 400


@given(
    losses=st.lists(st.floats(width=64), min_size=64, max_size=200),
    gain=st.none() | st.builds(Gain, st.floats(), st.floats(), st.floats()),
)
def test_it_is_a_share_whatever_comes(losses: list[float], gain: Gain | None) -> None:
    """Huge, tiny, negative or broken numbers leave it in [0, 1] and raise nothing."""
    stop = StopIndicator(horizon=64)
    for loss in losses:
        stop.observe(loss, gain)
        assert 0 <= stop.value <= 1


@pytest.mark.parametrize("unit", [2.0**-20, 2.0**20])
def test_the_unit_of_the_loss_does_not_matter(unit: float) -> None:
    """Losses twice as large are twice as large, and nothing else."""
    losses = noisy(learnt(times(12)), 2)
    when, stop = alarms(losses)
    again, other = alarms([unit * loss for loss in losses])
    assert again == when
    assert other.value == stop.value


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"horizon": 63}, ValueError, "horizon must be at least 64, got 63"),
        ({"horizon": 64.0}, TypeError, "horizon must be a whole number, got float"),
        ({"horizon": True}, TypeError, "horizon must be a whole number, got bool"),
        ({"least_improvement": 0.0}, ValueError, r"least_improvement must be in \(0, 1\), got 0.0"),
        ({"least_gain": 1.0}, ValueError, r"least_gain must be in \(0, 1\), got 1.0"),
        ({"confidence": 0.5}, ValueError, r"confidence must be in \(0.5, 1\), got 0.5"),
        ({"confidence": math.nan}, ValueError, r"confidence must be in \(0.5, 1\), got nan"),
        ({"least_gain": "a"}, TypeError, "least_gain must be a number, got str"),
        ({"on_little_left": 3}, TypeError, "on_little_left must be a function .* got int"),
        (
            {"on_little_left": lambda: 1},
            TypeError,
            "is called with one sentence, which it does not",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(
    arguments: dict[str, float], error: type[Exception], message: str
) -> None:
    """Each by its name, with what was expected and what came."""
    with pytest.raises(error, match=message):
        StopIndicator(**arguments)  # type: ignore[arg-type] # that is the point
