"""The default policy at work: it falls back to an even draw, says why, and comes back."""

import logging
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adasel_stream import (
    LossBatch,
    LossRecord,
    Scored,
    SelectingLoader,
    StopIndicator,
    auto,
)
from adasel_stream.errors import ScoreError
from adasel_stream.methods import METHODS
from adasel_stream.metrics import Metrics
from tests.candidates import generator
from tests.streams import Rows, Stream, loss

B = 32
WINDOWS = 800
"""Candidate batches that decide for sure: those that are compared are one in eight."""


class World:
    """Rows with gradients of very different sizes, and a method that may be turned against them."""

    def __init__(self) -> None:
        self.against = False
        self.broken = False
        self.level = 1.0
        self.scored = 0
        self.price = 0.0

    def batches(self) -> Iterator[Rows]:
        """Offer rows without end."""
        random = generator(0)
        while True:
            yield {
                "size": torch.rand(B, generator=random) ** 3 + 0.01,
                "side": torch.randn(B, 2, generator=random),
            }

    def score(self, batch: Rows) -> Scored:
        """Give losses that follow the sizes, and residuals of that size."""
        self.scored += len(batch["size"])
        losses = self.level * batch["size"]
        if self.broken:
            losses = torch.where(batch["side"][:, 0] > 0, torch.nan, losses)
        residuals = batch["size"][:, None] * batch["side"]
        return Scored(losses, residuals, torch.ones(len(losses), 1))

    def method(self, batch: LossBatch) -> Tensor:
        """Prefer large gradients, or small ones where it is turned against them."""
        size = batch.losses / self.level
        return 1 / size if self.against else size

    def loader(self, **options: Any) -> SelectingLoader:
        """Select a quarter by the method."""
        methods = {"mine": self.method}
        options = {"score": self.score, "sampling_rate": 0.25, "methods": methods, **options}
        return SelectingLoader(self.batches(), **options)


def train(loader: SelectingLoader, steps: int) -> list[float]:
    """Take batches, and give the largest importance weight of each."""
    largest = []
    for batch in islice(loader, steps):
        loader.mean(batch["size"])
        largest.append(float(loader.weights.max()))
    return largest


def train_at(loader: SelectingLoader, world: World, steps: int) -> None:
    """Take batches, and give losses at the world's level."""
    for batch in islice(loader, steps):
        loader.mean(world.level * batch["size"])


def reasons(loader: SelectingLoader) -> dict[str, int]:
    """Give how often rows came to be drawn otherwise, and why."""
    return {why: count for why, count in loader.metrics.policy_switches.items() if count}


@pytest.mark.parametrize("batch_size", [64, 256])
def test_costs_are_those_of_all_batches_that_a_window_feeds(batch_size: int) -> None:
    """A second of scoring feeds four seconds of training, whatever batches they come in."""
    now_s = [0.0]
    random = generator(0)

    def score(batch: Rows) -> Scored:
        now_s[0] += 1.0
        return Scored(batch["size"], batch["size"][:, None], torch.ones(1024, 1))

    metrics = Metrics(
        ["mine"],
        sampling_rate=0.25,
        batch_size=1,
        policy="auto",
        clock=lambda: now_s[0],
    )
    loader = SelectingLoader(
        ({"size": torch.rand(1024, generator=random)} for _ in range(40)),
        score=score,
        sampling_rate=0.25,
        batch_size=batch_size,
        methods={"mine": lambda batch: batch.losses},
        policy=auto(judged_by="time"),
        metrics=metrics,
    )
    for batch in loader:
        with metrics.phase("train"):
            now_s[0] += batch_size / 64
        loader.mean(batch["size"])
    assert loader._selector._chooser.watch.cost == pytest.approx(0.25, abs=0.01)


def test_gain_over_uniform_is_measured_and_shown() -> None:
    """Drawing by gradient size halves the noise and more; the interval says so."""
    loader = World().loader()
    train(loader, 200)
    gain = loader.metrics.snapshot()["gain_ratio"]
    assert 0.3 < gain["low"] < gain["mean"] < gain["high"] < 1
    assert reasons(loader) == {}
    assert loader.metrics.snapshot()["fallback_ratio"]["no_gain"] == 0
    assert loader.metrics.stream_loss == pytest.approx(0.26, abs=0.05)


def test_it_falls_back_without_a_gain_and_comes_back_with_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An even draw then, most of it unscored; metrics and log give the reason."""
    world = World()
    world.against = True
    loader = world.loader()
    with caplog.at_level(logging.INFO, "adasel_stream"):
        train(loader, WINDOWS)
        assert reasons(loader) == {"no_gain": 1}
        assert loader.metrics.snapshot()["fallback_ratio"]["no_gain"] == 1
        before = world.scored
        assert max(train(loader, 160)) == pytest.approx(1.0)
        assert (world.scored - before) / (160 * 4 * B) == pytest.approx(1 / 8, abs=0.02)
        world.against = False
        train(loader, 4000)
    assert reasons(loader) == {"no_gain": 1, "selection": 1}
    assert max(train(loader, 50)) > 1.2
    told = [line for line in caplog.messages if line.startswith("window")]
    fallen, back = told
    assert re.search(
        r"window \d+: rows are drawn evenly from now on, because of no_gain: the gain over uniform "
        r"sampling, by updates, is -.*, from -.* to -.*; one window in 8 is scored",
        fallen,
    )
    assert re.search(r"by their losses again, no_gain is over: the gain .* is 0\.", back)


def test_only_probes_tell_the_gain_of_what_is_drawn_evenly() -> None:
    """What nobody scored has no gain of 0: it has none."""
    world = World()
    world.against = True
    loader = world.loader(score=lambda batch: world.score(batch).losses)
    train(loader, WINDOWS)
    assert reasons(loader) == {"no_gain": 1}
    before = loader.gain
    train(loader, 1600)
    assert loader.gain.mean == pytest.approx(before.mean, rel=0.5)
    assert loader.gain.high < 0


def test_a_model_that_turned_into_nan_ends_the_run() -> None:
    """An endless stream would be read for ever, and nothing come of it."""
    world = World()
    loader = world.loader(score=lambda batch: world.score(batch).losses * world.level)
    train(loader, 20)
    world.level = float("nan")
    with pytest.raises(
        ScoreError, match="none of the losses and gradients of the last 100 windows"
    ):
        train(loader, 10**6)
    dropped = loader.metrics.samples_dropped["nonfinite_loss"]
    assert dropped == 100 * 4 * B
    world.level = 1.0
    assert len(train(loader, 20)) == 20


def test_losses_that_are_not_finite_are_told_once_until_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A few of them as well, and a second time the second time."""
    world = World()
    loader = world.loader(window=1, batch_size=B // 4)
    for broken in (False, True, False, True):
        world.broken = broken
        train(loader, 5)
    lines = [record.message for record in caplog.records if "not finite; such" in record.message]
    assert len(lines) == 2
    assert re.fullmatch(
        r"\d+ of the 32 losses or gradients of a window are not finite; .*", lines[0]
    )


def test_losses_alone_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Who closes over the model and does not pass it loses half of the gain, and hears of it."""
    loader = SelectingLoader(Stream(), score=loss, sampling_rate=0.5)
    list(loader)
    told = [line for line in caplog.messages if "by what their losses say of gradients" in line]
    assert len(told) == 1
    caplog.clear()
    list(SelectingLoader(Stream(), score=loss, sampling_rate=0.5, policy="unbiased"))
    assert not caplog.messages


def test_a_method_that_prefers_by_nan_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """By its name, once."""
    methods = {"odd_one": lambda b: b.losses * torch.nan, "big": lambda b: b.losses}
    list(SelectingLoader(Stream(), score=loss, sampling_rate=0.5, methods=methods))
    told = [line for line in caplog.messages if "'odd_one' prefers some rows by NaN" in line]
    assert len(told) == 1


def test_rate_and_batch_size_hold_after_a_fall_back() -> None:
    """Rows are as many, scored or not."""
    world = World()
    world.against = True
    loader = world.loader()
    train(loader, WINDOWS + 100)
    metrics = loader.metrics
    assert metrics.samples_selected / metrics.samples_seen == pytest.approx(0.25, abs=1e-3)
    assert metrics.score_rows["unknown"] > 0


def test_losses_that_are_no_numbers_end_selection_for_a_while() -> None:
    """Half of each batch is enough; where all are, there is nothing to draw at all."""
    world = World()
    loader = world.loader()
    train(loader, 100)
    world.broken = True
    train(loader, 10)
    assert reasons(loader) == {"nonfinite_loss": 1}
    world.broken = False
    train(loader, 200)
    assert reasons(loader) == {"nonfinite_loss": 1, "selection": 1}


@pytest.mark.parametrize("bare", [False, True])
def test_a_jump_of_the_losses_ends_selection_for_a_while(bare: bool) -> None:
    """Drift is noticed, waited out, and over, with a last layer and with losses alone."""
    world = World()
    loader = world.loader(score=(lambda b: world.score(b).losses) if bare else world.score)
    train_at(loader, world, 300)
    assert reasons(loader) == {}
    world.level = 1.5
    train_at(loader, world, 200)
    assert reasons(loader) == {"drift": 1, "selection": 1}


@pytest.mark.parametrize("bare", [False, True])
def test_the_streams_loss_is_heard_once_a_window(bare: bool) -> None:
    """Of all candidates; the control arm of the same window would only add its noise."""
    world, heard = World(), list[float]()
    stop = StopIndicator()
    stop.observe = lambda mean_loss, gain=None: heard.append(mean_loss)  # type: ignore[method-assign] # to look at what comes
    loader = world.loader(
        score=(lambda b: world.score(b).losses) if bare else world.score, stop=stop
    )
    train_at(loader, world, 200)
    assert len(heard) == pytest.approx(200, abs=1)
    assert np.std(heard) < 0.05


def test_judged_by_time_a_slow_score_does_not_pay_and_a_fast_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The loader measures both; here a clock of the test's own tells the time."""
    now_s = [0.0]

    def slow(batch: Rows) -> Scored:
        now_s[0] += world.price
        return world.score(batch)

    for price, pays in ((5.0, False), (0.01, True)):
        world = World()
        world.price = price
        loader = world.loader(score=slow, policy=auto(judged_by="time"))
        monkeypatch.setattr(loader.metrics._phases, "_clock", lambda: now_s[0])
        monkeypatch.setattr(loader.metrics._phases, "_since", now_s[0])
        for batch in islice(loader, 150):
            with loader.metrics.phase("train"):
                now_s[0] += 1.0
            loader.mean(batch["size"])
        assert reasons(loader) == ({} if pays else {"no_gain": 1})


def test_auto_gives_the_weight_to_the_method_with_the_better_draw() -> None:
    """One that follows gradient sizes against one that flees them; each step in four counts."""
    loader = World().loader(
        methods={"small": lambda b: 1 / b.losses, "large": lambda b: b.gradient_norms}
    )
    train(loader, 200)
    small, large = loader.metrics.method_weight_ratio
    assert large > 0.9
    assert small == pytest.approx(1 - large, abs=1e-5)


def test_aligned_gives_the_weight_to_the_method_whose_rows_agree() -> None:
    """Half of the rows pull one way, few and large ones the other way."""
    random = generator(3)

    def batches() -> Iterator[Rows]:
        while True:
            against = torch.rand(B, generator=random) < 0.2
            yield {"pull": torch.where(against, -3.0, 1.0), "size": torch.where(against, 9.0, 1.0)}

    loader = SelectingLoader(
        batches(),
        score=lambda b: Scored(b["size"], b["pull"][:, None], torch.ones(B, 1)),
        sampling_rate=0.25,
        policy="aligned",
        methods={"with": lambda b: -b.losses, "against": lambda b: b.losses},
    )
    for batch in islice(loader, 200):
        loader.mean(batch["size"])
    along, against = loader.metrics.method_weight_ratio
    assert along > 0.9
    assert against == pytest.approx(1 - along, abs=1e-5)


def test_what_cannot_pay_is_not_even_scored() -> None:
    """At rates where scoring costs what it spares, rows are drawn evenly from the start."""
    world = World()
    loader = world.loader(sampling_rate=0.8)
    with pytest.warns(RuntimeWarning, match="selection cannot pay"):
        largest = train(loader, 20)
    assert world.scored == 0
    assert max(largest) == pytest.approx(1.0)
    assert loader.metrics.snapshot()["fallback_ratio"]["cost"] == 1
    assert reasons(loader) == {"cost": 1}


@pytest.mark.parametrize("useful", [True, False])
def test_recorded_losses_are_judged_by_the_control_arm(useful: bool) -> None:
    """Fresh losses of rows that were drawn evenly tell whether the record is worth following."""
    count, random = 4096, np.random.default_rng(0)
    fresh = (random.random(count) ** 4 + 0.01).astype(np.float32)
    record = LossRecord(capacity=2 * count)
    record.update(np.arange(count), fresh if useful else fresh[::-1] ** -1)

    def source() -> Iterator[Rows]:
        while True:
            ids = random.permutation(count)[:128]
            yield {"id": torch.from_numpy(ids), "loss": torch.from_numpy(fresh[ids])}

    policy = auto(control=0.2)
    loader = SelectingLoader(
        source(), record=record, ids="id", sampling_rate=0.25, policy=policy, methods=["big_loss"]
    )
    loader._selector._known.lookups.observe = lambda *_: None  # type: ignore[union-attr, method-assign] # the record stays as wrong as it is
    loader._selector._known.lookups.compare = lambda *_: None  # type: ignore[union-attr, method-assign]
    for batch in islice(loader, 400):
        loader.mean(batch["loss"])
    gain = loader.gain
    assert (gain.low > 0.2) if useful else (gain.high < 0)
    assert reasons(loader) == ({} if useful else {"no_gain": 1})


def test_a_run_resumes_to_the_last_bit_through_falls_back() -> None:
    """Reason, gain and draws go on as if nothing had happened."""

    def make() -> SelectingLoader:
        return SelectingLoader(
            Stream((16,) * 400), score=loss, sampling_rate=0.25, methods=[upside_down], seed=3
        )

    def run(loader: SelectingLoader, steps: int) -> list[Any]:
        got = []
        for batch in islice(loader, steps):
            loader.mean(batch["loss"])
            got.append((batch["id"].tolist(), loader.weights.tolist()))
        return got

    whole = make()
    want = run(whole, 1000)
    for cut in (1, 40, 73):
        first = make()
        got = run(first, cut)
        second = make()
        second.load_state_dict(first.state_dict())
        assert got + run(second, 1000) == want
        assert second.metrics.snapshot()["gain_ratio"] == whole.metrics.snapshot()["gain_ratio"]


def upside_down(batch: LossBatch) -> Tensor:
    """Prefer what an unbiased draw should leave alone."""
    return 1 / (batch.losses + 0.1)


def test_a_model_without_a_linear_head_is_selected_from_by_its_losses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The default must not fail on it; the log says what is missing."""
    model = nn.Conv1d(1, 3, 4)

    def score(batch: Rows) -> Tensor:
        return cross_entropy(
            model(batch["x"][:, None]).flatten(1), batch["id"] % 3, reduction="none"
        )

    with caplog.at_level(logging.WARNING, "adasel_stream"):
        loader = SelectingLoader(Stream(), score=score, model=model, sampling_rate=0.5)
        assert len(list(loader)) == 3
    assert "gradients of the last layer are not used: no nn.Linear" in caplog.text


def test_a_stream_with_nothing_left_to_learn_is_told_once() -> None:
    """The loader feeds the indicator with the loss of the stream before training, and the gain."""
    told: list[str] = []
    same = {"x": torch.ones(B), "id": torch.arange(B)}
    stop = StopIndicator(told.append, horizon=64)

    def make() -> SelectingLoader:
        return SelectingLoader(
            [same] * 2000,
            score=lambda batch: batch["x"],
            sampling_rate=0.25,
            methods=["uniform"],
            stop=stop,
        )

    loader = make()
    for batch in loader:
        loader.mean(batch["x"])
    assert len(told) == 1
    assert "little is left to learn: the mean loss, 1, improves by 0" in told[0]
    assert loader.metrics.snapshot()["stop_indicator_ratio"] == 1.0
    state = loader.state_dict()
    make().load_state_dict(state)
    assert not stop.armed


@pytest.mark.parametrize("name", ["gradient_norm", "reducible_loss"])
def test_methods_that_need_more_than_losses_survive_unscored_windows(name: str) -> None:
    """After a fall back nothing is known of most windows; no method is asked about those."""
    world = World()

    def pushed(batch: LossBatch) -> Tensor:
        return 1 / (batch.losses + 0.1)

    loader = world.loader(
        methods={name: METHODS[name], "pushed": pushed},
        policy=auto(floor=0.45),
        reference=loader_reference(name),
    )
    assert len(train(loader, 600)) == 600
    forced = world.loader(methods=[name], sampling_rate=0.8, reference=loader_reference(name))
    with pytest.warns(RuntimeWarning, match="selection cannot pay"):
        assert len(train(forced, 20)) == 20


def loader_reference(name: str) -> Any:
    """Give reference losses for the method that looks at them."""
    return (lambda batch: batch["size"]) if name == "reducible_loss" else None


def test_a_model_whose_losses_are_all_broken_is_noticed() -> None:
    """Nothing can be chosen then; the reason shows all the same."""
    batches = [{"x": torch.full((B,), torch.nan)}] * 40
    loader = SelectingLoader(batches, score=lambda batch: batch["x"], sampling_rate=0.25)
    assert list(loader) == []
    assert loader.metrics.snapshot()["fallback_ratio"]["nonfinite_loss"] == 1


def test_losses_alone_are_judged_by_the_control_arm() -> None:
    """Scores that are noise gain nothing over uniform, and are found out."""
    random = generator(5)

    def source() -> Iterator[Rows]:
        while True:
            noise, true = torch.rand(B, generator=random), torch.rand(B, generator=random)
            yield {"noise": noise**4, "true": true}

    loader = SelectingLoader(
        source(),
        score=lambda batch: batch["noise"],
        sampling_rate=0.25,
        policy=auto(control=0.3),
        methods=["big_loss"],
    )
    for batch in islice(loader, 1200):
        loader.mean(batch["true"])
    assert loader.gain.high < 0
    assert reasons(loader) == {"no_gain": 1}
