import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.metric_pages import make


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["data_wait", "score", "select", "train", "checkpoint", "leave"]),
            st.floats(0, 100),
        ),
        max_size=40,
    )
)
def test_phases_sum_to_wall_time(events: list[tuple[str, float]]) -> None:
    """However phases nest, every second is charged once."""
    now = 1000.0
    metrics = make(clock=lambda: now)
    open_spans: list[Any] = []
    for name, passed in events:
        now += passed
        if name != "leave":
            span = metrics.phase(name)
            span.__enter__()
            open_spans.append(span)
        elif open_spans:
            open_spans.pop().__exit__(None, None, None)
    now += 1.0
    metrics.observe_step(0.1)

    assert math.fsum(metrics.phase_seconds.values()) == pytest.approx(now - 1000.0)


def test_an_inner_phase_takes_its_time_from_the_outer_one() -> None:
    """A checkpoint inside a step is not training time, and what is outside is `other`."""
    times = iter([0.0, 1.0, 3.0, 7.0, 8.0, 10.0])
    metrics = make(clock=lambda: next(times))

    with metrics.phase("train"), metrics.phase("checkpoint"):
        pass
    metrics.observe_step(0.1)

    assert metrics.phase_seconds == {
        "data_wait": 0.0,
        "score": 0.0,
        "select": 0.0,
        "decode": 0.0,
        "train": 3.0,
        "checkpoint": 4.0,
        "other": 3.0,
    }


def test_a_phase_ends_when_its_body_raises() -> None:
    """An error in a step does not leave the clock in that phase."""
    times = iter([0.0, 1.0, 3.0, 10.0])
    metrics = make(clock=lambda: next(times))

    with pytest.raises(ZeroDivisionError), metrics.phase("score"):
        raise ZeroDivisionError
    metrics.observe_step(0.1)

    assert metrics.phase_seconds["score"] == 2.0
    assert metrics.phase_seconds["other"] == 8.0


def test_a_generator_left_half_way_ends_its_own_phase() -> None:
    """Phases that end out of order keep the sum and the other phases right."""
    now = 0.0
    metrics = make(clock=lambda: now)

    def batches() -> Iterator[int]:
        with metrics.phase("train"):
            yield 1

    iterator = batches()
    next(iterator)
    now = 5.0
    with metrics.phase("checkpoint"):
        now = 6.0
        iterator.close()  # type: ignore[attr-defined]
        now = 9.0
    now = 10.0
    metrics.observe_step(0.1)

    assert metrics.phase_seconds["train"] == 5.0
    assert metrics.phase_seconds["checkpoint"] == 4.0
    assert metrics.phase_seconds["other"] == 1.0
