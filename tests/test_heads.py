"""Heads of all kinds, against gradients that autograd computes row by row."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import cross_entropy, linear
from torch.nn.utils.parametrizations import weight_norm

from adasel_stream.errors import ScoreError
from adasel_stream.heads import find_heads
from adasel_stream.scorers import ModelScorer, checked
from adasel_stream.types import Scored
from tests.residuals import ROWS, captured, features, of_classes

TOKENS, WORDS = 5, 7

Score = Callable[[nn.Module, Tensor], Tensor]
Case = tuple[nn.Module, Score, Tensor, str]
"""A model, its losses, a batch and where in the model the head is."""


class Twice(nn.Module):
    """A head that is called for two views of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Sum over both views."""
        return self.view(x) + self.view(-2 * x)

    def view(self, x: Tensor) -> Tensor:
        """Give the output for one view."""
        out: Tensor = self.head(self.body(x).tanh())
        return out


class OnceOfTwice(Twice):
    """A head two of whose calls count for nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop the first and the last."""
        self.view(-x)
        out = self.view(x)
        self.view(-2 * x)
        return out


class Heads(nn.Module):
    """A main head, and two that the losses do not follow and that are called after it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.other, self.last = nn.Linear(8, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Give outputs of all heads."""
        hidden = self.body(x).tanh()
        return self.head(hidden), self.last(self.other(hidden))


class LowRank(nn.Module):
    """A frozen layer beside two of low rank, the last of which is called last."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(4, 3).requires_grad_(False)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add what was learnt to what is frozen."""
        out: Tensor = self.frozen(x) + self.up(self.down(x))
        return out


class Scaled(nn.Linear):
    """A linear layer with a forward pass of its own, which names its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Scale inputs to unit length."""
        return super().forward(input)


class Named(nn.Module):
    """A model that calls its head with a keyword and overwrites its output."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), Scaled(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Write in place wherever that is possible."""
        out: Tensor = self.head(input=self.body(x).relu_())
        out /= 2
        out[:, 0] -= 1
        return out


class Frozen(nn.Module):
    """A head on features that are computed without gradients."""

    def __init__(self, mode: Callable[[], Any]) -> None:
        super().__init__()
        self.mode = mode
        self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Give the outputs."""
        with self.mode():
            hidden = self.body(x)
        out: Tensor = self.head(hidden.clone())
        return out


class Language(nn.Module):
    """A transformer whose head shares its weight with the embedding."""

    def __init__(self, *, head: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.body = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, WORDS, bias=False) if head else None
        if self.head is not None:
            self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        """Give logits of each token."""
        hidden = self.body(self.embed(words))
        if self.head is None:
            return linear(hidden, self.embed.weight)
        out: Tensor = self.head(hidden)
        return out


def words() -> Tensor:
    """Give sequences of words."""
    return torch.randint(WORDS, (ROWS, TOKENS))


def classified(model: nn.Module, x: Tensor) -> Tensor:
    """Give losses of a classifier."""
    return of_classes(model(x))


def squeezed(model: nn.Module, x: Tensor) -> Tensor:
    """Give losses of a regression with outputs (b, 1)."""
    out: Tensor = model(x).squeeze(1)
    return (out - x[:, 0]).square()


def of_tokens(model: nn.Module, batch: Tensor) -> Tensor:
    """Give the mean over tokens."""
    return cross_entropy(model(batch).transpose(1, 2), batch, reduction="none").mean(1)


def of_masked_tokens(model: nn.Module, batch: Tensor) -> Tensor:
    """Give the mean over some tokens of each row, of the second row over none."""
    losses = cross_entropy(model(batch).transpose(1, 2), batch, reduction="none")
    mask = (batch % 2 == 0) & (torch.arange(len(batch)) != 1)[:, None]
    return (losses * mask).sum(1) / mask.sum(1).clamp(min=1)


def of_flattened_tokens(model: nn.Module, batch: Tensor) -> Tensor:
    """Give the mean over tokens whose features go flattened through the head."""
    out = model(torch.nn.functional.one_hot(batch, WORDS).float().flatten(0, 1))
    return cross_entropy(out, batch.flatten(), reduction="none").reshape(batch.shape).mean(1)


def sequence(*last: nn.Module) -> nn.Sequential:
    """Put a hidden layer before."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), *last)


def lazy() -> nn.Sequential:
    """Give a model whose layers learn their sizes from the first batch."""
    model = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3))
    model(features())
    return model


CASES: dict[str, Callable[[], Case]] = {
    "classes": lambda: (sequence(nn.Linear(8, 3)), classified, features(), "2"),
    "regression": lambda: (sequence(nn.Linear(8, 1)), squeezed, features(), "2"),
    "regression (b,)": lambda: (
        sequence(nn.Linear(8, 1), nn.Flatten(0)),
        lambda m, x: (m(x) - 1).abs(),
        features(),
        "2",
    ),
    "no bias": lambda: (sequence(nn.Linear(8, 3, bias=False)), classified, features(), "2"),
    "lazy": lambda: (lazy(), classified, features(), "2"),
    "wrapped": lambda: (nn.Sequential(sequence(nn.Linear(8, 3))), classified, features(), "0.2"),
    "data parallel": lambda: (
        nn.DataParallel(sequence(nn.Linear(8, 3))),
        classified,
        features(),
        "module.2",
    ),
    "weight norm": lambda: (sequence(weight_norm(nn.Linear(8, 3))), classified, features(), "2"),
    "low rank": lambda: (LowRank(), classified, features(), "up"),
    "keyword and in place": lambda: (Named(), classified, features(), "head"),
    "called twice": lambda: (Twice(), classified, features(), "head"),
    "called in vain": lambda: (OnceOfTwice(), classified, features(), "head"),
    "several heads": lambda: (
        Heads(),
        lambda m, x: of_classes(m(x)[0]),
        features(),
        "head",
    ),
    "no_grad below": lambda: (Frozen(torch.no_grad), classified, features(), "head"),
    "inference below": lambda: (Frozen(torch.inference_mode), classified, features(), "head"),
    "tied": lambda: (Language(head=True), of_tokens, words(), "head"),
    "masked tokens": lambda: (Language(head=True), of_masked_tokens, words(), "head"),
    "flattened tokens": lambda: (nn.Linear(WORDS, WORDS), of_flattened_tokens, words(), ""),
    "functional tie": lambda: (Language(head=False), of_tokens, words(), "body.layers.1.linear2"),
}


def own_gradients(model: nn.Module, score: Score, batch: Tensor, head: str) -> Tensor:
    """Differentiate each row's loss in the head's weight and bias, shape (b, c, h+1)."""
    model, layer = copy.deepcopy(model).eval(), model.get_submodule(head)
    assert isinstance(layer, nn.Linear)
    plain = nn.Linear(layer.in_features, layer.out_features)  # not tied, reparametrised, or frozen
    plain.weight.data.copy_(layer.weight)
    plain.bias.data.copy_(
        layer.bias if "bias" in dict(layer.named_parameters()) else torch.zeros(())
    )
    if head:
        model.set_submodule(head, plain)
    else:
        model = plain
    losses = score(model, batch)
    rows: list[Tensor] = []
    for loss in losses:
        found = torch.autograd.grad(loss, [plain.weight, plain.bias], retain_graph=True)
        rows.append(torch.cat([found[0], found[1][:, None]], 1))
    return torch.stack(rows)


@pytest.mark.parametrize("name", CASES)
def test_what_is_captured_is_the_gradient_of_the_head(name: str) -> None:
    """Of weight and bias, for each row, at the first candidates and after; losses stay the same."""
    torch.manual_seed(3)
    model, score, batch, head = CASES[name]()
    scorer = ModelScorer(lambda x: score(model, x), model, last_layer=True)
    expected = own_gradients(model, score, batch, head)
    with torch.no_grad():
        losses = score(copy.deepcopy(model).eval(), batch)
    for _ in range(2):
        scored = checked(scorer(batch), ROWS)
        torch.testing.assert_close(captured(scored), expected)
        torch.testing.assert_close(scored.losses, losses)


def test_layers_that_learn_their_sizes_while_scored_are_found() -> None:
    """The first scoring may be the model's very first call."""
    model = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(3))
    scorer = ModelScorer(lambda x: classified(model, x), model, last_layer=True)
    for _ in range(2):
        assert captured(checked(scorer(features()), ROWS)).shape == (ROWS, 3, 9)


@pytest.mark.parametrize(("slope", "scale"), [(1.0, 2.0**-18), (1.0, 1.0), (20.0, 2.0**10)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_look_like_a_dependence(
    dtype: torch.dtype, slope: float, scale: float
) -> None:
    """A model in half precision has a head, also where gradients lose digits or overflow."""
    torch.manual_seed(0)
    model = sequence(nn.Linear(8, 3)).to(dtype)
    x = torch.randn(300, 4, dtype=dtype)

    def score(x: Tensor) -> Tensor:
        return of_classes(model(x) * slope) * scale

    scored = ModelScorer(score, model, last_layer=True)(x)
    assert scored.residuals is not None
    assert scored.residuals.dtype == dtype
    assert scored.residuals.any()


class Unordered(Function):
    """What kernels do that add up in no order: the last digit of gradients comes out anyhow."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Change nothing."""
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Go to one neighbouring number or the other."""
        ends = torch.where(torch.rand_like(gradients[0]) < 0.5, -torch.inf, torch.inf)
        return torch.nextafter(gradients[0], ends)


def test_a_last_digit_does_not_look_like_a_dependence() -> None:
    """Gradients need not come out the same each time."""
    torch.manual_seed(0)
    model = sequence(nn.Linear(8, 3))

    def score(x: Tensor) -> Tensor:
        return of_classes(Unordered.apply(model(x)))  # type: ignore[no-untyped-call] # untyped in torch

    scored = ModelScorer(score, model, last_layer=True)(torch.randn(300, 4))
    assert scored.residuals is not None


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("row", [0, 2, ROWS - 1])
def test_a_row_that_is_not_finite_hides_no_head(bad: float, row: int) -> None:
    """The head is found at the first candidates, and other rows' gradients are right."""
    torch.manual_seed(3)
    model, batch = sequence(nn.Linear(8, 3)), features()
    expected = own_gradients(model, classified, batch, "2")
    batch[row] = bad
    scored = ModelScorer(lambda x: classified(model, x), model, last_layer=True)(batch)
    others = torch.arange(ROWS) != row
    assert scored.residuals is not None
    assert scored.features is not None
    kept = Scored(scored.losses[others], scored.residuals[others], scored.features[others])
    torch.testing.assert_close(captured(kept), expected[others])


def pairs(model: nn.Module, x: Tensor) -> Tensor:
    """Compare two views of each row that go through the model as one batch."""
    out: Tensor = model(torch.cat([x, 2 * x]))
    one, other = out.chunk(2)
    return (one - other).square().sum(1)


def time_first(model: nn.Module, x: Tensor) -> Tensor:
    """Hand sequences over with tokens before rows, as recurrent layers have them by default."""
    out: Tensor = model(x[:, None].expand(-1, TOKENS, -1).transpose(0, 1))
    return out.square().sum((0, 2))


def time_first_and_flattened(model: nn.Module, x: Tensor) -> Tensor:
    """Do so with flattened rows."""
    out: Tensor = model(x.repeat(TOKENS, 1) * torch.arange(1, TOKENS * len(x) + 1)[:, None])
    return out.square().sum(1).reshape(TOKENS, len(x)).sum(0)


def contrasted(model: nn.Module, x: Tensor) -> Tensor:
    """Compare each row with the one half a batch further on."""
    out: Tensor = model(x)
    return (out - out.roll(len(out) // 2, 0)).square().sum(1)


def hardly_contrasted(model: nn.Module, x: Tensor) -> Tensor:
    """Add a little of the batch's mean."""
    out: Tensor = model(x)
    return out.square().sum(1) + 1e-3 * out.mean().square()


def centred(model: nn.Module, x: Tensor) -> Tensor:
    """Compare each row with the batch's mean, which goes through the model by itself."""
    out: Tensor = model(x) - model(x.mean(0, keepdim=True))
    return out.square().sum(1)


@pytest.mark.parametrize("rows", [2, 6, 16, 64])
@pytest.mark.parametrize(
    "score", [pairs, time_first, time_first_and_flattened, contrasted, hardly_contrasted, centred]
)
def test_losses_that_depend_on_other_rows_are_refused(score: Score, rows: int) -> None:
    """However the rows are mixed up, and wherever in the batch."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    scorer = ModelScorer(lambda x: score(model, x), model, last_layer=True)
    with pytest.raises(ScoreError, match="follow none of the 1 linear layers of Linear row by row"):
        scorer(torch.randn(rows, 4))


@pytest.mark.parametrize("first", ["one row", "no gradient"])
def test_candidates_that_show_nothing_settle_nothing(first: str) -> None:
    """They are scored; whose rows are whose is found out from later ones."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)

    def score(model: nn.Module, x: Tensor) -> Tensor:
        return hardly_contrasted(model, x) * (len(x) != 4)

    scorer = ModelScorer(lambda x: score(model, x), model, last_layer=True)
    batch = torch.randn(1 if first == "one row" else 4, 4)
    for _ in range(2):
        got = captured(checked(scorer(batch), len(batch)))
        torch.testing.assert_close(got, own_gradients(model, score, batch, ""))
    with pytest.raises(ScoreError, match="row by row"):
        scorer(features())


def test_flattened_rows_are_looked_at_each_time() -> None:
    """Tokens of a ragged batch that happen to be divisible by its rows are not taken for whole."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)

    def score(lengths: Tensor) -> Tensor:
        rows = torch.arange(len(lengths)).repeat_interleave(lengths)
        losses = model(torch.randn(len(rows), 4)).square().sum(1)
        return torch.zeros(len(lengths)).index_add(0, rows, losses)

    scorer = ModelScorer(score, model, last_layer=True)
    assert captured(checked(scorer(torch.tensor([3, 3, 3])), 3)).shape == (3, 3, 5)
    assert captured(checked(scorer(torch.tensor([2, 2])), 2)).shape == (2, 3, 5)
    for lengths in ([2, 3, 4], [2, 3, 5]):
        with pytest.raises(ScoreError, match="losses of 3 rows do not follow the last linear laye"):
            scorer(torch.tensor(lengths))


def in_mode(mode: Callable[[], Any]) -> Score:
    """Give losses of outputs that are computed without gradients."""

    def score(model: nn.Module, x: Tensor) -> Tensor:
        with mode():
            out: Tensor = model(x)
        return of_classes(out.clone())

    return score


def of_nothing(_: nn.Module, x: Tensor) -> Tensor:
    """Give losses without calling the model."""
    return x.sum(1)


def bilinear(model: nn.Module, x: Tensor) -> Tensor:
    """Call a model of two inputs."""
    return of_classes(model(x, x))


@pytest.mark.parametrize(
    ("model", "score", "message"),
    [
        (nn.Bilinear(4, 4, 3), bilinear, r"no nn\.Linear of Bilinear took part in scoring"),
        (nn.Linear(4, 3), of_nothing, r"let score call what is passed as model="),
        (nn.Linear(4, 3), in_mode(torch.no_grad), "have no gradient in any of the 1 linear layers"),
        (nn.Linear(4, 3), in_mode(torch.inference_mode), r"no nn\.Linear of Linear took part"),
    ],
    ids=["bilinear", "not called", "no_grad", "inference_mode"],
)
def test_a_model_without_last_layer_is_refused(
    model: nn.Module, score: Score, message: str
) -> None:
    """The message says what was found, and what to pass; "if any" makes it a warning."""
    scorer = ModelScorer(lambda x: score(model, x), model, last_layer=True)
    with pytest.raises(ScoreError, match=message) as caught:
        scorer(features())
    assert "let score return Scored(losses, residuals, features)" in str(caught.value)


def test_a_last_layer_is_used_if_there_is_any(caplog: pytest.LogCaptureFixture) -> None:
    """Without one the losses come alone, and the log says once why."""
    model = nn.Bilinear(4, 4, 3)
    scorer = ModelScorer(lambda x: bilinear(model, x), model, last_layer="if any")
    for _ in range(3):
        scored = checked(scorer(features()), ROWS)
        assert scored.last_layer is None
        assert scored.losses.isfinite().all()
    (said,) = caplog.records
    assert "no nn.Linear of Bilinear took part in scoring" in said.getMessage()


def test_a_head_that_is_no_linear_layer_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A layer before it is taken, once it is settled; one that is last is taken in silence."""
    for head in (True, False):
        model = Language(head=head)
        scorer = ModelScorer(lambda x, m=model: of_tokens(m, x), model, last_layer=True)  # type: ignore[misc]
        for batch in (words()[:1], words(), words()):
            scorer(batch)
        assert len(caplog.records) == (not head)
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert "last linear layer of Language, after which" in said.getMessage()
    assert "such as embed.weight" in said.getMessage()


@pytest.mark.parametrize("last_layer", [True, "if any"])
def test_the_first_candidates_are_scored_once(last_layer: Any) -> None:
    """As all others are."""
    model, calls = sequence(nn.Linear(8, 3)), list[int]()

    def score(x: Tensor) -> Tensor:
        calls.append(len(x))
        return classified(model, x)

    scorer = ModelScorer(score, model, last_layer=last_layer)
    for rows in (6, 5, 4):
        scorer(torch.randn(rows, 4))
    assert calls == [6, 5, 4]


def test_what_comes_before_the_head_costs_no_graph_in_later_batches() -> None:
    """The head is known then, and the graph begins at its output."""
    model, graphs = Language(head=True), list[bool]()
    hidden = model.body.register_forward_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    scorer = ModelScorer(lambda x: of_tokens(model, x), model, last_layer=True)
    for _ in range(3):
        scorer(words())
    hidden.remove()
    assert graphs == [True, False, False]


def test_without_memory_for_all_layers_the_last_is_looked_at(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where the graph of everything does not fit; the log says what may be missed."""
    model, grown = Language(head=True), list[bool]()
    assert model.head is not None
    model.head.register_forward_pre_hook(lambda *_: grown.append(torch.is_grad_enabled()))

    def score() -> Scored:
        losses = of_tokens(model, words())
        if grown.pop():
            raise torch.OutOfMemoryError
        return Scored(losses)

    with torch.no_grad():
        found = find_heads(model, score)
    assert found.heads == (model.head,)
    assert [call.layer for call in found.seen.calls] == [model.head]
    assert "no memory to look for all last layers of Language" in caplog.text


def test_without_memory_a_last_layer_that_nobody_calls_is_passed_over() -> None:
    """The one that was called last is looked at then."""
    model, calls = Unused(), list[int]()

    def score() -> Scored:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        return Scored(of_classes(model(features())[0]))

    with torch.no_grad():
        assert find_heads(model, score).heads == (model.head,)


def test_a_model_without_linear_layers_keeps_its_own_lack_of_memory() -> None:
    """It is not told of as something else."""

    def score() -> Scored:
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        find_heads(nn.Conv1d(1, 1, 1), score)


class Unused(Heads):
    """Layers that nobody calls are defined last."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Leave others out."""
        return self.head(self.body(x).tanh()), x


@pytest.mark.parametrize("model", [Heads(), Unused()])
def test_a_head_that_is_not_defined_last_is_found(model: nn.Module) -> None:
    """In one pass of the first candidates."""
    calls: list[int] = []

    def score() -> Scored:
        calls.append(1)
        return Scored(of_classes(model(features())[0]))

    with torch.no_grad():
        found = find_heads(model, score)
    assert found.heads == (model.get_submodule("head"),)
    assert len(calls) == 1


def test_a_later_batch_that_takes_another_way_is_refused() -> None:
    """With the head found, losses that do not depend on it are no losses of rows."""
    model = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
    scorer = ModelScorer(lambda x: classified(model[len(x) % 2], x), model, last_layer=True)
    scorer(torch.randn(6, 4))
    with pytest.raises(ScoreError, match="let score take the same way through the model for every"):
        scorer(torch.randn(5, 4))


def test_a_later_batch_that_takes_another_way_ends_what_is_optional(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With "if any" the losses go on alone, and the log says once why."""
    model = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
    scorer = ModelScorer(lambda x: classified(model[len(x) % 2], x), model, last_layer="if any")
    captures = [checked(scorer(torch.randn(n, 4)), n).last_layer is not None for n in (6, 5, 6, 5)]
    assert captures == [True, False, False, False]
    (said,) = caplog.records
    assert "do not follow the last linear layer" in said.getMessage()
