"""Models of several tasks, whose heads are taken together, against autograd row by row."""

import pytest
import torch
from torch import Tensor, nn

from adasel_stream.last_layer import mean_gradient
from adasel_stream.passes import scored_in_passes
from adasel_stream.scorers import ModelScorer, checked
from tests.residuals import ROWS, captured, features, of_classes


class Tasks(nn.Module):
    """Two tasks with a head each, on the same features or on their own, in either order."""

    def __init__(self, *, shared: bool, turned: bool) -> None:
        super().__init__()
        self.body, self.tower = nn.Linear(4, 8), nn.Linear(4, 5)
        self.classes, self.value = nn.Linear(8, 3), nn.Linear(8 if shared else 5, 1)
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.shared, self.turned = shared, turned

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits (b, 3) and values (b, 1)."""
        hidden: Tensor = self.body(x).tanh()
        other: Tensor = hidden if self.shared else self.tower(x).relu()
        if self.turned:
            value: Tensor = self.value(other)
            return self.classes(hidden), value
        return self.classes(hidden), self.value(other)


def of_tasks(model: Tasks, x: Tensor) -> Tensor:
    """Add losses of both tasks, one of them scaled by a parameter."""
    logits, value = model(x)
    error = (value.squeeze(1) - x[:, 1]).square()
    losses: Tensor = of_classes(logits) + 4 * error * model.scale.exp()
    return losses


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shared", [True, False])
def test_several_tasks_are_taken_together(shared: bool, turned: bool) -> None:
    """The gradient of all heads is that of each, for each row, in whatever order they come."""
    torch.manual_seed(2)
    model, batch = Tasks(shared=shared, turned=turned), features()
    scorer = ModelScorer(lambda x: of_tasks(model, x), model, last_layer=True)
    losses, heads = of_tasks(model, batch), (model.classes, model.value)
    weights: list[Tensor] = [parameter for head in heads for parameter in (head.weight, head.bias)]
    each = [torch.autograd.grad(one, weights, retain_graph=True) for one in losses]
    want = torch.stack([torch.cat([own.flatten() for own in row]).norm() for row in each])
    mean = torch.autograd.grad(losses.mean(), weights)
    length = torch.cat([own.flatten() for own in mean]).norm()
    for _ in range(2):
        scored = checked(scorer(batch), ROWS)
        last = scored.last_layer
        assert last is not None
        torch.testing.assert_close(captured(scored).norm(dim=(1, 2)), want)
        torch.testing.assert_close(mean_gradient(last).norm(), length)


class Many(nn.Module):
    """A dozen tasks, of which each row has labels of two, weighed by a vector of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 1) for _ in range(12)])
        self.log_vars = nn.Parameter(torch.linspace(-1, 1, 12))

    def losses(self, x: Tensor) -> Tensor:
        """Give losses (b,)."""
        hidden = self.body(x).tanh()
        out = torch.cat([head(hidden) for head in self.heads], 1)
        labelled = (torch.arange(12) % 6) == torch.arange(len(x))[:, None] % 6
        losses: Tensor = ((out - 1).square() * self.log_vars.exp() * labelled).sum(1)
        return losses


def test_tasks_of_any_number_and_weights_of_theirs_are_taken() -> None:
    """A weight for each task is not a layer that acts on features."""
    torch.manual_seed(2)
    model, batch = Many(), features()
    scorer = ModelScorer(model.losses, model, last_layer=True)
    weights = list(model.heads.parameters())
    each = [
        torch.autograd.grad(one, weights, retain_graph=True, allow_unused=True)
        for one in model.losses(batch)
    ]
    want = [torch.cat([own.flatten() for own in row if own is not None]).norm() for row in each]
    got = captured(scorer(batch)).norm(dim=(1, 2))
    torch.testing.assert_close(got, torch.stack(want))


class Both(nn.Module):
    """Two heads, one of which is called once, twice, or not at all, or with another input."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.other = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def losses(self, x: Tensor, ways: Tensor) -> Tensor:
        """Give losses (b,)."""
        way, hidden = int(ways[0]), self.body(x).tanh()
        losses = of_classes(self.one(hidden))
        if way == 1:
            losses = losses + self.other(hidden).squeeze(1).square()
        elif way == 2:
            losses = losses + (self.other(hidden) - self.other(-hidden)).squeeze(1).square()
        elif way == 3:
            losses = losses + self.other(1 * hidden).squeeze(1).square()
        return losses


def test_heads_may_be_called_in_other_ways_in_each_batch_of_a_window() -> None:
    """What a batch lacks is 0; the gradient of all of the window is what autograd says."""
    torch.manual_seed(2)
    model, batches = Both(), [(features(), torch.full((ROWS,), way)) for way in (2, 1, 0, 3, 1)]
    scorer = ModelScorer(lambda batch: model.losses(*batch), model, last_layer=True)
    scored = scored_in_passes(scorer, batches).scored
    assert scored is not None
    assert scored.last_layer is not None
    losses = torch.cat([model.losses(*batch) for batch in batches])
    weights = [*model.one.parameters(), *model.other.parameters()]
    mean = torch.autograd.grad(losses.mean(), weights)
    length = torch.cat([own.flatten() for own in mean]).norm()
    torch.testing.assert_close(mean_gradient(scored.last_layer).norm(), length)


def test_layers_that_some_rows_alone_take_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Their outputs have no row for each loss."""
    model = Both()

    def score(x: Tensor) -> Tensor:
        hidden = model.body(x).tanh()
        losses = model.other(hidden).squeeze(1).square()
        some = torch.tensor([0, 2])
        both: Tensor = losses.index_add(0, some, of_classes(model.one(hidden[some])))
        return both

    ModelScorer(score, model, last_layer=True)(features())
    assert "otherwise than row by row on 1 more linear layers of Both, such as one" in caplog.text


def test_heads_over_features_of_their_own_must_not_take_too_much(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of what they take are zeros; then the one that is called last is taken alone."""
    monkeypatch.setattr("adasel_stream.heads._MOST_BYTES", 100)
    model, batch = Tasks(shared=False, turned=False), features()
    last = ModelScorer(lambda x: of_tasks(model, x), model, last_layer=True)(batch).last_layer
    assert last is not None
    assert last.residuals.shape == (ROWS, 1)
    assert "those of value alone are taken" in caplog.text


def test_a_task_without_labels_in_a_batch_counts_nothing() -> None:
    """Its head is called, and no loss depends on it."""
    model, batch = Tasks(shared=False, turned=False), features()
    labelled = [True]

    def score(x: Tensor) -> Tensor:
        logits, _ = model(x)
        return of_tasks(model, x) if labelled[0] else of_classes(logits)

    scorer = ModelScorer(score, model, last_layer=True)
    scorer(batch)
    only = ModelScorer(lambda x: of_classes(model(x)[0]), model, last_layer=True)
    want = captured(only(batch))
    labelled[0] = False
    got = captured(scorer(batch))
    torch.testing.assert_close(got.norm(dim=(1, 2)), want.norm(dim=(1, 2)))
