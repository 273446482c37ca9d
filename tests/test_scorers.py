from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from adasel_stream.errors import ScoreError
from adasel_stream.last_layer import gradient_norms
from adasel_stream.scorers import ModelScorer, as_scored, checked, scorer_for
from adasel_stream.types import Scored
from tests.streams import labelled


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


def norms_of(scored: Scored) -> Tensor:
    """Give the gradient norms of rows whose last layer was captured."""
    assert scored.last_layer is not None
    return gradient_norms(scored.last_layer)


@how
def test_scoring_leaves_no_trace(last_layer: bool, autocast: torch.dtype | None) -> None:
    """Weights, gradients, buffers, flags of each module, randomness and grad mode are as before."""
    torch.manual_seed(1)
    model = Touchy().train()
    model.frozen.eval()
    losses_of(model, labelled()).mean().backward()  # type: ignore[no-untyped-call] # untyped in torch
    scorer = ModelScorer(
        lambda b: losses_of(model, b), model, autocast=autocast, last_layer=last_layer
    )
    before = spoilable(model)
    for _ in range(3):
        scored = scorer(labelled())
        assert same(before, spoilable(model))
        assert not scored.losses.requires_grad
    with torch.no_grad():
        scorer(labelled())
        assert not torch.is_grad_enabled()


def test_dropout_is_off_and_batch_norm_uses_its_statistics_while_scoring() -> None:
    """The losses are those of a forward pass in eval mode."""
    model = Touchy()
    scorer = ModelScorer(lambda b: losses_of(model, b), model)
    losses = scorer(labelled()).losses
    assert torch.equal(losses, scorer(labelled()).losses)
    assert model.modes == [(False, False), (False, False)]
    with torch.no_grad():
        want = losses_of(model.eval(), labelled())
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
            scorer(labelled())
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
    scorer(labelled())
    model.writes_table = True
    with pytest.warns(RuntimeWarning, match=r"wrote its large buffers \['table'\] while it was sc"):
        scorer(labelled())
    assert model.table[0] == 1
    scorer(labelled())
    assert (model.table[0].item(), model.calls.item()) == (1, 0)


def test_a_large_buffer_that_is_written_from_the_start_is_always_restored() -> None:
    """Everything is copied the first time."""
    model = Touchy()
    model.writes_table = True
    scorer = ModelScorer(lambda b: losses_of(model, b), model)
    scorer(labelled())
    scorer(labelled())
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
        scored = checked(scorer(labelled()[0]), 16)
        assert scored.losses.dtype == torch.float32
    assert set(dtypes) == {torch.bfloat16}
    norms = norms_of(scored)
    assert norms is not None
    assert norms.dtype == torch.float32


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        (Scored(torch.tensor(1.0)), r'a scalar loss, expected one .* reduction="none"'),
        (Scored(torch.ones(3)), r"shape \(3,\), expected \(4,\): one loss per row$"),
        (Scored(torch.ones(4, 2)), r"shape \(4, 2\), .* per row; average or sum .*flatten\(1\)"),
        (Scored(torch.ones(8)), r"shape \(8,\), .* a row's tokens, as by losses.view\(4, -1\)"),
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
    score = scorer_for(torch.sqrt, None, autocast=None, last_layer=True)
    assert score is not None
    assert as_scored(score(torch.tensor([4.0]))).losses.tolist() == [2.0]
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
