import gc
import random
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream import LossRecord, SelectingLoader, paper, unbiased
from adasel_stream.errors import AdaselError
from adasel_stream.loss_batch import LossBatch
from adasel_stream.methods import METHODS, NEEDS
from adasel_stream.metrics import Metrics
from adasel_stream.quota import half_up
from tests.strategies import rates
from tests.streams import Stream, loader_over, loss


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    rate=rates(),
    batch_size=st.integers(1, 20),
)
@pytest.mark.filterwarnings("ignore:selection cannot pay:RuntimeWarning")
def test_the_long_run_rate_is_exact_to_one_sample(
    sizes: list[int], rate: float, batch_size: int
) -> None:
    """Over any sizes of batches, counted in rows that came out."""
    loader = loader_over(tuple(sizes), sampling_rate=rate, batch_size=batch_size)
    rows = sum(len(batch["id"]) for batch in loader)
    chosen = loader.metrics.samples_selected
    assert 0 <= chosen - rows < batch_size
    assert abs(chosen - rate * sum(sizes)) < 1 + 1e-6
    assert loader.metrics.samples_seen == sum(sizes)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), rate=rates())
@pytest.mark.filterwarnings("ignore:selection cannot pay:RuntimeWarning")
def test_the_paper_rounds_in_every_batch(sizes: list[int], rate: float) -> None:
    """As it prints; the rounded numbers add up."""
    loader = loader_over(tuple(sizes), sampling_rate=rate, batch_size=1, policy="paper")
    assert len(list(loader)) == sum(half_up(size, rate) for size in sizes)


def test_the_seed_decides_everything() -> None:
    """Two loaders with one seed give the same batches and weights; the global state is no part."""

    def run(seed: int, **options: Any) -> list[tuple[Any, ...]]:
        torch.manual_seed(len(options))
        loader = loader_over(seed=seed, **options)
        return [(b["id"].tolist(), loader.weights.tolist()) for b in loader]

    for policy in ("unbiased", "paper"):
        before = torch.get_rng_state()
        torch.manual_seed(0)
        assert run(1, policy=policy) == run(1, policy=policy)
        assert run(1, policy=policy) != run(2, policy=policy)
        torch.set_rng_state(before)


@pytest.mark.parametrize("policy", ["unbiased", "paper"])
def test_no_global_generator_is_touched(policy: str) -> None:
    """Whatever is drawn is drawn from the loader's own."""
    before = torch.get_rng_state(), str(random.getstate()), str(np.random.get_state())  # noqa: NPY002 - it is read, not used
    list(loader_over(policy=policy))
    after = torch.get_rng_state(), str(random.getstate()), str(np.random.get_state())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.filterwarnings("ignore:selection cannot pay:RuntimeWarning")
@pytest.mark.parametrize("policy", ["unbiased", "paper"])
def test_at_rate_one_everything_comes_with_weight_one(policy: str) -> None:
    """Selection that selects all changes nothing but the order."""
    loader = loader_over(sampling_rate=1.0, policy=policy, batch_size=3)
    ids: list[int] = []
    for batch in loader:
        ids += batch["id"].tolist()
        torch.testing.assert_close(loader.weights, torch.ones(3))
    assert sorted(ids) == list(range(51))


def test_what_is_trained_on_moves_the_method_weights() -> None:
    """Losses that grow with what big_loss wants give it weight."""
    loader = loader_over((32,) * 30, methods=["big_loss", "small_loss"], batch_size=16)
    for batch in loader:
        loader.mean(batch["loss"])
    big, small = loader.metrics.method_weight_ratio
    assert big > 0.6 > 0.4 > small


def test_a_method_of_ones_own_is_a_plain_function() -> None:
    """Three lines, passed as it is; its name is shown."""

    def newest(batch: LossBatch) -> Tensor:
        return torch.arange(float(len(batch.losses)))

    loader = loader_over((8,) * 4, methods=[newest], policy="paper", batch_size=4)
    assert [sorted(b["id"].tolist()) for b in loader] == [
        list(range(8 * i + 4, 8 * i + 8)) for i in range(4)
    ]
    assert loader.metrics.methods == ("newest",)


@pytest.mark.parametrize(
    "name", [m for m in METHODS if not NEEDS[METHODS[m]] & {"last_layer", "reference", "previous"}]
)
@pytest.mark.parametrize("policy", [paper(curriculum_exponent=-0.5), unbiased(update="progress")])
def test_every_method_works_under_every_policy(name: str, policy: Any) -> None:
    """Alone, over batches of all kinds."""
    assert len(list(loader_over(methods=[name], policy=policy))) == 3


def test_the_cost_is_told_once_before_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    """Not at construction, not again in later passes, and nothing on stdout."""
    loader = loader_over(sampling_rate=0.3)
    assert capsys.readouterr().err == ""
    next(iter(loader))
    out, err = capsys.readouterr()
    assert (err.count("\n"), err.count("can save 36.7%"), out) == (1, 1, "")
    list(loader)
    assert capsys.readouterr().err == ""


def test_a_rate_that_cannot_pay_is_warned_of_at_the_users_line() -> None:
    """So that a filter of warnings can find it."""
    loader = loader_over(sampling_rate=0.7)
    with pytest.warns(RuntimeWarning, match="cannot pay at sampling_rate=0.7") as caught:
        next(iter(loader))
    assert caught[0].filename == __file__


def test_a_break_leaves_a_loader_that_can_be_iterated_again() -> None:
    """Without `close`, as with any other loader."""
    loader = loader_over((8,) * 6)
    for _ in loader:
        break
    assert [len(batch["id"]) for batch in loader] == [8, 8, 8]


def test_a_newer_pass_ends_an_older_one() -> None:
    """Two loops over one position would each miss what the other takes: the older is told."""
    loader = loader_over((8,) * 8)
    older, newer = iter(loader), iter(loader)
    next(older)
    next(newer)
    with pytest.raises(AdaselError, match=r"this pass is over: .* Use the newest iterator"):
        next(older)
    assert len(list(newer)) == 3


def test_an_iterator_that_was_never_used_ends_nothing() -> None:
    """Frameworks make iterators only to see whether they can."""
    loader = loader_over((8,) * 4)
    running = iter(loader)
    next(running)
    unused = iter(loader)
    assert len(list(running)) == 1
    del unused


def test_closing_ends_the_pass_quietly_and_closes_the_source() -> None:
    """A loop that closes its own loader ends; rows that wait are kept."""

    class Closing(Stream):
        closed = 0

        def close(self) -> None:
            """Count the calls."""
            self.closed += 1

    source = Closing((8,) * 8)
    with SelectingLoader(source, score=loss, sampling_rate=0.5, batch_size=6) as loader:
        got = 0
        for _ in loader:
            got += 1
            if got == 2:
                loader.close()
    assert (got, source.closed) == (2, 2)
    loader.close()


def test_the_loader_starts_no_thread() -> None:
    """And keeps nothing alive once it is gone."""
    before = threading.active_count()
    loader = loader_over(record=LossRecord(capacity=100), ids="id")
    next(iter(loader))
    assert threading.active_count() == before
    watched = weakref.ref(loader)
    del loader
    gc.collect()
    assert watched() is None


def test_there_is_no_length() -> None:
    """How many batches come depends on the data."""
    with pytest.raises(TypeError):
        len(loader_over())  # type: ignore[arg-type] # that is the point


def test_metrics_count_what_happened() -> None:
    """Rows, steps and phases; the caller's own are used."""
    metrics = Metrics(["big_loss"], sampling_rate=0.5, batch_size=99, policy="unbiased")
    loader = loader_over(methods=["big_loss"], metrics=metrics)
    for batch in loader:
        loader.mean(batch["loss"])
    assert loader.metrics is metrics
    assert (metrics.samples_seen, metrics.samples_selected, metrics.steps) == (51, 25, 3)
    assert metrics.batch_size == 8
    assert metrics.loss["seen"].count == 51
    assert metrics.loss["selected"].count == 25
    assert all(metrics.phase_seconds[p] > 0 for p in ("data_wait", "score", "select", "train"))


def test_a_source_that_counts_errors_is_watched() -> None:
    """What it leaves out from now on is in the snapshot."""

    class Counting(Stream):
        def __init__(self) -> None:
            super().__init__()
            self.counts = {"skipped_samples": 7}

    source = Counting()
    loader = SelectingLoader(source, score=loss, sampling_rate=0.5)
    source.counts["skipped_samples"] += 3
    assert loader.metrics.snapshot()["input_errors_total"]["sample"] == 3


def test_a_step_that_is_broken_off_is_counted() -> None:
    """The batch was emitted and may have been trained on."""
    loader = loader_over()
    for _ in loader:
        break
    assert loader.metrics.steps == 1
