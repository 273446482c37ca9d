"""Scores run as they would unwatched, whatever they do with the outputs of layers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from adasel_stream.scorers import ModelScorer, checked
from adasel_stream.types import Scored
from adasel_stream.watching import watched
from tests.streams import labelled

Batch = tuple[Tensor, Tensor]


def small() -> nn.Sequential:
    """Give a model with two layers."""
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def by_input(model: nn.Module, batch: Batch) -> Scored:
    """Give losses and what their gradients in the input are, as residuals."""
    with torch.enable_grad():
        x = batch[0].clone().requires_grad_()
        losses = cross_entropy(model(x), batch[1], reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    return Scored(losses, gradient, x)


def by_sample(model: nn.Module, batch: Batch) -> Scored:
    """Give losses, and as residuals what torch.func says that their gradients in a bias are."""

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = functional_call(model, parameters, (x[None],))
        return cross_entropy(out, y[None])

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, *batch)
    losses = cross_entropy(model(batch[0]), batch[1], reduction="none")
    return Scored(losses, found["2.bias"], batch[0])


@pytest.mark.parametrize("score", [by_input, by_sample])
def test_a_score_may_differentiate_by_itself(score: Callable[[nn.Module, Batch], Scored]) -> None:
    """Through the whole model, and by torch.func: what it brings is what it would be unwatched."""
    torch.manual_seed(0)
    model = small()
    expected = score(model, labelled())
    scorer = ModelScorer(lambda b: score(model, b), model, last_layer=True)
    for _ in range(2):
        got = checked(scorer(labelled()), 16)
        torch.testing.assert_close(got.losses, expected.losses.detach())
        torch.testing.assert_close(got.residuals, expected.residuals)


def test_a_score_that_brings_its_own_is_watched_but_once() -> None:
    """Later calls run as without it: no gradients are turned on."""
    model, modes = small(), list[bool]()

    def score(batch: Batch) -> Scored:
        out = model(batch[0])
        modes.append(torch.is_grad_enabled())
        return Scored(out.sum(1), torch.ones_like(out), batch[0])

    scorer = ModelScorer(score, model, last_layer=True)
    for _ in range(3):
        scorer(labelled())
    assert modes == [True, False, False]


def test_marks_and_calls_come_in_order_and_hold_no_outputs() -> None:
    """An output of any size is stood for by a single number."""
    model = small()
    x, _ = labelled()
    with torch.no_grad():
        seen = watched(model.modules(), lambda: Scored(model(x).sum(1)))
    assert [call.layer for call in seen.calls] == [model[0], model[2]]
    assert torch.equal(seen.calls[0].features, x)
    assert [tuple(call.mark.shape) for call in seen.calls] == [(16, 8), (16, 3)]
    assert [call.mark.untyped_storage().size() for call in seen.calls] == [4, 4]


def test_no_graph_goes_through_a_layer() -> None:
    """Losses depend on the mark of the last layer alone, not on that of one before."""
    model = small()
    with torch.no_grad():
        seen = watched(model.modules(), lambda: Scored(model(labelled()[0]).sum(1)))
    marks = [call.mark for call in seen.calls]
    first, last = torch.autograd.grad(seen.scored.losses.sum(), marks, allow_unused=True)
    assert first is None
    assert torch.equal(last, torch.ones(16, 3))


@pytest.mark.parametrize("enabled", [True, False])
def test_grad_mode_and_hooks_are_as_before(enabled: bool) -> None:
    """Also where the score raises."""
    model = small()

    def fail() -> Scored:
        model(labelled()[0])
        raise ZeroDivisionError

    with torch.set_grad_enabled(enabled):
        with pytest.raises(ZeroDivisionError):
            watched(model.modules(), fail)
        assert torch.is_grad_enabled() == enabled
    assert model(labelled()[0]).grad_fn.name() == "AddmmBackward0"  # the layer's own


def test_what_is_watched_may_be_written_in_place() -> None:
    """Losses and gradients are those of the same arithmetic without writing."""
    model = small()
    x, _ = labelled()

    def in_place() -> Scored:
        out: Tensor = model(x)
        out *= 3
        out[:, 0] = 1
        return Scored(out.square_().sum(1))

    with torch.no_grad():
        seen = watched([model[2]], in_place)
        out = model(x)
    (got,) = torch.autograd.grad(seen.scored.losses.sum(), [seen.calls[0].mark])
    torch.testing.assert_close(got, 18 * out * torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(seen.scored.losses, 1 + 9 * out[:, 1:].square().sum(1))
