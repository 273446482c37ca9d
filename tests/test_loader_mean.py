import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adasel_stream import LossRecord, SelectingLoader
from adasel_stream.errors import AdaselError
from tests.streams import batches, loader_over, loss

NAN, INF = float("nan"), float("inf")


@pytest.mark.verify
def test_the_mean_is_unbiased() -> None:
    """Averaged over many draws it is the mean over all candidates, whatever was preferred."""
    check_unbiased(seeds=4000)


def test_the_mean_is_about_unbiased() -> None:
    """The same with fewer draws."""
    check_unbiased(seeds=250)


def check_unbiased(seeds: int) -> None:
    """Compare the average of `mean` over seeds with the full mean, within four standard errors."""
    source = batches([20])
    full = source[0]["loss"].mean().item()
    means: list[float] = []
    for seed in range(seeds):
        loader = SelectingLoader(source, score=loss, sampling_rate=0.3, batch_size=6, seed=seed)
        batch = next(iter(loader))
        means.append(loader.mean(batch["loss"]).item())
    spread = float(np.std(means)) / np.sqrt(seeds)
    assert abs(float(np.mean(means)) - full) < 4 * spread


def test_the_papers_mean_is_the_plain_mean() -> None:
    """Its weights are all one."""
    loader = loader_over(policy="paper")
    for batch in loader:
        assert torch.equal(loader.weights, torch.ones(8))
        torch.testing.assert_close(loader.mean(batch["loss"]), batch["loss"].mean())


def test_mean_carries_the_gradient_of_each_row_by_its_weight() -> None:
    """What `backward` gets is weight over batch size."""
    loader = loader_over()
    for _ in loader:
        losses = torch.rand(8, requires_grad=True)
        loader.mean(losses).backward()  # type: ignore[no-untyped-call] # untyped in torch
        torch.testing.assert_close(losses.grad, loader.weights / 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_mean_takes_losses_of_any_precision(dtype: torch.dtype) -> None:
    """As autocast gives them; record and policy learn from them all the same."""
    record = LossRecord(capacity=100)
    loader = loader_over(record=record, ids="id")
    for batch in loader:
        mean = loader.mean(batch["loss"].to(dtype))
        assert mean.isfinite()
        got = record.lookup(batch["id"].numpy()).losses
        np.testing.assert_allclose(got, batch["loss"].to(dtype).float().numpy())


def test_mean_feeds_the_record_and_the_policy_once_a_batch() -> None:
    """A second call for the same batch, as some optimizers make, teaches nothing."""
    record = LossRecord(capacity=100)
    loader = loader_over(record=record, ids="id")
    batch = next(iterator := iter(loader))
    first = loader.mean(torch.full((8,), 50.0))
    assert torch.equal(first, loader.mean(torch.full((8,), 50.0)))
    loader.mean(torch.full((8,), 99.0))
    assert set(record.lookup(batch["id"].numpy()).losses.tolist()) == {50.0}
    assert loader.metrics.policy_updates == 1
    next(iterator)
    loader.mean(torch.ones(8))
    assert loader.metrics.policy_updates == 2


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (
            torch.tensor(1.0),
            r'shape \(8,\), one per .*, got \(\); compute it with reduction="none"',
        ),
        (
            torch.ones(7),
            r"must have shape \(8,\), one per row of the batch, got \(7,\)",
        ),
        (torch.ones(8, 1), r"got \(8, 1\)"),
    ],
)
def test_mean_refuses_other_shapes_and_learns_nothing_from_them(
    losses: Tensor, message: str
) -> None:
    """A mean over a mean would weigh nothing; broadcasting would weigh everything."""
    loader = SelectingLoader(batches(), score=loss, sampling_rate=0.5)
    next(iter(loader))
    with pytest.raises(ValueError, match=message):
        loader.mean(losses)
    assert loader.metrics.policy_updates == 0


def test_before_the_first_batch_there_is_nothing_to_weigh() -> None:
    """The message says what to do."""
    loader = SelectingLoader(batches(), score=loss, sampling_rate=0.5)
    with pytest.raises(
        AdaselError, match="no batch was emitted yet; iterate over the loader first"
    ):
        loader.mean(torch.ones(8))
    with pytest.raises(AdaselError, match="no batch was emitted yet"):
        _ = loader.weights


@pytest.mark.parametrize("bad", [NAN, INF])
def test_training_losses_that_are_not_finite_reach_neither_record_nor_weights(bad: float) -> None:
    """The mean shows them; what was learnt before stays."""
    record = LossRecord(capacity=100)
    loader = SelectingLoader(batches(), score=loss, sampling_rate=0.5, record=record, ids="id")
    for batch in loader:
        losses = batch["loss"].clone()
        losses[3] = bad
        assert not loader.mean(losses).isfinite()
        known = record.lookup(batch["id"].numpy())
        assert np.isfinite(known.losses).all()
        assert known.losses[3] == batch["loss"][3]
    assert record.counts["rejected"] == 3
    assert all(math.isfinite(weight) for weight in loader.metrics.method_weight_ratio)


def test_losses_find_their_batch_where_something_reads_ahead() -> None:
    """Given the batch, its own weights are used, however many were emitted meanwhile."""
    loader = SelectingLoader(batches([16] * 8), score=loss, sampling_rate=0.5, batch_size=8)
    plain = SelectingLoader(batches([16] * 8), score=loss, sampling_rate=0.5, batch_size=8)
    weights = {tuple(b["id"].tolist()): plain.weights for b in plain}
    read = list(itertools.islice(loader, 4))
    for batch in reversed(read):
        losses = torch.rand(8, requires_grad=True)
        moved = {"again": [{"x": batch["x"]}]}  # another structure around the same tensors
        loader.mean(losses, moved).backward()  # type: ignore[no-untyped-call] # untyped in torch
        torch.testing.assert_close(losses.grad, weights[tuple(batch["id"].tolist())] / 8)
    assert loader.metrics.policy_updates == 4


def test_losses_of_one_of_several_batches_are_not_guessed_at() -> None:
    """Weights of another batch would be silently wrong; the message says what to pass."""
    loader = SelectingLoader(batches([16] * 8), score=loss, sampling_rate=0.5, batch_size=8)
    ahead = list(itertools.islice(loader, 2))
    with pytest.raises(AdaselError, match=r"2 batches were emitted .*: mean\(losses, batch\)"):
        loader.mean(ahead[0]["loss"])
    loader.mean(ahead[0]["loss"], ahead[0])
    with pytest.raises(AdaselError, match="none of the last 2 that were emitted, or it was copied"):
        loader.mean(ahead[0]["loss"], {"x": ahead[0]["x"].clone()})


def test_a_batch_that_was_only_looked_at_is_no_obstacle() -> None:
    """A new pass begins with nothing passed over."""
    loader = SelectingLoader(batches([16] * 8), score=loss, sampling_rate=0.5, batch_size=8)
    next(iter(loader))
    for batch in loader:
        loader.mean(batch["loss"])


def test_a_refused_mean_can_be_repeated() -> None:
    """What was wrong is not counted as the batch's first losses."""
    loader = SelectingLoader(batches([16] * 8), score=loss, sampling_rate=0.5, batch_size=8)
    batch = next(iter(loader))
    with pytest.raises(ValueError, match="must have shape"):
        loader.mean(batch["loss"].mean())
    loader.mean(batch["loss"])
    assert loader.metrics.policy_updates == 1


def test_losses_that_are_no_tensor_are_refused() -> None:
    """They carry no gradient."""
    loader = SelectingLoader(batches(), score=loss, sampling_rate=0.5)
    batch = next(iter(loader))
    with pytest.raises(TypeError, match="losses must be a tensor, got list"):
        loader.mean(batch["loss"].tolist())


@pytest.mark.parametrize(
    ("use", "warned"),
    [
        (lambda _: None, True),
        (lambda loader: loader.weights, False),
        (lambda loader: loader.mean(torch.ones(2)), False),
    ],
    ids=["neither", "weights", "mean"],
)
def test_averaging_without_weights_is_warned_of(
    use: Callable[[SelectingLoader], Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, after ten batches: it is biased, and nobody would notice."""
    loader = loader_over((8,) * 12, batch_size=2)
    for _ in loader:
        use(loader)
    told = [r for r in caplog.records if "averaging the losses yourself is biased" in r.message]
    assert len(told) == warned
