from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap  # type: ignore[attr-defined] # untyped in torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from adasel_stream.errors import ScoreError
from adasel_stream.scorers import ModelScorer, checked, gradient_norms, scorer_for
from adasel_stream.types import Scored


class Touchy(nn.Module):
    """A model with everything that scoring could spoil."""

    calls: Tensor
    seen: Tensor
    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8)
        )
        self.frozen = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.frozen.eval()
        self.frozen[1].train()
        self.head = nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(8))
        self.register_buffer("table", torch.zeros(1 << 19), persistent=False)
        self.writes_table = False
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Write buffers in place and by replacing them, in eval mode too."""
        self.modes.append((self.training, torch.is_grad_enabled()))
        hidden = self.frozen(self.body(x))
        self.calls += 1
        self.seen = hidden.detach().mean(0)
        if self.writes_table:
            self.table[0] += 1
        logits: Tensor = self.head(hidden)
        return logits


def losses_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross entropy of each row."""
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def batch(rows: int = 16) -> tuple[Tensor, Tensor]:
    """Features and labels."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 4, generator=generator)
    return x, torch.randint(0, 3, (rows,), generator=generator)


def spoilable(model: nn.Module) -> dict[str, Any]:
    """Everything that scoring must leave: values, identities, flags, randomness, grad mode."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        "values": {name: tensor.detach().clone() for name, tensor in named},
        "objects": {name: id(tensor) for name, tensor in named},
        "grads": {n: None if p.grad is None else p.grad.clone() for n, p in named},
        "training": {name: module.training for name, module in model.named_modules()},
        "random": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


def same(before: Any, after: Any) -> bool:
    """Compare bit for bit, and flags by value."""
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[k], after[k]) for k in before)
    return torch.equal(before, after) if isinstance(before, Tensor) else bool(before == after)


how = pytest.mark.parametrize(
    ("last_layer", "autocast"),
    [(False, None), (True, None), (False, torch.bfloat16), (True, torch.bfloat16)],
)


@how
def test_scoring_leaves_no_trace(last_layer: bool, autocast: torch.dtype | None) -> None:
    """Weights, gradients, buffers, flags of each module, randomness and grad mode are as before."""
    torch.manual_seed(1)
    model = Touchy().train()
    model.frozen.eval()
    losses_of(model, batch()).mean().backward()  # type: ignore[no-untyped-call] # untyped in torch
    scorer = ModelScorer(
        lambda b: losses_of(model, b), model, autocast=autocast, last_layer=last_layer
    )
    before = spoilable(model)
    for _ in range(3):
        scored = scorer(batch())
        assert same(before, spoilable(model))
        assert not scored.losses.requires_grad
    with torch.no_grad():
        scorer(batch())
        assert not torch.is_grad_enabled()


def test_dropout_is_off_and_batch_norm_uses_its_statistics_while_scoring() -> None:
    """The losses are those of a forward pass in eval mode."""
    model = Touchy()
    scorer = ModelScorer(lambda b: losses_of(model, b), model)
    losses = scorer(batch()).losses
    assert torch.equal(losses, scorer(batch()).losses)
    assert model.modes == [(False, False), (False, False)]
    with torch.no_grad():
        want = losses_of(model.eval(), batch())
    assert torch.equal(losses, want)


@how
def test_a_failing_score_leaves_no_trace(last_layer: bool, autocast: torch.dtype | None) -> None:
    """The error passes through, and everything is as before."""
    model = Touchy()

    def fail(b: Any) -> Tensor:
        losses_of(model, b)
        torch.rand(3)
        raise ZeroDivisionError

    scorer = ModelScorer(fail, model, autocast=autocast, last_layer=last_layer)
    before = spoilable(model)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            scorer(batch())
        assert same(before, spoilable(model))


def test_a_model_that_cannot_be_evaluated_keeps_its_flags() -> None:
    """Also when `eval` itself fails half-way."""

    class Stubborn(nn.Module):
        def train(self, mode: bool = True) -> "Stubborn":
            """Refuse, after the modules before."""
            if not mode:
                raise NotImplementedError
            return self

    model = nn.Sequential(nn.Dropout(), Stubborn())
    with pytest.raises(NotImplementedError):
        ModelScorer(lambda x: model(x), model)(torch.ones(1))
    assert all(module.training for module in model.modules())


def test_a_large_buffer_that_is_written_late_is_restored_from_then_on() -> None:
    """The first write stays, and is said; small buffers are restored whenever they are written."""
    model = Touchy()
    scorer = ModelScorer(lambda b: losses_of(model, b), model)
    scorer(batch())
    model.writes_table = True
    with pytest.warns(RuntimeWarning, match=r"wrote its large buffers \['table'\] while it was sc"):
        scorer(batch())
    assert model.table[0] == 1
    scorer(batch())
    assert (model.table[0], model.calls) == (1, 0)


def test_a_large_buffer_that_is_written_from_the_start_is_always_restored() -> None:
    """Everything is copied the first time."""
    model = Touchy()
    model.writes_table = True
    scorer = ModelScorer(lambda b: losses_of(model, b), model)
    scorer(batch())
    scorer(batch())
    assert model.table[0] == 0


def test_autocast_is_on_while_scoring_and_losses_come_as_float32() -> None:
    """In the dtype asked for; checked losses are of one dtype always."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    dtypes: list[torch.dtype] = []

    def score(x: Tensor) -> Tensor:
        out: Tensor = model(x).squeeze(1)
        dtypes.append(out.dtype)
        return out

    for last_layer in (False, True):
        scorer = ModelScorer(score, model, autocast=torch.bfloat16, last_layer=last_layer)
        scored = checked(scorer(batch()[0]), 16)
        assert scored.losses.dtype == torch.float32
    assert set(dtypes) == {torch.bfloat16}
    norms = gradient_norms(scored)
    assert norms is not None
    assert norms.dtype == torch.float32


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross entropy": lambda out, y: cross_entropy(out, y, reduction="none"),
    "smoothed": lambda out, y: cross_entropy(out, y, reduction="none", label_smoothing=0.1),
    "mse": lambda out, y: mse_loss(out, y[:, None].expand_as(out).float(), reduction="none").sum(1),
    "bce": lambda out, y: binary_cross_entropy_with_logits(
        out[:, 0], (y == 1).float(), reduction="none"
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_norms_are_those_of_the_last_layer(name: str) -> None:
    """They equal autograd's gradient of each row's loss by the last layer's weight and bias."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = batch()
    x = x.double()
    scorer = ModelScorer(lambda b: LOSSES[name](model(b[0]), b[1]), model, last_layer=True)
    got = gradient_norms(checked(scorer((x, y)), len(x)))

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
    bound = gradient_norms(scored)
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
    scored = ModelScorer(lambda x: model(x).square().sum(1), model, last_layer=True)(batch()[0])
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
        norms = gradient_norms(checked(scorer(batch()[0]), 16))
        assert norms is not None
        assert norms.shape == (16,)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda m, x: m(x).detach().sum(1), "do not follow row by row"),
        (lambda m, x: m(x).repeat(2, 1).sum(1), r"shape \(16, 2\).* losses, shape \(32,\)"),
    ],
)
def test_losses_that_do_not_come_from_the_last_layer_are_refused(
    score: Callable[[nn.Module, Tensor], Tensor], message: str
) -> None:
    """The message shows both shapes and the way out."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))

    def both(x: Tensor) -> Tensor:
        model(x)
        return score(model, x)

    with pytest.raises(ScoreError, match=message) as caught:
        ModelScorer(both, model, last_layer=True)(batch()[0])
    assert "let score return Scored(losses, residuals, features)" in str(caught.value)


def test_a_model_without_linear_layer_is_refused_where_one_is_needed() -> None:
    """The message names the model's type."""
    model = nn.BatchNorm1d(4)
    with pytest.raises(ScoreError, match=r"no nn\.Linear of BatchNorm1d took part in scoring"):
        ModelScorer(lambda x: model(x).sum(1), model, last_layer=True)(batch()[0])


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        (Scored(torch.tensor(1.0)), r'a scalar loss, expected one .* reduction="none"'),
        (Scored(torch.ones(3)), r"shape \(3,\), expected \(4,\): one loss per row; average or sum"),
        (Scored(torch.ones(4, 2)), r"shape \(4, 2\), expected \(4,\)"),
        (Scored(torch.ones(4, dtype=torch.int64)), r"dtype torch.int64, expected floating point"),
        (Scored([1.0] * 4), "returned list, expected a tensor of losses"),  # type: ignore[arg-type]
        (Scored(torch.ones(4), torch.ones(3, 2)), r"residuals of shape \(3, 2\), expected \(4, "),
        (Scored(torch.ones(4), None, torch.ones(4)), r"features of shape \(4,\), expected \(4, "),
    ],
)
def test_anything_but_one_loss_per_row_is_refused(scored: Scored, message: str) -> None:
    """The message says what came and what to do."""
    with pytest.raises(ScoreError, match=message):
        checked(scored, 4)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_losses_are_float32_without_graph(dtype: torch.dtype) -> None:
    """Whatever floating-point dtype they come in; what is not finite stays so."""
    losses = torch.tensor([1.0, float("nan"), float("inf")], dtype=dtype, requires_grad=True)
    got = checked(Scored(losses), 3).losses
    assert (got.dtype, got.requires_grad) == (torch.float32, False)
    assert got.isfinite().tolist() == [True, False, False]


def test_without_a_model_the_score_is_taken_as_it_is() -> None:
    """Whoever scores by another way needs none."""
    assert scorer_for(len, None, autocast=None, last_layer=True) is len  # type: ignore[arg-type, comparison-overlap]
    assert scorer_for(None, None, autocast=None, last_layer=False) is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": nn.Linear(1, 1), "score": None}, ValueError, "model= needs score="),
        ({"autocast": torch.float16, "model": None}, ValueError, "autocast= needs model="),
        ({"model": len}, TypeError, "model must be a torch.nn.Module, got builtin_function"),
        ({"score": 3}, TypeError, "score must be a function of a batch, got int"),
        ({"autocast": True}, TypeError, "autocast must be a dtype such as .*, got bool"),
    ],
)
def test_wrong_arguments_fail_at_construction(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """With what was expected and what came."""
    given: dict[str, Any] = {"score": len, "model": nn.Linear(1, 1), "autocast": None, **arguments}
    with pytest.raises(error, match=message):
        scorer_for(given["score"], given["model"], autocast=given["autocast"], last_layer=False)
