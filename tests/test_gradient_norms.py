from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from adasel_stream.errors import ScoreError
from adasel_stream.last_layer import gradient_norms
from adasel_stream.scorers import ModelScorer, checked
from adasel_stream.types import Scored
from tests.streams import labelled

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross entropy": lambda out, y: cross_entropy(out, y, reduction="none"),
    "smoothed": lambda out, y: cross_entropy(out, y, reduction="none", label_smoothing=0.1),
    "mse": lambda out, y: mse_loss(out, y[:, None].expand_as(out).float(), reduction="none").sum(1),
    "bce": lambda out, y: binary_cross_entropy_with_logits(
        out[:, 0], (y == 1).float(), reduction="none"
    ),
}


def norms_of(scored: Scored) -> Tensor:
    """Give the gradient norms of rows whose last layer was captured."""
    assert scored.last_layer is not None
    return gradient_norms(scored.last_layer)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_norms_are_those_of_the_last_layer(name: str) -> None:
    """They equal autograd's gradient of each row's loss by the last layer's weight and bias."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = labelled()
    x = x.double()
    scorer = ModelScorer(lambda b: LOSSES[name](model(b[0]), b[1]), model, last_layer=True)
    got = norms_of(checked(scorer((x, y)), len(x)))

    def loss(head: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        out: Tensor = functional_call(model, head, (row[None],))
        return LOSSES[name](out, label[None]).squeeze()

    head = {k: v.detach() for k, v in model.named_parameters() if k.startswith("2.")}
    grads = vmap(grad(loss), in_dims=(None, 0, 0))(head, x, y)
    want = (grads["2.weight"].flatten(1).square().sum(1) + grads["2.bias"].square().sum(1)).sqrt()
    torch.testing.assert_close(got, want.float())


def test_gradient_norms_of_tokens_bound_the_rows_gradient() -> None:
    """Tokens between rows and features are summed over: by the triangle inequality a bound."""
    torch.manual_seed(2)
    head = nn.Linear(5, 7)
    x, y = torch.randn(6, 9, 5), torch.randint(0, 7, (6, 9))

    def score(b: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(head(b[0]).transpose(1, 2), b[1], reduction="none").mean(1)

    scored = checked(ModelScorer(score, head, last_layer=True)((x, y)), 6)
    bound = norms_of(scored)
    assert bound is not None
    for row in range(6):
        grads = torch.autograd.grad(score((x[row : row + 1], y[row : row + 1])).sum(), head.weight)
        assert grads[0].norm() <= bound[row]
    assert tuple(bound.shape) == (6,)


def test_the_last_linear_layer_called_is_the_last_layer() -> None:
    """Not the last one defined."""

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(6, 2), nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            """Call the body first."""
            out: Tensor = self.head(self.body(x))
            return out

    model = Backwards()
    scored = ModelScorer(lambda x: model(x).square().sum(1), model, last_layer=True)(labelled()[0])
    assert scored.residuals is not None
    assert scored.features is not None
    assert (scored.residuals.shape, scored.features.shape) == ((16, 2), (16, 6))


def test_a_score_may_bring_its_own_last_layer_quantities() -> None:
    """Then the model needs no linear layer at all."""
    model = nn.Conv1d(1, 2, 3)

    def score(x: Tensor) -> Scored:
        out = model(x[:, None]).flatten(1)
        return Scored(out.square().sum(1), 2 * out, x)

    scorer = ModelScorer(score, model, last_layer=True)
    for _ in range(2):
        norms = norms_of(checked(scorer(labelled()[0]), 16))
        assert norms is not None
        assert norms.shape == (16,)


UNRELATED: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str]] = {
    "no graph": (lambda m, x: m(x).detach().sum(1), "have no gradient in any of the 2 linear lay"),
    "twice as many": (lambda m, x: m(x).repeat(2, 1).sum(1), "follow none of the 2 linear layers"),
    "all at once": (lambda m, x: m(x).softmax(0).sum(1), "follow none of the 2 linear layers"),
}


@pytest.mark.parametrize("name", UNRELATED)
def test_losses_that_do_not_come_from_the_last_layer_are_refused(name: str) -> None:
    """The message says what was looked for and the way out."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    score, message = UNRELATED[name]

    def both(x: Tensor) -> Tensor:
        model(x)
        return score(model, x)

    with pytest.raises(ScoreError, match=message) as caught:
        ModelScorer(both, model, last_layer=True)(labelled()[0])
    assert "let score return Scored(losses, residuals, features)" in str(caught.value)


def test_a_model_without_linear_layer_is_refused_where_one_is_needed() -> None:
    """The message names the model's type."""
    model = nn.BatchNorm1d(4)
    with pytest.raises(ScoreError, match=r"no nn\.Linear of BatchNorm1d took part in scoring"):
        ModelScorer(lambda x: model(x).sum(1), model, last_layer=True)(labelled()[0])


def test_a_score_of_ones_own_may_carry_a_graph() -> None:
    """Residuals and features that still have their gradients are taken without them."""
    features = torch.ones(3, 2, requires_grad=True)
    scored = checked(Scored(torch.ones(3), torch.ones(3, 1), features * 2), 3)
    assert scored.features is not None
    assert not scored.features.requires_grad
