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


def heard(
    losses: Tensor, *, weights: Tensor = WEIGHTS, scale: float = 1.0, passes: int = 1
) -> list[Tensor | None]:
    """Differentiate a multiple of the mean, and give what is told."""
    told: list[Tensor | None] = []
    mean = weighted_mean(losses, weights)
    assert watch_norms(losses, told.append)
    for _ in range(passes):
        (scale * mean).backward(retain_graph=passes > 1)  # type: ignore[no-untyped-call] # untyped in torch
    return told


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


@pytest.mark.parametrize("steps", [4, ROWS])
@pytest.mark.parametrize(
    "losses_of",
    [
        lambda x, head: head(x.transpose(0, 1)).square().mean((0, 2)),
        lambda x, head: head(x.transpose(0, 1)).sum(2).t().square().mean(1),
        lambda x, head: (
            head(torch.cat([x[:, 0], x[:, 1]])).square().reshape(2, ROWS, 3).sum((0, 2))
        ),
    ],
    ids=["time first", "transposed", "two views"],
)
def test_rows_are_never_guessed(
    losses_of: Callable[[Tensor, nn.Linear], Tensor], steps: int
) -> None:
    """What has no row for each loss, rows first, may have them in any order, whatever its size."""
    x = torch.randn(ROWS, steps, 8, generator=generator(1))
    assert not watch_norms(losses_of(x, nn.Linear(8, 3)), lambda _: None)


@pytest.mark.parametrize(
    "losses_of",
    [
        lambda z: (z @ z.t()).log_softmax(1).diagonal().neg(),
        lambda z: (z[:, None] - z[None]).square().sum(2).mean(1),
        lambda z: torch.cdist(z, z).mean(1),
        lambda z: functional.batch_norm(z, None, None, training=True).square().sum(1),
        lambda z: (z.square().sum(1) - z.square().sum(1).mean()).square(),
        lambda z: z.softmax(0).square().sum(1),
        lambda z: z.flip(0).square().sum(1),
        lambda z: z.square().sum(1).roll(1),
        lambda z: z[torch.arange(ROWS).flip(0)].square().sum(1),
        lambda z: torch.zeros_like(z).index_put((torch.arange(ROWS).flip(0),), z).sum(1),
        lambda z: (torch.ones(ROWS, ROWS) @ z).square().sum(1),
        lambda z: (torch.ones(1, ROWS, ROWS) @ z[None])[0].square().sum(1),
        lambda z: torch.sparse.mm(torch.eye(ROWS).to_sparse(), z).square().sum(1),
        lambda z: functional.layer_norm(z, z.shape).square().sum(1),
        lambda z: functional.group_norm(z[None], 2)[0].square().sum(1),
        lambda z: functional.avg_pool1d(z.t()[None], 3, 1, 1)[0].sum(0),
        lambda z: functional.scaled_dot_product_attention(z[None], z[None], z[None])[0].sum(1),
        lambda z: torch.linalg.inv(z).sum(1),
    ],
    ids=[
        *("contrastive", "differences", "distances", "normalised", "centred", "softmax", "flipped"),
        *("rolled", "indexed", "put", "product", "batched", "sparse", "layer norm", "group norm"),
        *("pooled", "attention", "inverse"),
    ],
)
def test_where_rows_meet_nothing_is_heard(losses_of: Callable[[Tensor], Tensor]) -> None:
    """A gradient in a row's output would be of other rows' losses as well."""
    x = torch.randn(ROWS, 8, generator=generator(1))
    assert not watch_norms(losses_of(nn.Linear(8, ROWS)(x)), lambda _: None)


@pytest.mark.parametrize(
    "losses_of",
    [
        lambda x, head: (lambda z: torch.stack([z.square().sum(1), z.abs().sum(1)]).sum(0))(
            head(x)
        ),
        lambda x, head: head(x).unsqueeze(0).square().squeeze(0).sum(1),
        lambda x, head: head(x).t().square().sum(0),
        lambda x, head: head(x).view(1, ROWS, ROWS).permute(2, 0, 1).amax((0, 1)),
        lambda x, head: functional.normalize(head(x), dim=1).view(ROWS, 2, -1).sum((1, 2)),
        lambda x, head: (lambda z: z[:, 1:].logsumexp(1) - z[:, 0])(head(x)),
        lambda x, head: torch.bmm(head(x)[:, None], x[:, : len(x), None]).flatten(),
        lambda x, head: head(x).unbind(1)[0].square(),
    ],
    ids=["stacked", "squeezed", "twice", "permuted", "unit", "sliced", "bmm", "unbound"],
)
def test_rows_are_followed(losses_of: Callable[[Tensor, nn.Linear], Tensor]) -> None:
    """Wherever they went on the way: the norms are those of each row's own gradient."""
    x, head = torch.randn(ROWS, 8, generator=generator(1)), nn.Linear(8, ROWS)
    (got,) = heard(losses_of(x, head))
    losses, weights = losses_of(x, head), list(head.parameters())
    each = [torch.autograd.grad(one, weights, retain_graph=True) for one in losses]
    want = torch.stack([torch.cat([own.flatten() for own in row]).norm() for row in each])
    torch.testing.assert_close(got, want)


COMMON: dict[str, Callable[[Tensor], Tensor]] = {
    "picked": lambda z: z.logsumexp(1) - z[torch.arange(ROWS), torch.arange(ROWS) % 4],
    "gathered": lambda z: -z.log_softmax(1).gather(1, torch.zeros(ROWS, 1).long()).squeeze(1),
    "of each label": lambda z: (
        functional.binary_cross_entropy_with_logits(
            z.view(-1), torch.ones(ROWS * 4), reduction="none"
        )
        .view(ROWS, 4)
        .mean(1)
    ),
    "smoothed": lambda z: functional.cross_entropy(
        z, torch.arange(ROWS) % 4, reduction="none", label_smoothing=0.1
    ),
    "focal": lambda z: (1 - z.softmax(1)[:, 0]).square() * -z.log_softmax(1)[:, 0],
    "huber": lambda z: functional.huber_loss(z, torch.ones(ROWS, 4), reduction="none").mean(1),
    "gaussian": lambda z: functional.gaussian_nll_loss(
        z[:, 0], torch.ones(ROWS), functional.softplus(z[:, 1]), reduction="none"
    ),
    "cosine": lambda z: functional.cosine_embedding_loss(
        z, torch.ones(ROWS, 4), torch.ones(ROWS), reduction="none"
    ),
    "triplet": lambda z: functional.triplet_margin_loss(
        z, torch.ones(ROWS, 4), torch.zeros(ROWS, 4), reduction="none"
    ),
    "divergence": lambda z: functional.kl_div(
        z.log_softmax(1), torch.full((ROWS, 4), 0.25), reduction="none"
    ).sum(1),
}


@pytest.mark.parametrize("name", COMMON)
def test_common_losses_are_followed(name: str) -> None:
    """The norms are those of each row's own gradient in the last layer."""
    x, head = torch.randn(ROWS, 8, generator=generator(1)), nn.Linear(8, 4)
    losses, weights = COMMON[name](head(x)), list(head.parameters())
    (got,) = heard(COMMON[name](head(x)))
    each = [torch.autograd.grad(one, weights, retain_graph=True) for one in losses]
    want = torch.stack([torch.cat([own.flatten() for own in row]).norm() for row in each])
    torch.testing.assert_close(got, want)


def test_connectionist_losses_are_followed_through_time() -> None:
    """Steps come first there, rows second."""
    x, head = torch.randn(ROWS, 9, 8, generator=generator(1)), nn.Linear(8, 4)
    steps, length = torch.full((ROWS,), 9), torch.full((ROWS,), 2)

    def losses(x: Tensor) -> Tensor:
        rows = len(x)
        return functional.ctc_loss(
            head(x).log_softmax(2).transpose(0, 1),
            torch.ones(rows, 2, dtype=torch.long),
            steps[:rows],
            length[:rows],
            reduction="none",
        )

    (got,) = heard(losses(x))
    assert got is not None
    for row in range(ROWS):
        (alone,) = heard(losses(x[row : row + 1].repeat(ROWS, 1, 1)))
        assert alone is not None
        torch.testing.assert_close(got[row], alone[row])


def test_many_heads_are_all_heard() -> None:
    """Each row has labels of two of a dozen tasks."""
    torch.manual_seed(0)
    x, heads = torch.randn(ROWS, 8), nn.ModuleList([nn.Linear(8, 3) for _ in range(12)])
    labelled = (torch.arange(12) % 6 == torch.arange(ROWS)[:, None] % 6).float()

    def losses() -> Tensor:
        return (torch.stack([one(x).square().sum(1) for one in heads], 1) * labelled).sum(1)

    (got,) = heard(losses())
    weights = list(heads.parameters())
    each = [torch.autograd.grad(one, weights, retain_graph=True) for one in losses()]
    want = torch.stack([torch.cat([own.flatten() for own in row]).norm() for row in each])
    torch.testing.assert_close(got, want)


def test_calls_of_one_head_add_up_as_tokens_do() -> None:
    """Whether it is called for all steps at once, or for each in a loop."""
    x, head = torch.randn(ROWS, 5, 8, generator=generator(1)), nn.Linear(8, 3)
    (want,) = heard(head(x).square().sum((1, 2)))
    (got,) = heard(torch.stack([head(step).square().sum(1) for step in x.unbind(1)]).sum(0))
    torch.testing.assert_close(got, want)


def test_where_one_head_cannot_be_followed_none_is_told_of() -> None:
    """What is left would be the gradient of another task."""
    x, main, other = torch.randn(ROWS, 8), nn.Linear(8, 4), nn.Linear(8, 3)
    z = main(x)
    losses = (z @ z.t()).logsumexp(1) + other(x).square().sum(1)
    assert not watch_norms(losses, lambda _: None)


def test_more_layers_than_can_be_listened_to_are_not_cut_off() -> None:
    """Part of them would be less than the gradient."""
    x, heads = torch.randn(ROWS, 8), [nn.Linear(8, 1) for _ in range(70)]
    assert not watch_norms(torch.cat([one(x) for one in heads], 1).sum(1), lambda _: None)


def test_a_pass_over_one_head_alone_is_not_the_pass() -> None:
    """As of who weighs tasks by their gradients first."""
    x, one, other = torch.randn(ROWS, 8), nn.Linear(8, 4), nn.Linear(8, 3)

    def losses() -> Tensor:
        both: Tensor = one(x).square().sum(1) + other(x).square().sum(1)
        return both

    (want,) = heard(losses())
    told: list[Tensor | None] = []
    mean = weighted_mean(once := losses(), WEIGHTS)
    assert not told
    assert watch_norms(once, told.append)
    torch.autograd.grad(mean, [one.weight], retain_graph=True)
    mean.backward()  # type: ignore[no-untyped-call] # untyped in torch
    (got,) = told
    torch.testing.assert_close(got, want)


def test_all_outputs_of_a_compiled_model_are_heard() -> None:
    """Of two tasks that are compiled together."""
    torch.compiler.reset()
    x, one, other = torch.randn(ROWS, 8), nn.Linear(8, 4), nn.Linear(8, 3)
    both = torch.compile(lambda x: (one(x), other(x)), backend="aot_eager")
    outputs = [output.detach() for output in (one(x), other(x))]
    first, second = both(x)
    (got,) = heard(first.square().sum(1) + second.square().sum(1))
    torch.testing.assert_close(got, 2 * torch.cat(outputs, 1).norm(dim=1))


def test_tokens_that_are_flattened_by_hand_are_followed() -> None:
    """Rows are outermost then, each with its tokens."""
    x, head = torch.randn(ROWS, 5, 8, generator=generator(1)), nn.Linear(8, 3)
    (got,) = heard(head(x.flatten(0, 1)).square().reshape(ROWS, -1).mean(1))
    (want,) = heard(head(x).square().mean((1, 2)))
    torch.testing.assert_close(got, want)


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
