"""Rules of others do what their sources say."""

import pytest
import torch

from benchmarks.evidence.rules import InfoBatch, SelectiveBackprop

ROWS = 4_000


def test_infobatch_keeps_all_it_knows_nothing_of() -> None:
    """In the first epoch every row is kept and weighs 1."""
    kept, weights = InfoBatch(0.2, ROWS, 0).choose(torch.arange(ROWS), None, 0.0)
    assert torch.equal(kept, torch.arange(ROWS))
    assert weights.eq(1).all()


def trained_infobatch() -> tuple[InfoBatch, torch.Tensor]:
    """Give a rule that knows a loss of every row, and those losses."""
    losses = torch.rand(ROWS, generator=torch.Generator().manual_seed(1)) ** 2
    rule = InfoBatch(0.2, ROWS, 0)
    rule.learn(torch.arange(ROWS), losses)
    return rule, losses


def test_infobatch_prunes_half_below_the_mean_and_doubles_the_rest() -> None:
    """Rows above the mean stay with weight 1; of those below half stay and weigh 2."""
    rule, losses = trained_infobatch()
    kept, weights = rule.choose(torch.arange(ROWS), None, 0.5)
    below = losses < losses.mean()
    assert torch.equal(weights, torch.where(below, 2.0, 1.0)[kept])
    assert set((~below).nonzero()[:, 0].tolist()) <= set(kept.tolist())
    share = float(below[kept].sum() / below.sum())
    assert share == pytest.approx(0.5, abs=4 * 0.5 / float(below.sum()) ** 0.5)


def test_infobatch_keeps_the_sum_of_gradients() -> None:
    """Weighed, what is kept stands for all rows: the mean of weighed losses does not move."""
    rule, losses = trained_infobatch()
    means = [
        float((losses[kept] * weights).sum() / ROWS)
        for kept, weights in (rule.choose(torch.arange(ROWS), None, 0.5) for _ in range(50))
    ]
    assert sum(means) / 50 == pytest.approx(float(losses.mean()), rel=0.01)


def test_infobatch_prunes_nothing_in_the_last_eighth() -> None:
    """From 7/8 of the updates on every row is kept with weight 1."""
    rule, _ = trained_infobatch()
    assert len(rule.choose(torch.arange(ROWS), None, 0.874)[0]) < ROWS
    kept, weights = rule.choose(torch.arange(ROWS), None, 0.875)
    assert len(kept) == ROWS
    assert weights.eq(1).all()


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_selective_backprop_keeps_its_rate(rate: float) -> None:
    """Over losses that do not change it keeps the rate on average, and never weighs."""
    rule, random = SelectiveBackprop(rate, 0, 0), torch.Generator().manual_seed(2)
    kept = 0
    for number in range(220):
        chosen, weights = rule.choose(torch.arange(64), torch.rand(64, generator=random), 0.0)
        assert weights.eq(1).all()
        kept += len(chosen) if number >= 20 else 0  # when its history is full
    count = 200 * 64
    assert kept / count == pytest.approx(rate, abs=4 * (rate * (1 - rate) / count) ** 0.5)


def test_selective_backprop_goes_by_the_percentile() -> None:
    """A row with the largest loss so far is always kept, at a low rate the smallest hardly ever."""
    rule = SelectiveBackprop(0.1, 0, 0)
    rule.choose(torch.arange(1_000), torch.linspace(0, 1, 1_000), 0.0)
    kept = [
        rule.choose(torch.arange(2), torch.tensor([2.0, -1.0]), 0.0)[0].tolist() for _ in "12345"
    ]
    assert kept == [[0]] * 5
