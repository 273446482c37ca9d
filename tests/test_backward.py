"""Norms that a trainer's backward pass tells are those that differentiating each loss gives."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from adasel_stream.backward import watch_norms
from adasel_stream.emitted import weighted_mean
from tests.candidates import generator

ROWS = 6
WEIGHTS = torch.tensor([0.5, 1.5, 1.0, 3.0, 0.25, 1.0])


class Network(nn.Module):
    """Some layers, a head, and what is done to their output; it keeps the output of the head.

    Args:
        head: from (b, 8), or (b, 5, 8) of sequences.
        loss: from the head's output to losses, shape (b,).
        tokens: of a sequence, or 0 for none.
    """

    def __init__(self, head: nn.Module, loss: Callable[[Tensor], Tensor], tokens: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
        self.head = head
        self.loss = loss
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self.tokens = tokens
        self.output = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Give losses, shape (b,)."""
        self.output = self.head(self.body(x))
        self.output.retain_grad()
        return self.loss(self.output)

    def rows(self) -> Tensor:
        """Give what goes in."""
        shape = (ROWS, self.tokens, 3) if self.tokens else (ROWS, 3)
        return torch.randn(shape, generator=generator(1))


class Flattened(nn.Linear):
    """A head that is called on tokens one below the other, as language models call it."""

    def forward(self, input: Tensor) -> Tensor:
        """Give (b·T, c)."""
        return super().forward(input.flatten(0, -2))


class Shared(nn.Module):
    """A head whose weight is that of an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Give (b, 4)."""
        return functional.linear(x, self.embedding.weight)


def labelled(logits: Tensor) -> Tensor:
    """Give cross-entropies, those of tokens averaged in their sequence."""
    flat = logits.reshape(-1, logits.shape[-1])
    labels = torch.arange(len(flat)) % logits.shape[-1]
    return functional.cross_entropy(flat, labels, reduction="none").reshape(ROWS, -1).mean(1)


def network(name: str) -> Network:
    """Make one of the networks below."""
    torch.manual_seed(0)
    made: Network
    match name:
        case "classes":
            made = Network(nn.Linear(8, 4), labelled)
        case "no bias":
            made = Network(nn.Linear(8, 4, bias=False), labelled)
        case "a regression":
            made = Network(nn.Linear(8, 1), lambda out: out.squeeze(1).square())
        case "a shared weight":
            made = Network(Shared(), labelled)
        case "a normalised weight":
            made = Network(weight_norm(nn.Linear(8, 4, bias=False)), labelled)
        case "tokens":
            made = Network(nn.Linear(8, 4), labelled, tokens=5)
        case "tokens without bias":
            made = Network(nn.Linear(8, 4, bias=False), labelled, tokens=5)
        case "flattened tokens":
            made = Network(Flattened(8, 4), labelled, tokens=5)
        case _:
            made = Network(nn.Linear(8, 4), lambda out: labelled(out) / made.temperature)
    return made


NAMES = (
    *("classes", "no bias", "a regression", "a shared weight", "a normalised weight"),
    *("tokens", "tokens without bias", "flattened tokens", "losses over a temperature"),
)


def heard(
    losses: Tensor, *, weights: Tensor = WEIGHTS, scale: float = 1.0, passes: int = 1
) -> list[Tensor | None]:
    """Differentiate a multiple of the mean, and give what is told."""
    told: list[Tensor | None] = []
    mean = weighted_mean(losses, weights)
    assert watch_norms(losses, mean, weights, told.append)
    for _ in range(passes):
        (scale * mean).backward(retain_graph=passes > 1)  # type: ignore[no-untyped-call] # untyped in torch
    return told


def by_autograd(model: Network, losses: Tensor) -> Tensor:
    """Differentiate the losses one by one in the head's output, and give the norms, shape (b,)."""
    each = [torch.autograd.grad(one, model.output, retain_graph=True)[0] for one in losses]
    return torch.stack([one.norm() for one in each])


@pytest.mark.parametrize("scale", [1.0, 65536.0])
@pytest.mark.parametrize("name", NAMES)
def test_norms_are_those_of_each_losss_gradient(name: str, scale: float) -> None:
    """Whatever the rows weigh and the trainer multiplies their mean with."""
    model = network(name)
    losses = model(model.rows())
    want = by_autograd(model, losses)
    (got,) = heard(losses, scale=scale)
    assert got is not None
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_a_loss_of_its_own_spread_is_looked_through() -> None:
    """What comes after the head has parameters, and one number for each row."""
    model = network("a regression")
    spread = nn.Parameter(torch.tensor(0.3))
    squares = model(model.rows())
    losses = squares * torch.exp(-spread) + spread
    want = by_autograd(model, losses)
    (got,) = heard(losses)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("biased", [True, False])
def test_a_vector_of_weights_is_a_layer(biased: bool) -> None:
    """A regression as it is written by hand, whose output is one number for each row."""
    w, b = nn.Parameter(torch.randn(3)), nn.Parameter(torch.zeros(()))
    x = torch.randn(ROWS, 3, generator=generator(1))
    output = x @ w + b if biased else x @ w
    (got,) = heard(output.square())
    torch.testing.assert_close(got, (2 * output).abs().detach())


def test_products_of_embeddings_are_layers() -> None:
    """A matrix factorisation has no other."""
    users, things = nn.Embedding(9, 4), nn.Embedding(9, 4)
    product = users(torch.arange(ROWS)) * things(torch.arange(ROWS))
    score = product.sum(1)
    (got,) = heard(score.square())
    other = users(torch.arange(ROWS)).norm(dim=1)  # of the layer that came last
    torch.testing.assert_close(got, ((2 * score).abs() * other).detach())


def test_a_model_of_looked_up_weights_is_heard() -> None:
    """As a regression on many sparse features."""
    weights, bias = nn.EmbeddingBag(50, 1, mode="sum"), nn.Parameter(torch.zeros(1))
    score = (weights(torch.arange(18).reshape(ROWS, 3)) + bias).squeeze(1)
    (got,) = heard(score.square())
    torch.testing.assert_close(got, (2 * score).abs().detach())


def test_half_precision_is_heard() -> None:
    """Casts lie between a layer and its parameters then."""
    model = network("classes")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(model.rows()).float()
    want = by_autograd(model, losses)
    (got,) = heard(losses)
    assert got is not None
    torch.testing.assert_close(got, want.float(), rtol=0.02, atol=1e-3)


def test_a_compiled_model_is_heard() -> None:
    """Its graph is one node, whose output is that of the last layer."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    x = torch.randn(ROWS, 3, generator=generator(1))
    (want,) = heard(labelled(model(x)))
    compiled = torch.compile(model, backend="aot_eager")
    (got,) = heard(labelled(compiled(x)))
    assert want is not None
    torch.testing.assert_close(got, want)


def test_empty_slots_have_none() -> None:
    """Nothing that was not trained on has a gradient."""
    model = network("classes")
    losses = model(model.rows())
    weights = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0, 1.0])
    want = by_autograd(model, losses)
    (got,) = heard(losses, weights=weights)
    assert got is not None
    assert got.isnan().tolist() == [False, True, False, True, True, False]
    torch.testing.assert_close(got[weights > 0], want[weights > 0])


def test_a_pass_that_is_made_twice_is_heard_once() -> None:
    """As with retain_graph."""
    model = network("classes")
    assert len(heard(model(model.rows()), passes=2)) == 1


def test_who_uses_the_weights_alone_is_heard_up_to_a_factor() -> None:
    """Where the mean is left aside, nobody says by what losses are multiplied."""
    model = network("classes")
    losses = model(model.rows())
    want = by_autograd(model, losses)
    told: list[Tensor | None] = []
    assert watch_norms(losses, weighted_mean(losses, WEIGHTS), WEIGHTS, told.append)
    (7 * losses * WEIGHTS).mean().backward()
    torch.testing.assert_close(told, [7 * want])


def test_listening_changes_no_gradient() -> None:
    """To the last bit."""
    got = []
    for listen in (True, False):
        model = network("tokens")
        losses = model(model.rows())
        mean = weighted_mean(losses, WEIGHTS)
        if listen:
            watch_norms(losses, mean, WEIGHTS, lambda _: None)
        mean.backward()  # type: ignore[no-untyped-call] # untyped in torch
        got.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *got))


def test_losses_without_graph_are_said_to_tell_nothing() -> None:
    """Then there is nothing to wait for."""
    losses = torch.ones(ROWS)
    assert not watch_norms(losses, weighted_mean(losses, WEIGHTS), WEIGHTS, lambda _: None)


def test_a_graph_without_rows_tells_that_there_are_none() -> None:
    """Somebody who waits must not wait for ever."""
    level = (nn.Linear(3, 4)(torch.ones(3))).sum()
    assert heard((torch.arange(1.0, ROWS + 1) - level).square()) == [None]


@pytest.mark.parametrize("differentiated", [True, False])
def test_nothing_is_held_on_to(differentiated: bool) -> None:
    """What a batch's graph holds goes with its losses, whether or not they are differentiated."""
    model = network("classes")
    gc.disable()
    try:
        losses = model(model.rows())
        held = weakref.ref(model.output)
        mean = weighted_mean(losses, WEIGHTS)
        watch_norms(losses, mean, WEIGHTS, lambda _: None)
        if differentiated:
            mean.backward()  # type: ignore[no-untyped-call] # untyped in torch
        model.output = torch.empty(0)
        del losses, mean
        assert held() is None
    finally:
        gc.enable()
