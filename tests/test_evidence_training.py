"""One cell of the evidence: equal budgets, paired seeds, a clock that counts what it should."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.evidence.candidates import Candidates, even_share
from benchmarks.evidence.clock import Clock
from benchmarks.evidence.contestants import CONTESTANTS
from benchmarks.evidence.problem import Examples, Problem, Task
from benchmarks.evidence.training import Outcome, Run, train, updates_of

ROWS, BATCH = 6_000, 20

TASK = Task("toy", lambda _data, _seed: problem(), "mse", "lower", "epochs", BATCH, 200, 0.05)
STREAM = replace(TASK, kind="stream")


def losses(network: nn.Module, rows: Examples) -> Tensor:
    """Give squared errors."""
    outputs: Tensor = network(rows["x"])
    return (outputs[:, 0] - rows["y"]).square()


def quality(network: nn.Module, rows: Examples) -> dict[str, float]:
    """Give their mean."""
    return {"mse": float(losses(network, rows).mean())}


def rows_of(count: int, seed: int) -> Examples:
    """Draw rows whose target is the sum of three numbers."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "y": x.sum(1)}


def problem(measure: Callable[[nn.Module, Examples], dict[str, float]] = quality) -> Problem:
    """Make a small problem."""
    network = lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))  # noqa: E731
    return Problem(rows_of(ROWS, 0), rows_of(200, 1), rows_of(200, 2), network, losses, measure)


def outcome(name: str, *, task: Task = TASK, rate: float = 0.2, seed: int = 0) -> Outcome:
    """Train one contestant at equal updates."""
    one, toy = CONTESTANTS[name], problem()
    return train(task, toy, one, rate, seed, updates_of(task, toy, one, rate))


@pytest.mark.parametrize("name", [name for name in CONTESTANTS if name != "full"])
def test_everyone_makes_the_same_updates(name: str) -> None:
    """At a rate every contestant makes that share of full training's updates, and learns."""
    result = outcome(name)
    assert result.updates == 0.2 * TASK.updates
    assert len(result.curve) == 10
    assert result.curve[-1][0] == result.updates
    assert result.curve[-1][2] == result.quality["mse"]
    assert result.quality["mse"] < 3.0  # what one gets who always says the mean


@pytest.mark.parametrize("name", ["uniform", "auto", "unbiased", "paper", "big_loss"])
def test_selectors_see_the_candidates_of_full_training(name: str) -> None:
    """At rate 0.2 they are offered what full training trains on, a window more or less."""
    full, one = outcome("full"), outcome(name)
    assert full.candidates == TASK.updates * BATCH
    assert abs(one.candidates - full.candidates) <= 2 * 5 * BATCH


@pytest.mark.parametrize("name", ["uniform", "auto", "selective-backprop rule", "auto + serving"])
def test_a_seed_repeats_a_run(name: str) -> None:
    """The same seed gives the same values to the bit, another seed others."""
    one, again, other = outcome(name), outcome(name), outcome(name, seed=1)
    assert [point[::2] for point in one.curve] == [point[::2] for point in again.curve]
    assert one.quality != other.quality


def test_contestants_of_a_seed_begin_alike() -> None:
    """First weights and the order of candidates depend on the seed alone."""
    begun: list[tuple[list[Tensor], Tensor]] = []
    for name in ("full", "uniform", "auto", "infobatch rule"):
        torch.manual_seed(3)
        run = Run(TASK, problem(), CONTESTANTS[name], 0.2, 3, 10)
        begun.append((list(run.network.parameters()), next(iter(run.candidates))["id"]))
    other = next(iter(Candidates(TASK, problem().train, 4, Clock())))["id"]
    first, ids = begun[0]
    assert not torch.equal(ids, other)
    for weights, others in begun[1:]:
        assert all(map(torch.equal, first, weights))
        assert torch.equal(ids, others)


def test_an_epoch_offers_every_row_once() -> None:
    """Rows come shuffled, none twice within an epoch, in another order in the next."""
    offers = iter(Candidates(TASK, rows_of(ROWS, 0), 0, Clock()))
    first, second = (
        torch.cat([next(offers)["id"] for _ in range(ROWS // BATCH)]) for _ in range(2)
    )
    assert torch.equal(first.sort().values, torch.arange(ROWS))
    assert torch.equal(second.sort().values, torch.arange(ROWS))
    assert not torch.equal(first, second)


def test_a_stream_is_read_once_and_in_order() -> None:
    """Rows come as they are, and then no more."""
    rows = rows_of(ROWS, 0)
    source = Candidates(STREAM, rows, 0, Clock())
    batches = list(source)
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), rows["x"])
    assert source.offered == source.position == ROWS


def test_a_stream_is_tested_on_rows_that_nobody_has_seen() -> None:
    """When a stream is tested, the rows are those after all that were offered."""
    seen: list[float] = []

    def measure(_: nn.Module, rows: Examples) -> dict[str, float]:
        seen.append(float(rows["place"][0]))
        return {"mse": 0.0}

    toy = problem(measure)
    toy.train["place"] = torch.arange(ROWS, dtype=torch.float32)
    result = train(STREAM, toy, CONTESTANTS["full"], 1.0, 0, ROWS // BATCH)
    assert seen == [updates * BATCH for updates, _, _ in result.curve]
    assert seen[0] >= 0.1 * ROWS


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3, 0.5, 1.0])
def test_an_even_share_is_even_and_exact(rate: float) -> None:
    """No row comes twice, all come from what was offered, and the rate holds to a batch."""
    source = Candidates(STREAM, rows_of(ROWS, 0), 0, Clock())
    ids = torch.cat([batch["id"] for batch in even_share(source, rate, BATCH, 0)])
    assert len(set(ids.tolist())) == len(ids)
    assert rate * ROWS - BATCH < len(ids) <= rate * ROWS
    expected, spread = ROWS / 2, ROWS / 12**0.5 / len(ids) ** 0.5
    assert abs(float(ids.double().mean()) - expected) < 4 * spread


def test_the_learning_rate_is_spent_within_the_budget() -> None:
    """Over epochs it ends near 0 whatever the budget, on a stream it stays."""
    for updates in (20, 100):
        for task, lowest, highest in ((TASK, 0.0, 0.02), (STREAM, 1.0, 1.0)):
            run = Run(task, problem(), CONTESTANTS["full"], 1.0, 0, updates)
            run.outcome()
            share = run.optimizer.param_groups[0]["lr"] / task.learning_rate
            assert lowest <= share <= highest


def test_a_network_that_diverges_ends_with_nan() -> None:
    """Nothing can be chosen from losses that are all NaN, and epochs would go round for ever."""
    task = replace(TASK, learning_rate=1e30)
    result = train(task, problem(), CONTESTANTS["big_loss"], 0.5, 0, 200)
    assert result.updates < 200
    assert math.isnan(result.quality[task.measure])


def test_tests_are_not_on_the_clock() -> None:
    """Measuring ten times for a tenth of a second adds nothing to what a run took."""

    def measure(network: nn.Module, rows: Examples) -> dict[str, float]:
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
        return quality(network, rows)

    result = train(TASK, problem(measure), CONTESTANTS["full"], 1.0, 0, 20)
    assert result.seconds["all"] < 0.6  # the tests took 1.0 beside
    assert result.curve[-1][1] < 0.6
    bare = train(TASK, problem(), CONTESTANTS["full"], 1.0, 0, 20, curve=False)
    assert [updates for updates, _, _ in bare.curve] == [20]
    assert bare.quality == result.quality


@pytest.mark.parametrize("name", ["full", "uniform", "auto", "reducible_loss", "auto + serving"])
def test_phases_add_up(name: str) -> None:
    """The phases are the whole, none is negative, and who scores is seen to."""
    seconds = outcome(name).seconds
    phases = {phase: value for phase, value in seconds.items() if phase != "all"}
    assert sum(phases.values()) == pytest.approx(seconds["all"])
    assert min(phases.values()) >= 0
    assert ("score" in phases) == (name in ("auto", "reducible_loss"))


def test_a_clock_that_is_off_stands() -> None:
    """Nothing that is read while it is off moves, and it goes on where it stood."""
    clock = Clock()
    with clock.off():
        before = clock.seconds
        sum(range(1_000_000))
        assert clock.seconds == before
    assert clock.seconds - before < 0.01
