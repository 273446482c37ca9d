from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adasel_stream.adaselection import step
from adasel_stream.chooser import Chooser
from adasel_stream.errors import MethodError
from adasel_stream.loss_batch import LossBatch
from adasel_stream.methods import resolve_methods
from adasel_stream.policies import paper, resolve_policy, unbiased
from adasel_stream.selection import Feedback, Selection, State
from adasel_stream.types import Scored

METHODS = ["uniform", "big_loss", "small_loss"]
policies = pytest.mark.parametrize("policy", ["unbiased", "paper"])


def chooser(policy: str = "unbiased", rate: float = 0.5, seed: int = 0) -> Chooser:
    """Make one over three methods."""
    return Chooser(resolve_methods(METHODS), resolve_policy(policy), sampling_rate=rate, seed=seed)


def scored(seed: int, rows: int = 12) -> Scored:
    """Make losses."""
    return Scored(torch.from_numpy(np.random.default_rng(seed).gamma(1, size=rows)).float())


def feedback(chosen: Selection) -> Feedback:
    """Make fresh losses of what was chosen."""
    losses = torch.linspace(0.1, 3, len(chosen.indices))
    valid = torch.ones(len(losses), dtype=torch.bool)
    return Feedback(losses, chosen.importances, chosen.probabilities, chosen.inclusions, valid)


def bits(chosen: Selection | None) -> list[Any]:
    """Everything about a choice."""
    assert chosen is not None
    parts = (chosen.indices, chosen.weights, chosen.method_weights, chosen.method_losses)
    return [part.tolist() for part in parts]


@policies
def test_choosing_is_the_step_of_the_algorithm(policy: str) -> None:
    """Nothing is added to it but the count of rows and the randomness."""
    rule, made = resolve_policy(policy), chooser(policy)
    generator = torch.Generator().manual_seed(0)
    state = State.initial(3)
    for seed in range(4):
        losses = scored(seed).losses
        noise = torch.empty(12).normal_(generator=generator) if rule.noisy else None
        batch = LossBatch.of(losses, noise=noise, all_finite=True)
        state, want = step(state, batch, 6, resolve_methods(METHODS), rule, generator)
        assert bits(made.choose(scored(seed))) == bits(want)


@policies
def test_the_state_is_all_that_the_future_depends_on(policy: str) -> None:
    """Also after learning, and from the very beginning."""
    for cut in range(4):
        one, other = chooser(policy), chooser(policy, seed=77)
        for seed in range(cut):
            chosen = one.choose(scored(seed))
            assert chosen is not None
            one.learn(feedback(chosen))
        other.load_state_dict(one.state_dict(), None)
        if cut:  # before the first choice nothing was drawn, and the seed is a setting
            assert bits(one.choose(scored(9))) == bits(other.choose(scored(9)))
            assert str(one.state_dict()) == str(other.state_dict())


def test_only_rows_that_may_be_chosen_are_counted() -> None:
    """The rate is that of the finite rows; a batch without any draws nothing."""
    made = chooser()
    nan = float("nan")
    assert made.choose(Scored(torch.full((12,), nan))) is None
    assert made.state_dict()["policy"] is None
    losses = scored(0).losses
    losses[[0, 3, 4, 7]] = nan
    chosen = made.choose(Scored(losses))
    assert chosen is not None
    assert len(chosen.indices) == 4
    assert not {0, 3, 4, 7} & set(chosen.indices.tolist())


def test_when_no_row_is_due_nothing_is_drawn() -> None:
    """Small batches at a small rate; the next ones make up for it."""
    made = chooser(rate=0.1)
    got = [made.choose(scored(0, rows=4)) for _ in range(10)]
    assert [0 if chosen is None else len(chosen.indices) for chosen in got] == [
        *(0, 0, 1, 0, 1, 0, 0, 1, 0, 1)
    ]


def test_a_state_of_another_kind_of_device_goes_on_with_new_draws() -> None:
    """Its generator means nothing here; weights and counts do, and old draws are not repeated."""
    one, other = chooser(seed=3), chooser(seed=3)
    first = one.choose(scored(0))
    state = one.state_dict()
    state["generator"]["device"], state["policy"]["device"] = "hpu", "hpu"
    other.load_state_dict(state, None)
    later = other.choose(scored(0))
    assert bits(first)[2] == bits(later)[2]
    assert bits(first)[0] != bits(later)[0]
    assert other.state_dict()["quota"] == {"seen": 24, "granted": 12}


def test_learning_before_choosing_changes_nothing() -> None:
    """There is no state that it could move."""
    made = chooser()
    chosen = chooser().choose(scored(0))
    assert chosen is not None
    made.learn(feedback(chosen))
    assert made.state_dict()["policy"] is None


@pytest.mark.parametrize(("policy", "learns"), [(unbiased(), True), (paper(), False)])
def test_it_says_whether_it_learns(policy: Any, learns: bool) -> None:
    """So that nobody sends losses for nothing."""
    made = Chooser(resolve_methods(METHODS), policy, sampling_rate=0.5, seed=0)
    assert made.learns == learns


def test_rows_without_a_finite_gradient_norm_are_not_chosen() -> None:
    """Also where their loss is finite."""
    residuals = torch.ones(6, 2)
    residuals[1], residuals[4] = float("inf"), float("nan")
    given = Scored(torch.ones(6), residuals, torch.ones(6, 3))
    made = Chooser(resolve_methods(["gradient_norm"]), unbiased(), sampling_rate=1.0, seed=0)
    chosen = made.choose(given)
    assert chosen is not None
    assert sorted(chosen.indices.tolist()) == [0, 2, 3, 5]
    assert isinstance(chosen.weights, Tensor)
    assert chosen.weights.tolist() == [1.0] * 4


def test_a_batch_that_nothing_was_chosen_from_is_not_counted() -> None:
    """A method that fails leaves the rows that are due, and the draws, as they were."""

    def fails(batch: LossBatch) -> Tensor:
        return batch.losses[:-1]

    made = Chooser({"fails": fails}, unbiased(), sampling_rate=0.5, seed=0)
    before = made.state_dict()["quota"]
    with pytest.raises(MethodError):
        made.choose(scored(0))
    assert made.state_dict()["quota"] == before


def test_the_first_batch_without_a_finite_loss_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A model that diverged would otherwise select nothing in silence; once is enough."""
    made = chooser()
    for _ in range(3):
        made.choose(Scored(torch.full((12,), float("nan"))))
    assert [record.getMessage()[:29] for record in caplog.records] == [
        "all of the 12 losses or gradi"
    ]


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, r"seed must be in \[0, 2\*\*63\), got -1"),
        (2**63, ValueError, r"seed must be in \[0, 2\*\*63\)"),
        (True, TypeError, "seed must be a whole number, got bool"),
        ("1", TypeError, "seed must be a whole number, got str"),
    ],
)
def test_a_seed_that_no_generator_takes_is_refused(
    seed: Any, error: type[Exception], message: str
) -> None:
    """At construction, not at the first batch."""
    with pytest.raises(error, match=message):
        chooser(seed=seed)
