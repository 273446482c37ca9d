"""Norms that a trainer's backward pass tells are those that differentiating each loss gives."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from adasel_stream.backward import watch_norms
from adasel_stream.emitted import weighted_mean
from tests.candidates import generator
from tests.hearing import ROWS, WEIGHTS, heard


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
        self.input, self.output = torch.empty(0), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Give losses, shape (b,)."""
        self.input = self.body(x)
        self.output = self.head(self.input)
        self.output.retain_grad()
        return self.loss(self.output)

    def rows(self) -> Tensor:
        """Give what goes in."""
        shape = (ROWS, self.tokens, 3) if self.tokens else (ROWS, 3)
        return torch.randn(shape, generator=generator(1))


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
        case _:
            made = Network(nn.Linear(8, 4), lambda out: labelled(out) / made.temperature)
    return made


NAMES = (
    *("classes", "no bias", "a regression", "a shared weight", "a normalised weight"),
    *("tokens", "tokens without bias", "losses over a temperature"),
)


def by_autograd(model: Network, losses: Tensor) -> Tensor:
    """Differentiate the losses one by one in the head's output, and give the norms, shape (b,)."""
    each = [torch.autograd.grad(one, model.output, retain_graph=True)[0] for one in losses]
    residuals = torch.stack([one[row] for row, one in enumerate(each)])
    biased = getattr(model.head, "bias", None) is not None
    inputs = (model.input.detach().square().sum(-1) + biased).sqrt()
    norms: Tensor = (residuals.norm(dim=-1) * inputs).reshape(ROWS, -1).sum(1)
    return norms


def sizes_of(x: Tensor, *, biased: bool = True) -> Tensor:
    """Give ‖[x, 1]‖ of each row, or ‖x‖."""
    return (x.detach().abs().square().sum(1) + biased).sqrt()


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
    want = (2 * output).abs().detach() * sizes_of(x, biased=False)
    torch.testing.assert_close(got, want)


def test_products_of_embeddings_are_layers() -> None:
    """A matrix factorisation has no other."""
    users, things = nn.Embedding(9, 4), nn.Embedding(9, 4)
    product = users(torch.arange(ROWS)) * things(torch.arange(ROWS))
    score = product.sum(1)
    (got,) = heard(score.square())
    other = things(torch.arange(ROWS)).norm(dim=1)  # in the one that comes first
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
    """Its graph is one node, whose output is that of the last layer; the input is not at hand."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    compiled = torch.compile(model, backend="aot_eager")
    output: Tensor = compiled(torch.randn(ROWS, 3, generator=generator(1)))
    output.retain_grad()
    (got,) = heard(labelled(output))
    assert output.grad is not None
    torch.testing.assert_close(got, output.grad.norm(dim=1) * len(WEIGHTS) / WEIGHTS)


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


@pytest.mark.parametrize(
    "made",
    [
        lambda losses: (7 * losses * WEIGHTS).mean(),
        lambda losses: losses.sum(),
        lambda losses: weighted_mean(losses, WEIGHTS) + losses.mean(),
        lambda losses: weighted_mean(losses, WEIGHTS).square(),
    ],
    ids=["weights of one's own", "a sum", "the mean and more", "a square"],
)
def test_whatever_is_made_of_the_losses_is_heard(made: Callable[[Tensor], Tensor]) -> None:
    """Each loss has a factor of its own in it."""
    model = network("classes")
    losses = model(model.rows())
    want = by_autograd(model, losses)
    told: list[Tensor | None] = []
    assert watch_norms(losses, told.append)
    made(losses).backward()  # type: ignore[no-untyped-call] # untyped in torch
    torch.testing.assert_close(told, [want])


def test_a_pass_that_is_not_of_the_losses_is_not_heard() -> None:
    """As one for saliency, before the one that trains."""
    model = network("a regression")
    losses = model(model.rows())
    want = by_autograd(model, losses)
    told: list[Tensor | None] = []
    assert watch_norms(losses, told.append)
    torch.autograd.grad(model.output.sum(), list(model.head.parameters()), retain_graph=True)
    weighted_mean(losses, WEIGHTS).backward()  # type: ignore[no-untyped-call] # untyped in torch
    torch.testing.assert_close(told, [want])


def test_heads_are_heard_together() -> None:
    """Whichever the pass comes by first."""
    for first in (True, False):
        one, two = network("classes"), network("a regression")
        a, b = one(one.rows()), two(two.rows())
        want = (by_autograd(one, a).square() + 4 * by_autograd(two, b).square()).sqrt()
        (got,) = heard(a + 2 * b if first else 2 * b + a)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_other_numbers_are_heard(dtype: torch.dtype) -> None:
    """As float32."""
    layer = nn.Linear(3, 2, dtype=dtype)
    x = torch.randn(ROWS, 3, generator=generator(1)).to(dtype)
    output = layer(x)
    (got,) = heard(output.abs().square().sum(1))
    want = 2 * output.detach().abs().square().sum(1).sqrt() * sizes_of(x)
    torch.testing.assert_close(got, want.float())


@pytest.mark.parametrize("kind", ["checkpointed", "offloaded"])
def test_what_is_saved_elsewhere_is_left_alone(kind: str) -> None:
    """Inputs of the head are not at hand then: gradients in its output are all there is."""
    plain, model = network("classes"), network("classes")
    weighted_mean(plain(plain.rows()), WEIGHTS).backward()  # type: ignore[no-untyped-call] # untyped in torch
    if kind == "checkpointed":
        losses: Tensor = checkpoint(model, model.rows(), use_reentrant=False)
    else:
        with torch.autograd.graph.save_on_cpu():
            losses = model(model.rows())
    (got,) = heard(losses)
    assert plain.output.grad is not None
    rows = torch.count_nonzero(WEIGHTS)
    torch.testing.assert_close(got, plain.output.grad.norm(dim=1) * rows / WEIGHTS)
    for own, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_a_leaf_with_rows_is_data() -> None:
    """Inputs that are differentiated as well, as for saliency, are no parameters."""
    layer, x = nn.Linear(3, 4), torch.randn(ROWS, 3, generator=generator(1)).requires_grad_()
    output = layer(x)
    output.retain_grad()
    (got,) = heard(labelled(output))
    assert output.grad is not None
    want = output.grad.norm(dim=1) * sizes_of(x) * torch.count_nonzero(WEIGHTS) / WEIGHTS
    torch.testing.assert_close(got, want)


def test_listening_changes_no_gradient() -> None:
    """To the last bit."""
    got = []
    for listen in (True, False):
        model = network("tokens")
        losses = model(model.rows())
        mean = weighted_mean(losses, WEIGHTS)
        if listen:
            watch_norms(losses, lambda _: None)
        mean.backward()  # type: ignore[no-untyped-call] # untyped in torch
        got.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *got))


def test_losses_without_graph_are_said_to_tell_nothing() -> None:
    """Then there is nothing to wait for."""
    losses = torch.ones(ROWS)
    assert not watch_norms(losses, lambda _: None)


def test_a_graph_without_rows_has_nothing_to_tell() -> None:
    """One number is in all losses."""
    level = (nn.Linear(3, 4)(torch.ones(3))).sum()
    losses = (torch.arange(1.0, ROWS + 1) - level).square()
    assert not watch_norms(losses, lambda _: None)


def test_a_graph_that_is_gone_is_told_of() -> None:
    """Nobody differentiated it, and nobody will: who waits must not wait for ever."""
    model, told = network("classes"), list[Tensor | None]()
    losses = model(model.rows())
    assert watch_norms(losses, told.append)
    assert not told
    model.output = torch.empty(0)
    del losses
    assert told == [None]


def test_what_fails_with_the_norms_does_not_end_the_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is the trainer's pass; the log has the error."""
    model = network("classes")
    losses = model(model.rows())

    def tell(_norms: Tensor | None) -> None:
        raise ValueError("no room")

    assert watch_norms(losses, tell)
    losses.sum().backward()
    assert "no room" in caplog.text


def test_an_input_that_is_written_to_is_refused_as_torch_does() -> None:
    """Hooks on what a graph saved switch torch's own look at versions off."""
    x = torch.randn(ROWS, 8, generator=generator(1))
    losses = nn.Linear(8, 4)(x).square().sum(1)
    assert watch_norms(losses, lambda _: None)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="changed by an inplace operation"):
        losses.sum().backward()


@pytest.mark.parametrize("differentiated", ["", "once", "with a graph"])
def test_nothing_is_held_on_to(differentiated: str) -> None:
    """What a batch's graph holds goes with its losses, whether or not they are differentiated."""
    model = network("classes")
    gc.disable()
    try:
        losses = model(model.rows())
        held = weakref.ref(model.output)
        mean = weighted_mean(losses, WEIGHTS)
        watch_norms(losses, lambda _: None)
        if differentiated == "with a graph":
            torch.autograd.grad(mean * mean, list(model.head.parameters()), create_graph=True)
        elif differentiated:
            mean.backward()  # type: ignore[no-untyped-call] # untyped in torch
        model.input, model.output = torch.empty(0), torch.empty(0)
        del losses, mean
        assert held() is None
    finally:
        gc.enable()
