"""What losses say of gradients is learnt, whatever the loss function and its scale."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream.expected_norms import NormCurve, expected_norms, with_trained
from adasel_stream.selection import Feedback
from tests.candidates import generator

B = 64

RELATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "absolute error": torch.ones_like,
    "squared error": lambda losses: 2 * losses.sqrt(),
    "cross-entropy": lambda losses: 1 - torch.exp(-losses),
    "a loss turned round": lambda losses: 1 / (1 + losses),
}


def trained(losses: Tensor, norms: Tensor, valid: Tensor | None = None) -> Feedback:
    """Rows that were trained on; of no matter to the curve is how they were drawn."""
    even = torch.ones_like(norms)
    counts = norms >= 0 if valid is None else valid
    return Feedback(losses, even[:, None], even, even, counts, losses, norms)


def learnt(
    relation: Callable[[Tensor], Tensor], *, batches: int = 300, scale: float = 1.0
) -> NormCurve:
    """Learn from rows whose losses are spread over some octaves."""
    random, curve = generator(0), NormCurve.initial()
    for _ in range(batches):
        losses = torch.empty(B).log_normal_(0, 1.5, generator=random)
        curve = with_trained(curve, trained(scale * losses, relation(losses)))
    return curve


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("name", RELATIONS)
def test_what_is_expected_is_what_was_seen(name: str, scale: float) -> None:
    """Within a third, over eight octaves, in whatever units the losses are."""
    relation = RELATIONS[name]
    losses = torch.logspace(-4, 4, 50, base=2)
    got = expected_norms(learnt(relation, scale=scale), scale * losses)
    torch.testing.assert_close(got, relation(losses), rtol=0.3, atol=0.0)


def test_units_of_gradients_do_not_matter() -> None:
    """Twice the norms are twice as much everywhere."""
    losses = torch.logspace(-6, 6, 50, base=2)
    one, two = (
        expected_norms(learnt(lambda x, c=c: c * x.sqrt()), losses)  # type: ignore[misc] # a default binds
        for c in (1.0, 2.0)
    )
    torch.testing.assert_close(two, 2 * one)


@pytest.mark.parametrize("name", RELATIONS)
def test_chances_that_follow_it_leave_least_noise(name: str) -> None:
    """Least of those by losses, by their root and by nothing, where losses say only so much."""
    random = generator(1)

    def rows(n: int) -> tuple[Tensor, Tensor]:
        losses = torch.empty(n).log_normal_(0, 1.5, generator=random)
        size = torch.empty(n).log_normal_(0, 0.5, generator=random)
        return losses, RELATIONS[name](losses) * size

    curve = NormCurve.initial()
    for _ in range(300):
        curve = with_trained(curve, trained(*rows(B)))
    losses, norms = rows(100_000)

    def noise(chances: Tensor) -> float:
        """Σ g²/p, which the variance of the estimate is proportional to."""
        p = chances / chances.sum()
        return float((norms.square() / p).sum())

    ours = noise(expected_norms(curve, losses))
    assert ours < 1.01 * min(noise(losses), noise(losses.sqrt()), noise(torch.ones_like(losses)))


def test_losses_that_say_nothing_make_the_draw_even() -> None:
    """As those of a record that is long out of date."""
    random, curve = generator(2), NormCurve.initial()
    for _ in range(500):
        losses = torch.empty(B).log_normal_(0, 1.5, generator=random)
        curve = with_trained(curve, trained(losses, torch.rand(B, generator=random)))
    got = expected_norms(curve, torch.logspace(-3, 3, 30, base=2))
    assert float(got.max() / got.min()) < 1.15


def test_rows_without_a_loss_are_a_kind_of_their_own() -> None:
    """What nobody had seen may have larger gradients than anything known."""
    curve = learnt(torch.ones_like)
    unknown = torch.full((1,), torch.nan)
    assert float(expected_norms(curve, unknown)) == pytest.approx(1.0, rel=0.01)  # as all rows
    for _ in range(50):
        rows = torch.tensor([torch.nan, 1.0]).repeat(B // 2)
        curve = with_trained(curve, trained(rows, torch.tensor([7.0, 1.0]).repeat(B // 2)))
    got = expected_norms(curve, torch.tensor([torch.nan, 1.0, 1e9]))
    torch.testing.assert_close(got, torch.tensor([7.0, 1.0, 1.0]), rtol=0.05, atol=0.0)


def test_negative_losses_have_classes_of_their_own() -> None:
    """A proxy may give any numbers."""
    curve, scores = NormCurve.initial(), torch.tensor([-4.0, 0.0, 4.0, -1.0]).repeat(B // 4)
    norms = torch.tensor([4.0, 2.0, 1.0, 3.0]).repeat(B // 4)
    for _ in range(300):
        curve = with_trained(curve, trained(scores, norms))
    torch.testing.assert_close(expected_norms(curve, scores), norms, rtol=0.02, atol=0.0)


def test_what_changed_is_followed() -> None:
    """A model that has learnt has other gradients at the same losses."""
    curve = learnt(torch.ones_like)
    for _ in range(1000):
        curve = with_trained(curve, trained(torch.ones(B), torch.full((B,), 3.0)))
    assert float(expected_norms(curve, torch.ones(1))) == pytest.approx(3.0, rel=0.02)


def test_rows_that_do_not_count_say_nothing() -> None:
    """Even if they are no numbers."""
    curve = learnt(torch.sqrt, batches=20)
    losses = torch.tensor([1.0, torch.nan, torch.inf, 2.0])
    broken = torch.tensor([torch.inf, torch.nan, 1.0, 5.0])
    after = with_trained(curve, trained(losses, broken, torch.zeros(4, dtype=torch.bool)))
    torch.testing.assert_close(after.rows, curve.rows * 0.995)
    torch.testing.assert_close(after.squares, curve.squares * 0.995)


def test_from_few_rows_nothing_is_concluded() -> None:
    """A hundred are enough."""
    curve = NormCurve.initial()
    assert not curve.known
    curve = with_trained(curve, trained(torch.ones(99), torch.ones(99)))
    assert not curve.known
    assert with_trained(curve, trained(torch.ones(1), torch.ones(1))).known


def test_it_goes_on_from_its_state_to_the_last_bit() -> None:
    """The state is all there is."""
    curve = learnt(torch.sqrt, batches=30)
    other = NormCurve.of_state(curve.state_dict())
    losses = torch.rand(B, generator=generator(3))
    assert torch.equal(expected_norms(other, losses), expected_norms(curve, losses))
    assert other.seen == curve.seen


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
positive = st.floats(0, 1e10, width=32)


@given(st.lists(st.tuples(finite, positive), min_size=1, max_size=30), st.lists(finite, min_size=1))
def test_nothing_beyond_what_was_seen_is_expected(
    seen: list[tuple[float, float]], asked: list[float]
) -> None:
    """Of whatever losses: never less than the smallest norm, never more than the largest."""
    losses, norms = torch.tensor(seen).T
    curve = with_trained(NormCurve.initial(), trained(losses, norms))
    got = expected_norms(curve, torch.tensor(asked))
    assert bool((got >= norms.min() * (1 - 1e-4)).all())
    assert bool((got <= norms.max() * (1 + 1e-4)).all())
