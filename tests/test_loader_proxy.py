"""A cheaper score in place of the model's losses, and what the loader makes of it."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch

from adasel_stream import LossRecord, Proxy, SelectingLoader
from tests.candidates import generator
from tests.streams import Rows


def stream(likeness: float) -> Iterator[Rows]:
    """Offer rows with a true loss, and a guess of it that is as good as asked."""
    random, start = generator(0), 0
    while True:
        losses = torch.rand(32, generator=random) ** 3
        noise = torch.rand(32, generator=random) ** 3
        guess = likeness * losses + (1 - likeness) * noise
        yield {"id": torch.arange(start, start + 32), "loss": losses, "guess": guess}
        start += 32


def run(likeness: float, steps: int, record: LossRecord | None = None) -> SelectingLoader:
    """Select a quarter by the guess, and train on true losses."""
    loader = SelectingLoader(
        stream(likeness),
        score=Proxy(lambda batch: batch["guess"], floor=0.3),
        sampling_rate=0.25,
        record=record,
        ids=None if record is None else "id",
    )
    for batch in islice(loader, steps):
        loader.mean(batch["loss"])
    return loader


def test_a_good_proxy_is_measured_and_gains() -> None:
    """Rank correlation and gain are those with the true losses, not with the guesses."""
    loader = run(0.9, 600)
    shown = loader.metrics.snapshot()
    correlation = shown["proxy_correlation_ratio"]
    assert 0.7 < correlation["low"] < correlation["value"] < correlation["high"] <= 1
    assert shown["proxy_alert_ratio"] == 0
    assert shown["score_rows_total"]["proxy"] > 0
    assert shown["score_rows_total"]["forward"] == 0
    assert loader.gain.low > 0
    assert shown["stream_loss"] == pytest.approx(0.25, abs=0.08)


def test_a_bad_proxy_raises_the_alert(caplog: pytest.LogCaptureFixture) -> None:
    """Below the floor for long enough, and the log says what to do."""
    loader = run(0.0, 600)
    assert loader.metrics.snapshot()["proxy_alert_ratio"] == 1
    assert "the proxy does not rank rows as the model's losses do" in caplog.text


def test_what_a_proxy_says_is_never_recorded_as_a_loss() -> None:
    """Only rows that were trained on are in the record, with their true losses."""
    record = LossRecord(capacity=100_000)
    run(0.5, 50, record)
    known = record.lookup(np.arange(50 * 32 * 4))
    assert 0 < known.known.sum() <= 50 * 32
    true = np.concatenate([batch["loss"].numpy() for batch in islice(stream(0.5), 200)])
    ids = np.flatnonzero(known.known)
    np.testing.assert_allclose(known.losses[ids], true[ids])


def test_a_watched_proxy_goes_on_after_a_resume() -> None:
    """Its correlation and the rows that it was measured on are part of the state."""
    first = run(0.9, 300)
    second = SelectingLoader(
        iter([]), score=Proxy(lambda batch: batch["guess"]), sampling_rate=0.25, replay=True
    )
    state = first.state_dict()
    second._selector.load_state_dict(state["selector"])
    assert second._selector._proxy is not None
    assert first._selector._proxy is not None
    assert second._selector._proxy.state_dict() == first._selector._proxy.state_dict()
