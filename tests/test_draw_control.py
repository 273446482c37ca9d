"""The control arm, the layout of a draw, and the comparison with an even one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream import draw
from adasel_stream.last_layer import LastLayer, gradient_norms, mean_gradient
from adasel_stream.loss_batch import Bounds, LossBatch
from tests.candidates import generator


def candidates(b: int, seed: int, classes: int = 4, control: float = 0.2) -> LossBatch:
    """Make classified rows, easy ones and hard ones, with a control arm."""
    random = generator(seed)
    labels = torch.randint(classes, (b,), generator=random)
    logits = torch.randn(b, classes, generator=random) * 2
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    residuals = logits.softmax(1) - torch.nn.functional.one_hot(labels, classes)
    last = LastLayer(residuals, torch.randn(b, 5, generator=random).relu())
    arm = torch.rand(b, generator=random) < control
    return LossBatch(
        losses, gradient_norms=gradient_norms(last), last_layer=last, control=arm, compared=True
    )


@given(b=st.integers(1, 60), seed=st.integers(0, 1000), data=st.data())
def test_the_control_arm_is_drawn_evenly_and_the_rest_by_score(
    b: int, seed: int, data: st.DataObject
) -> None:
    """Weights of control rows are 1, all chances sum to k, proposals are told for control rows."""
    k = data.draw(st.integers(1, b))
    batch = candidates(b, seed)
    assert batch.control is not None
    drawn = draw.unbiased(batch.losses.log(), batch, k, generator(seed), order=draw.by_pull)
    assert len(set(drawn.indices.tolist())) == k
    arm = batch.control[drawn.indices]
    torch.testing.assert_close(drawn.weights[arm], torch.ones(int(arm.sum())))
    assert drawn.proposed is not None
    assert torch.equal(~drawn.proposed.isnan(), arm)
    assert float(drawn.weights.max()) <= 5 * (1 + 1e-4)


@pytest.mark.parametrize("order", [None, draw.by_pull])
def test_weighted_means_are_unbiased_with_a_control_arm(order: object) -> None:
    """Over many draws the weighted mean comes to that of all candidates, in any layout."""
    batch = candidates(40, 3)
    random = generator(1)
    means = []
    for _ in range(4000):
        arm = torch.rand(40, generator=random) < 0.2
        one = replace(batch, control=arm, compared=False)
        drawn = draw.unbiased(batch.losses.log(), one, 8, random, order=order)  # type: ignore[arg-type] # either
        means.append((drawn.weights * batch.losses[drawn.indices]).mean())
    got = torch.stack(means)
    error = got.std() / len(means) ** 0.5
    assert abs(got.mean() - batch.losses.mean()) < 4 * error


def squared_error(batch: LossBatch, drawn: draw.Drawn) -> float:
    """How far the drawn rows' gradient is off, written out row by row."""
    assert batch.last_layer is not None
    weights = torch.zeros_like(batch.losses)
    weights[drawn.indices] = drawn.weights / len(drawn.indices)
    off = mean_gradient(batch.last_layer, weights) - mean_gradient(batch.last_layer)
    return float(off.square().sum())


def test_laid_out_by_pull_the_gradient_varies_less() -> None:
    """On classified rows the layout takes away a good part of what an even draw leaves."""
    batch = candidates(600, 5, classes=6)
    even = torch.zeros(600)
    random = generator(2)
    errors: dict[str, list[float]] = {"random": [], "pull": []}
    for _ in range(300):
        one = replace(batch, control=None)
        errors["random"].append(squared_error(one, draw.unbiased(even, one, 60, random)))
        by_pull = draw.unbiased(even, one, 60, random, order=draw.by_pull)
        errors["pull"].append(squared_error(one, by_pull))
    ratio = sum(errors["pull"]) / sum(errors["random"])
    assert ratio < 0.8


def test_comparison_is_the_squared_error_of_the_draw_and_of_an_even_one() -> None:
    """The first number is that of the rows drawn; both come to their expectations."""
    batch = replace(candidates(200, 6), control=torch.zeros(200, dtype=torch.bool))
    assert batch.gradient_norms is not None
    scores, random = batch.gradient_norms.log(), generator(3)
    ours, even = [], []
    for _ in range(500):
        drawn = draw.unbiased(scores, batch, 40, random, order=draw.by_pull)
        assert drawn.variances is not None
        assert float(drawn.variances[0]) == pytest.approx(squared_error(batch, drawn), rel=1e-3)
        ours.append(float(drawn.variances[0]))
        even.append(float(drawn.variances[1]))
    assert batch.last_layer is not None
    gradients = torch.einsum(
        "bc,bh->bch",
        batch.last_layer.residuals,
        torch.nn.functional.pad(batch.last_layer.features, (0, 1), value=1.0),
    ).flatten(1)
    spread = (gradients - gradients.mean(0)).square().sum() / (200 - 1)
    expected = float(spread * (1 / 40 - 1 / 200))
    assert sum(even) / 500 == pytest.approx(expected, rel=0.1)
    assert sum(ours) < 0.7 * sum(even)


def test_after_a_fall_back_the_draw_is_even_and_still_compared() -> None:
    """Weights are 1, and the first number speaks of the draw that the scores would have made."""
    batch = candidates(200, 7)
    fallen = replace(batch, control=torch.ones(200, dtype=torch.bool), even=True)
    assert batch.gradient_norms is not None
    scores, random = batch.gradient_norms.log(), generator(4)
    ours, even = [], []
    for _ in range(300):
        drawn = draw.unbiased(scores, fallen, 40, random, order=draw.by_pull)
        torch.testing.assert_close(drawn.weights, torch.ones(40))
        assert drawn.variances is not None
        ours.append(float(drawn.variances[0]))
        even.append(float(drawn.variances[1]))
    assert sum(ours) < sum(even)


def test_masked_rows_are_in_no_arm() -> None:
    """Rows that may not be chosen have no chance in the control arm either."""
    batch = candidates(30, 8)
    finite = torch.arange(30) % 3 > 0
    masked = replace(
        batch,
        finite=finite,
        control=torch.ones(30, dtype=torch.bool),
        last_layer=None,
        losses=torch.where(finite, batch.losses, 1.0),
    )
    scores = masked.masked(batch.losses.log())
    for seed in range(50):
        drawn = draw.unbiased(scores, masked, 10, generator(seed))
        assert bool(finite[drawn.indices].all())


def layout(residuals: Tensor, losses: Tensor | None = None) -> list[int]:
    """Give the order of rows with these residuals."""
    losses = torch.zeros(len(residuals)) if losses is None else losses
    last = LastLayer(residuals, torch.ones(len(residuals), 1))
    batch = LossBatch(losses, gradient_norms=gradient_norms(last), last_layer=last)
    return draw.by_pull(batch).argsort().tolist()


def test_rows_are_laid_out_by_what_they_lower_then_raise_then_size() -> None:
    """Hand-worked: label 0 against class 1, twice, then against 2, then label 2."""
    residuals = torch.tensor(
        [[0.1, 0.2, -0.3], [-0.9, 0.8, 0.1], [-0.3, 0.1, 0.2], [-0.5, 0.4, 0.1]]
    )
    assert layout(residuals) == [3, 1, 2, 0]


def test_regressions_are_laid_out_by_their_residual() -> None:
    """One output: from those that are too low to those that are too high."""
    assert layout(torch.tensor([[0.5], [-2.0], [0.1]])) == [1, 2, 0]


def test_tokens_pull_together() -> None:
    """Sequences are laid out by the sum over their tokens, in half precision, too."""
    residuals = torch.tensor([[[0.4], [0.5]], [[0.5], [-0.9]]], dtype=torch.bfloat16)
    assert layout(residuals) == [1, 0]


@given(b=st.integers(1, 60), seed=st.integers(0, 1000), data=st.data())
def test_chances_sum_to_k_and_weights_keep_their_bound(
    b: int, seed: int, data: st.DataObject
) -> None:
    """With a control arm and guards at once; control rows may be moved, and weigh accordingly."""
    k = data.draw(st.integers(1, b))
    random = generator(seed)
    flagged, members = (torch.rand(b, generator=random) < 0.3 for _ in range(2))
    bounds = Bounds(flagged, 0.2, members[None], torch.tensor([0.5]))
    batch = replace(candidates(b, seed), bounds=data.draw(st.sampled_from([None, bounds])))
    drawn = draw.unbiased(batch.losses.log() * 3, batch, k, random, exploration=0.2)
    assert len(set(drawn.indices.tolist())) == k
    assert float(drawn.weights.max()) <= 5 * (1 + 1e-4)
