"""Last-layer quantities against gradients that torch.func computes sample by sample."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, mse_loss

from adasel_stream.last_layer import (
    LastLayer,
    alignments,
    cosine,
    gradient_norms,
    mean_gradient,
    mean_gradients,
)

Case = tuple[nn.Linear, Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]


def classification() -> Case:
    """Give 7 rows of a head with 5 classes."""
    return nn.Linear(6, 5), torch.randn(7, 6), torch.randint(5, (7,)), cross_entropy


def regression() -> Case:
    """Give 7 rows of a head with one output."""
    return nn.Linear(6, 1), torch.randn(7, 6), torch.randn(7, 1), mse_loss


def language() -> Case:
    """Give 7 sequences of 4 tokens from a vocabulary of 5."""
    return nn.Linear(6, 5), torch.randn(7, 4, 6), torch.randint(5, (7, 4)), cross_entropy


CASES = [classification, regression, language]


def both(case: Callable[[], Case]) -> tuple[LastLayer, Tensor]:
    """Give last-layer quantities of a case, and each row's gradient by torch.func, (b, c, h+1)."""
    torch.manual_seed(0)
    head, features, targets, loss = case()

    def loss_of(parameters: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
        output: Tensor = functional_call(head, parameters, (row,))
        return loss(output, target)

    own = vmap(grad(loss_of), in_dims=(None, 0, 0))(
        dict(head.named_parameters()), features, targets
    )
    gradients = torch.cat([own["weight"], own["bias"][..., None]], dim=-1)
    outputs = head(features).detach().requires_grad_()
    losses = [loss(z, target) for z, target in zip(outputs, targets, strict=True)]
    (residuals,) = torch.autograd.grad(torch.stack(losses).sum(), outputs)
    return LastLayer(residuals, features), gradients


@pytest.mark.parametrize("case", CASES)
def test_mean_gradient_is_that_of_the_batch(case: Callable[[], Case]) -> None:
    """The mean gradient of weight and bias, with even weights and with any."""
    last, gradients = both(case)
    torch.testing.assert_close(mean_gradient(last), gradients.mean(0))
    weights = torch.randn(7)
    expected = torch.einsum("b,bch->ch", weights, gradients)
    torch.testing.assert_close(mean_gradient(last, weights), expected)
    rows = torch.tensor([[0, 3, 5], [6, 1, 2]])
    torch.testing.assert_close(mean_gradients(last, rows), gradients[rows].mean(1))


@pytest.mark.parametrize("case", CASES)
def test_alignments_are_products_of_gradients(case: Callable[[], Case]) -> None:
    """Each row's inner product with any gradient."""
    last, gradients = both(case)
    other = torch.randn_like(gradients[0])
    torch.testing.assert_close(alignments(last, other), (gradients * other).sum((1, 2)))


@pytest.mark.parametrize("case", CASES)
def test_norms_bound_those_of_gradients(case: Callable[[], Case]) -> None:
    """Equal to the norm where a row has one output, above it where it has several tokens."""
    last, gradients = both(case)
    norms, exact = gradient_norms(last), gradients.flatten(1).norm(dim=1)
    assert (norms >= exact * (1 - 1e-5)).all()
    if case is not language:
        torch.testing.assert_close(norms, exact)


def test_cosine_is_between_minus_one_and_one() -> None:
    """Along, against, across, and nothing at all."""
    one = torch.tensor([[1.0, 2.0]])
    others = torch.stack([3 * one, -one, torch.tensor([[-2.0, 1.0]]), 0 * one])
    torch.testing.assert_close(cosine(others, one), torch.tensor([1.0, -1.0, 0.0, 0.0]))


def test_masked_rows_count_for_nothing() -> None:
    """A row that is not a number leaves the others' gradient as it is."""
    last = LastLayer(torch.tensor([[1.0], [torch.nan]]), torch.tensor([[2.0], [torch.inf]]))
    masked = last.masked(torch.tensor([True, False]))
    expected = torch.tensor([[1.0, 0.5]])
    torch.testing.assert_close(mean_gradient(masked), expected)
    assert gradient_norms(masked)[1] == 0


def test_half_precision_is_summed_in_float32() -> None:
    """Residuals and features of bfloat16 give float32 quantities."""
    last = LastLayer(torch.ones(3, 2, dtype=torch.bfloat16), torch.ones(3, 4, dtype=torch.bfloat16))
    assert mean_gradient(last).dtype == torch.float32
    assert gradient_norms(last).tolist() == pytest.approx([10**0.5] * 3)


@pytest.mark.parametrize("tokens", [(), (4,)], ids=["one output", "tokens"])
def test_nothing_waits_for_the_device(tokens: tuple[int, ...]) -> None:
    """All of it runs on a device that has shapes but no values to wait for."""
    shape = (7, *tokens)
    last = LastLayer(torch.ones(*shape, 5, device="meta"), torch.ones(*shape, 6, device="meta"))
    last = last.masked(torch.ones(7, dtype=torch.bool, device="meta"))
    mean = mean_gradient(last)
    means = mean_gradients(last, torch.zeros(3, 2, dtype=torch.int64, device="meta"))
    assert cosine(means, mean).shape == (3,)
    assert alignments(last, mean).shape == gradient_norms(last).shape == (7,)


def test_no_rows_give_no_gradient() -> None:
    """An empty candidate batch has the gradient 0 and no norms."""
    last = LastLayer(torch.ones(0, 5), torch.ones(0, 6))
    assert not mean_gradient(last).any()
    assert gradient_norms(last).shape == (0,)
