"""Where losses alone are known, draw and gain go by the gradients of trained rows."""

import logging
from collections.abc import Iterator
from itertools import islice
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import poisson_nll_loss

from adasel_stream import LossRecord, Proxy, SelectingLoader
from adasel_stream.policies import unbiased
from tests.candidates import generator
from tests.streams import Rows

ROWS, INPUTS = 2000, 5
RATE = 0.25


class Regression:
    """A straight line under heavy noise, with absolute or squared errors.

    Args:
        power: of the error in the loss.
        seed: of the data.
    """

    def __init__(self, power: int, seed: int = 0) -> None:
        random = generator(seed)
        self.x = torch.randn(ROWS, INPUTS, generator=random)
        noise = torch.empty(ROWS).cauchy_(generator=random).clamp(-1e3, 1e3)
        self.true = torch.ones(INPUTS)
        self.y = self.x @ self.true + (noise if power == 1 else noise.sign() * noise.abs().sqrt())
        self.power = power
        self.random = random
        torch.manual_seed(seed)
        self.model = nn.Linear(INPUTS, 1)

    def batches(self) -> Iterator[Rows]:
        """Offer rows without end."""
        while True:
            rows = torch.randint(ROWS, (32,), generator=self.random)
            yield {"id": rows, "x": self.x[rows], "y": self.y[rows]}

    def losses(self, batch: Rows) -> Tensor:
        """Give |error|^power, shape (b,)."""
        error: Tensor = self.model(batch["x"]).squeeze(1) - batch["y"]
        return error.abs() ** self.power

    def sources(self, where: str) -> dict[str, Any]:
        """Give where a loader has its losses from."""
        if where == "record":
            return {"record": LossRecord(capacity=2 * ROWS), "ids": "id"}
        if where == "proxy":
            return {"score": Proxy(lambda batch: self.losses(batch) ** 3), "model": self.model}
        return {"score": lambda batch: self.losses(batch).detach()}

    def train(self, loader: SelectingLoader, steps: int) -> float:
        """Train, and give the mean squared error of the weights after a third of the steps."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.2)
        off = []
        for batch in islice(loader, steps):
            loader.mean(self.losses(batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
            optimizer.step()
            optimizer.zero_grad()
            off.append(float((self.model.weight.detach()[0] - self.true).square().sum()))
        return fmean(off[steps // 3 :])


WHERE = pytest.mark.parametrize("where", ["score", "record", "proxy"])


@WHERE
def test_gradients_that_do_not_follow_losses_end_selection(where: str) -> None:
    """Absolute errors have gradients of one size: large losses are no reason to prefer a row."""
    task = Regression(power=1)
    loader = SelectingLoader(task.batches(), sampling_rate=RATE, **task.sources(where))
    task.train(loader, 600)
    assert loader.gain.high < 0.05
    weights = loader.weights
    assert float(weights.max() / weights.min()) < 1.3


def test_auto_does_not_stay_worse_than_uniform_by_losses_alone() -> None:
    """It was off by four tenths more, and said that it gained, when losses stood for gradients."""

    def off(seed: int, **policy: Any) -> float:
        task = Regression(power=1, seed=seed)
        options = {**task.sources("score"), **policy}
        return task.train(SelectingLoader(task.batches(), sampling_rate=RATE, **options), 800)

    ours = [off(seed) for seed in range(3)]
    uniform = [off(seed, policy="unbiased", methods=["uniform"]) for seed in range(3)]
    assert fmean(ours) < 1.2 * fmean(uniform)


@WHERE
def test_rows_are_drawn_by_what_losses_say_of_gradients(where: str) -> None:
    """Squared errors have gradients that grow with their root, and cubed scores with the sixth."""
    task = Regression(power=2)
    seen: list[tuple[Tensor, Tensor]] = []

    def kept(losses: Tensor) -> Tensor:
        rows = loader._emissions.last.rows
        assert rows.chosen_by is not None
        seen.append((rows.chosen_by, rows.probabilities))
        return losses

    loader = SelectingLoader(
        task.batches(), sampling_rate=RATE, methods=["gradient_size"], **task.sources(where)
    )
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.01)
    for batch in islice(loader, 1200):
        loader.mean(kept(task.losses(batch))).backward()  # type: ignore[no-untyped-call] # untyped in torch
        optimizer.step()
        optimizer.zero_grad()
    known, chance = (torch.cat(column) for column in zip(*seen[-200:], strict=True))
    chance = chance - 0.2 * RATE / 32  # what is even of it
    middle = (known > known.nanquantile(0.3)) & (known < known.nanquantile(0.95))
    x, y = known[middle].log(), chance[middle].log()
    slope = float(torch.cov(torch.stack([x, y]))[0, 1] / x.var())
    want = {"score": 0.5, "record": 0.5, "proxy": 0.5 / 3}[where]
    assert slope == pytest.approx(want, abs=0.13)
    assert loader.gain.low > 0


@pytest.mark.parametrize("scale", [1 / 8, 4096.0])
def test_what_the_mean_is_multiplied_with_does_not_matter(scale: float) -> None:
    """As autocast's scaler and accumulated steps do: the same rows are chosen, to the last bit."""

    def run(by: float) -> list[Any]:
        task = Regression(power=2)
        loader = SelectingLoader(task.batches(), sampling_rate=RATE, **task.sources("score"))
        got = []
        for batch in islice(loader, 200):
            (by * loader.mean(task.losses(batch))).backward()  # type: ignore[no-untyped-call] # untyped in torch
            got.append((batch["id"].tolist(), loader.weights.tolist()))
        return [*got, loader.gain]

    assert run(scale) == run(1.0)


@pytest.mark.filterwarnings("ignore:list has no state_dict:RuntimeWarning")
@pytest.mark.parametrize("cut", [30, 101, 150])
def test_it_resumes_to_the_last_bit(cut: int) -> None:
    """Also between two batches whose gradients are looked at."""

    def make() -> tuple[Regression, SelectingLoader]:
        task = Regression(power=2)
        batches = list(islice(task.batches(), 1000))
        sources = task.sources("score")
        return task, SelectingLoader(batches, sampling_rate=RATE, replay=True, **sources)

    def run(task: Regression, loader: SelectingLoader, steps: int) -> list[Any]:
        got = []
        for batch in islice(loader, steps):
            loader.mean(task.losses(batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
            got.append((batch["id"].tolist(), loader.weights.tolist()))
        return got

    want = run(*make(), 240)
    task, loader = make()
    got = run(task, loader, cut)
    other, second = make()
    second.load_state_dict(loader.state_dict())
    assert got + run(other, second, 240 - cut) == want


def test_losses_without_a_graph_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """They stand for gradients then, and it goes on."""
    task = Regression(power=2)
    loader = SelectingLoader(task.batches(), sampling_rate=RATE, **task.sources("record"))
    with caplog.at_level(logging.WARNING):
        for batch in islice(loader, 80):
            loader.mean(task.losses(batch).detach())
    told = [line for line in caplog.messages if "losses without their graph" in line]
    assert len(told) == 1
    assert loader.metrics.policy_updates > 50


def test_who_logs_the_mean_first_is_heard_all_the_same() -> None:
    """The call that is differentiated counts, whether or not another came before."""

    def run(*, logs: bool) -> list[Any]:
        task = Regression(power=2)
        loader = SelectingLoader(task.batches(), sampling_rate=RATE, **task.sources("score"))
        got = []
        for batch in islice(loader, 150):
            losses = task.losses(batch)
            if logs:
                with torch.no_grad():
                    loader.mean(losses)
            loader.mean(losses).backward()  # type: ignore[no-untyped-call] # untyped in torch
            got.append((batch["id"].tolist(), loader.weights.tolist()))
        return [*got, loader.gain]

    assert run(logs=True) == run(logs=False)


def test_where_gradients_cannot_be_seen_rows_are_drawn_evenly() -> None:
    """As of a model that is compiled with its loss; and by their losses again once they can."""
    task = Regression(power=1)
    compiled = torch.compile(task.losses, backend="aot_eager")
    loader = SelectingLoader(task.batches(), sampling_rate=RATE, **task.sources("score"))
    for batch in islice(loader, 40):
        loader.mean(compiled(batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
    assert loader.metrics.snapshot()["fallback_ratio"]["unseen"] == 1
    assert float(loader.weights.max()) == pytest.approx(1.0, abs=0.01)
    for batch in islice(loader, 20):
        loader.mean(task.losses(batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
    assert loader.metrics.snapshot()["fallback_ratio"]["unseen"] == 0


def test_who_weighs_by_hand_is_told_that_nobody_can_judge(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Losses that are never given cannot say whether it pays; an even draw is no worse."""
    task = Regression(power=1)
    loader = SelectingLoader(task.batches(), sampling_rate=RATE, **task.sources("score"))
    for batch in islice(loader, 40):
        (task.losses(batch) * loader.weights).mean().backward()  # type: ignore[no-untyped-call] # untyped in torch
    assert loader.metrics.snapshot()["fallback_ratio"]["unseen"] == 1
    assert float(loader.weights.max()) == pytest.approx(1.0, abs=0.01)
    assert "Give losses to loader.mean" in caplog.text


@pytest.mark.parametrize("at_once", [16, 64])
def test_one_pass_over_many_batches_is_heard(at_once: int) -> None:
    """Accumulated losses are differentiated late; nobody takes that for never."""
    task = Regression(power=2)
    loader = SelectingLoader(task.batches(), sampling_rate=RATE, **task.sources("score"))
    means: list[Tensor] = []
    for batch in islice(loader, 4 * at_once):
        means.append(loader.mean(task.losses(batch)))
        if len(means) == at_once:
            torch.stack(means).mean().backward()  # type: ignore[no-untyped-call] # untyped in torch
            means.clear()
    assert not any(loader.metrics.snapshot()["policy_switches_total"].values())
    assert loader.metrics.policy_updates >= at_once


@pytest.mark.parametrize("seen", [True, False])
def test_a_policy_that_does_not_watch_itself_learns_in_any_case(
    seen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """By gradients where they are seen, and else by losses, as the log says."""
    torch.compiler.reset()
    task = Regression(power=2)
    losses = task.losses if seen else torch.compile(task.losses, backend="aot_eager")
    loader = SelectingLoader(
        task.batches(),
        sampling_rate=RATE,
        policy="unbiased",
        methods=["uniform", "gradient_size", "small_loss"],
        **task.sources("score"),
    )
    for batch in islice(loader, 120):
        loader.mean(losses(batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
    assert loader.metrics.policy_updates > 50
    told = [line for line in caplog.messages if "no gradient of trained rows can be seen" in line]
    assert len(told) == (0 if seen else 1)


def test_what_losses_say_of_gradients_is_learnt_whatever_moves_the_weights() -> None:
    """Absolute errors are alike for `gradient_size` also where method weights do not move."""
    task = Regression(power=1)
    policy = unbiased(update="none")
    loader = SelectingLoader(
        task.batches(),
        sampling_rate=RATE,
        policy=policy,
        methods=["gradient_size"],
        **task.sources("score"),
    )
    task.train(loader, 400)
    assert float(loader.weights.max() / loader.weights.min()) < 1.5


def test_inputs_of_very_different_size_are_no_trap() -> None:
    """Large losses may come with small gradients because inputs are small; it was 1.7 times off."""

    def off(seed: int, **policy: Any) -> float:
        random = generator(seed)
        torch.manual_seed(seed)
        model, true = nn.Linear(10, 1, bias=False), torch.ones(10)

        def batches() -> Iterator[Rows]:
            while True:
                large = torch.rand(32, generator=random) < 0.5
                x = torch.randn(32, 10, generator=random) * torch.where(large, 1.0, 0.02)[:, None]
                noise = torch.randn(32, generator=random) * torch.where(large, 1.0, 20.0)
                yield {"x": x, "y": x @ true + noise}

        def losses(batch: Rows) -> Tensor:
            squares: Tensor = (model(batch["x"]).squeeze(1) - batch["y"]).square()
            return squares

        loader = SelectingLoader(
            batches(),
            score=lambda b: losses(b).detach(),
            sampling_rate=RATE,
            batch_size=8,
            **policy,
        )
        optimizer, errors = torch.optim.SGD(model.parameters(), lr=0.03), list[float]()
        for batch in islice(loader, 1000):
            loader.mean(losses(batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
            optimizer.step()
            optimizer.zero_grad()
            errors.append(float((model.weight.detach()[0] - true).square().sum()))
        return fmean(errors[300:])

    ours = fmean(off(seed) for seed in range(3))
    assert ours < 1.15 * fmean(
        off(seed, policy="unbiased", methods=["uniform"]) for seed in range(3)
    )


def test_a_gradient_beyond_all_others_breaks_nothing() -> None:
    """A broken counter for a moment: weights stay finite, and selection goes on."""
    torch.manual_seed(0)
    model, random = nn.Linear(8, 1), generator(0)

    def batches() -> Iterator[Rows]:
        for number in range(1200):
            x, y = torch.randn(32, 8, generator=random), torch.ones(32)
            if 400 <= number < 416:
                y[0] = 3e19
            yield {"x": x, "y": y}

    def losses(batch: Rows) -> Tensor:
        return poisson_nll_loss(model(batch["x"]).squeeze(1), batch["y"], reduction="none")

    loader = SelectingLoader(batches(), score=lambda b: losses(b).detach(), sampling_rate=RATE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in loader:
        loader.mean(losses(batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert bool(torch.isfinite(loader.weights).all())


def test_a_batch_that_is_not_differentiated_teaches_nothing() -> None:
    """Such as one that a trainer leaves out because its loss is not finite."""
    task = Regression(power=2)
    loader = SelectingLoader(task.batches(), sampling_rate=RATE, **task.sources("record"))
    for batch in islice(loader, 20):
        loader.mean(task.losses(batch))
    assert loader.metrics.policy_updates == 0
