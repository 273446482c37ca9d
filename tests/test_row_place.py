"""Rows are followed from the losses to the last layers, and never guessed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adasel_stream import backward
from adasel_stream.backward import watch_norms
from adasel_stream.emitted import weighted_mean
from tests.candidates import generator
from tests.hearing import ROWS, WEIGHTS, heard


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
        lambda z: z.view(ROWS, 2, 3, 1)[
            :, torch.zeros(ROWS).long(), :, torch.zeros(ROWS).long()
        ].sum((1, 2)),
        lambda z: functional.pad(z, (0, 0, 1, -1)).square().sum(1),
    ],
    ids=[
        *("contrastive", "differences", "distances", "normalised", "centred", "softmax", "flipped"),
        *("rolled", "indexed", "put", "product", "batched", "sparse", "layer norm", "group norm"),
        *("pooled", "attention", "inverse", "indexed apart", "shifted"),
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


class Fused(torch.autograd.Function):
    """Half of the squared errors of each row, differentiated by hand."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        """Give losses (b,)."""
        ctx.save_for_backward(z)
        return z.square().sum(1) / 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Give the gradient in z."""
        z: Tensor = ctx.saved_tensors[0]
        return gradients[0][:, None] * z


def test_functions_of_a_users_own_are_taken_to_go_row_by_row() -> None:
    """As fused losses do, where as many rows come out as go in."""
    x, head = torch.randn(ROWS, 8, generator=generator(1)), nn.Linear(8, 4)
    (want,) = heard(head(x).square().sum(1) / 2)
    losses: Tensor = Fused.apply(head(x))  # type: ignore[no-untyped-call] # untyped in torch
    (got,) = heard(1 * losses)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "losses_of",
    [
        lambda z: (
            functional.interpolate(z, scale_factor=2, mode="bilinear").square().mean((1, 2, 3))
        ),
        lambda z: functional.interpolate(z, scale_factor=2).square().mean((1, 2, 3)),
        lambda z: functional.pad(z, (1, 1, 1, 1)).square().mean((1, 2, 3)),
        lambda z: functional.pixel_shuffle(z, 2).square().mean((1, 2, 3)),
        lambda z: functional.avg_pool2d(z, 2).square().mean((1, 2, 3)),
    ],
    ids=["bilinear", "nearest", "padded", "shuffled", "pooled"],
)
def test_heads_of_images_are_followed(losses_of: Callable[[Tensor], Tensor]) -> None:
    """A convolution gives the outputs, and something resizes them."""
    x, head = torch.randn(ROWS, 3, 6, 6, generator=generator(1)), nn.Conv2d(3, 4, 3)
    output = head(x)
    output.retain_grad()
    (got,) = heard(losses_of(output))
    assert output.grad is not None
    factor = torch.count_nonzero(WEIGHTS) / WEIGHTS
    torch.testing.assert_close(got, output.grad.flatten(1).norm(dim=1) * factor)


def test_the_operation_that_rows_are_lost_behind_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, for who wonders why nothing is heard."""
    backward._tell_once.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            x, scale = torch.randn(ROWS, 8), nn.Parameter(torch.tensor(0.3))
            losses = torch.linalg.inv(nn.Linear(8, ROWS)(x)).sum(1) + (x[:, 0] * scale).exp()
            watch_norms(losses, lambda _: None)
    (told,) = (line for line in caplog.messages if "cannot be followed" in line)
    assert "LinalgInvExBackward" in told
