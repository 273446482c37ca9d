import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream import LossBatch, LossRecord, Scored, SelectingLoader
from adasel_stream.errors import AdaselError, BatchError, MethodError, ScoreError, SourceError
from tests.strategies import Array, any_losses
from tests.streams import Rows, batches, loss, rows

NAN, INF = float("nan"), float("inf")
policies = pytest.mark.parametrize("policy", ["unbiased", "paper"])

LOSSES = {
    "all NaN": [NAN] * 8,
    "all infinite": [INF, -INF] * 4,
    "one finite": [NAN] * 7 + [2.0],
    "some not finite": [1.0, NAN, 3.0, INF, -INF, 0.5, NAN, 2.0],
    "negative": [-1.0, -5.0, -0.1, -3.0, -2.0, -8.0, -0.5, -4.0],
    "all equal": [1.0] * 8,
    "all zero": [0.0] * 8,
    "huge": [1e30, -1e30, 1e30, 3e38, -3e38, 1.0, 2.0, 3.0],
    "tiny": [1e-45, 1e-40, 0.0, 1e-38, 0.0, 1e-44, 1e-42, 1e-39],
}


def stream(*losses: list[float]) -> list[Rows]:
    """Numbered rows with these losses."""
    made = batches([len(row) for row in losses])
    for batch, values in zip(made, losses, strict=True):
        batch["loss"] = torch.tensor(values)
    return made


def check(source: list[Rows], policy: Any, **options: Any) -> SelectingLoader:
    """Train on half of a stream: only finite rows come, and everything stays finite."""
    loader = SelectingLoader(
        source, score=loss, sampling_rate=0.5, policy=policy, batch_size=2, **options
    )
    finite = {
        i for b in source for i, v in zip(b["id"].tolist(), b["loss"], strict=True) if v.isfinite()
    }
    for batch in loader:
        ids = batch["id"].tolist()
        assert set(ids) <= finite
        finite -= set(ids)
        assert loader.weights.isfinite().all()
        assert (loader.weights > 0).all()
        assert loader.mean(torch.ones(2)).isfinite()
    every = torch.cat([batch["loss"] for batch in source])
    dropped = int((~every.isfinite()).sum())
    assert loader.metrics.samples_dropped["nonfinite_loss"] == dropped
    weights = loader.metrics.method_weight_ratio
    assert math.isclose(sum(weights), 1, abs_tol=1e-5)
    assert all(weight >= 0 for weight in weights)
    return loader


@policies
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_every_kind_are_survived(name: str, policy: str) -> None:
    """Non-finite rows are counted and never chosen; what follows is as if they had not come."""
    bad, good = LOSSES[name], [float(i) for i in range(8)]
    loader = check(stream(good, bad, bad, good, bad), policy)
    usable = 16 + 3 * sum(math.isfinite(value) for value in bad)
    assert abs(loader.metrics.samples_selected - usable / 2) <= (1 if policy == "unbiased" else 3)


@given(losses=st.lists(any_losses(1), min_size=1, max_size=4), policy=st.sampled_from(["p", "u"]))
def test_any_losses_are_survived(losses: list[Array], policy: str) -> None:
    """Whatever hypothesis makes of them."""
    check(stream(*(batch.tolist() for batch in losses)), {"p": "paper", "u": "unbiased"}[policy])


@policies
def test_a_batch_without_a_finite_loss_changes_nothing(policy: str) -> None:
    """Neither the method weights nor the draws of the batches after it."""
    good = [[float(i * j % 7) for i in range(8)] for j in range(1, 5)]
    whole = check(stream(*good), policy)
    options: dict[str, Any] = {"sampling_rate": 0.5, "policy": "unbiased", "window": 1}
    plain = SelectingLoader(stream(*good), score=loss, **options)
    seen = [b["id"].tolist() for b in plain]
    bad = check(stream(good[0], [NAN] * 8, *good[1:]), policy)
    assert bad.metrics.method_weight_ratio == whole.metrics.method_weight_ratio
    again = SelectingLoader(stream(good[0], [INF] * 8, *good[1:]), score=loss, **options)
    got = [[i if i < 8 else i - 8 for i in b["id"].tolist()] for b in again]
    assert got == seen


@policies
def test_rows_whose_gradient_norm_is_not_finite_are_not_chosen(policy: str) -> None:
    """Although their loss is finite; an overflow in the last layer is no reason to prefer them."""
    norms = torch.tensor([[1.0], [NAN], [INF], [2.0], [3.0], [NAN], [4.0], [5.0]])

    def score(batch: Rows) -> Scored:
        return Scored(batch["loss"], norms, torch.ones(8, 1))

    loader = SelectingLoader(
        batches([8] * 6), score=score, methods=["gradient_norm"], sampling_rate=0.5, policy=policy
    )
    ids = [i for batch in loader for i in batch["id"].tolist()]
    assert len(ids) >= 8
    assert {i % 8 for i in ids} <= {0, 3, 4, 6, 7}
    assert loader.metrics.samples_dropped["nonfinite_loss"] == 18


@policies
def test_empty_batches_are_passed_over(policy: str) -> None:
    """They decide neither the batch size nor anything else."""
    empty, some = batches([0, 8, 0, 8, 0])[0], batches([0, 8, 0, 8, 0])
    loader = SelectingLoader(some, score=loss, sampling_rate=0.5, policy=policy)
    assert [len(batch["id"]) for batch in loader] == [8]
    assert loader.metrics.samples_seen == 16
    assert list(SelectingLoader([empty] * 3, score=loss, sampling_rate=0.5)) == []


@policies
def test_batches_of_one_row_add_up(policy: str) -> None:
    """At one half every second row, or by the paper's rounding each."""
    loader = SelectingLoader(batches([1] * 8), score=loss, sampling_rate=0.5, policy=policy)
    assert len(list(loader)) == {"unbiased": 4, "paper": 8}[policy]


def test_an_exhausted_source_ends_the_pass() -> None:
    """An empty one gives none; a one-shot iterator gives no second pass."""
    assert list(SelectingLoader([], score=loss, sampling_rate=0.5)) == []
    loader = SelectingLoader(iter(batches([8] * 4)), score=loss, sampling_rate=0.5)
    assert len(list(loader)) == 2
    with pytest.raises(
        SourceError, match="list_iterator gives its batches once, and they are used"
    ):
        list(loader)


class Shards:
    """Four batches of four; the third can neither be read nor gone to until it is back."""

    def __init__(self) -> None:
        self.taken, self.missing = 0, True

    def __iter__(self) -> Iterator[Rows]:
        """Go on where it stands."""
        for batch in batches([4] * 4)[self.taken :]:
            if self.taken == 2 and self.missing:
                raise FileNotFoundError("shard 2")
            self.taken += 1
            yield batch
        self.taken = 0

    def state_dict(self) -> dict[str, Any]:
        """Say where it stands."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go there, if the shard is there."""
        if self.missing:
            raise FileNotFoundError("shard 2")
        self.taken = state["taken"]


def test_a_source_that_cannot_go_back_yet_goes_on_later() -> None:
    """The place is kept until the next pass; what was trained on does not come again."""
    source = Shards()
    loader = SelectingLoader(source, score=loss, sampling_rate=0.5, batch_size=2)
    got: list[Rows] = []
    with pytest.raises(SourceError, match="Shards raised FileNotFoundError after 2 candidate"):
        got.extend(loader)
    source.missing = False
    got.extend(loader)
    seen = [i for batch in got for i in batch["id"].tolist()]
    assert (len(seen), len(set(seen))) == (8, 8)


def test_a_batch_that_a_method_fails_on_leaves_the_rate_exact() -> None:
    """Nothing was chosen from it, so nothing of it was due; the error names the method."""
    calls: list[int] = []

    def sometimes(batch: LossBatch) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("no")
        return batch.losses

    loader = SelectingLoader(
        batches([8] * 5),
        score=loss,
        sampling_rate=0.5,
        methods=[sometimes],
        batch_size=4,
        window=1,
    )
    with pytest.raises(KeyError) as raised:
        list(loader)
    assert "It came from method 'sometimes'" in raised.value.__notes__[0]
    list(loader)
    assert loader.metrics.samples_selected == 4 + 4 * 5


def test_what_was_selected_before_a_source_failed_comes_afterwards() -> None:
    """The error names the place; no row that was chosen is lost."""
    good = batches([6, 6, 6, 6])
    broken = [True]

    class Shaky:
        def __iter__(self) -> Iterator[Rows]:
            yield from good[:2] if broken[0] else good[2:]
            if broken[0]:
                raise ConnectionResetError("peer S3CR3T went away")

    loader = SelectingLoader(Shaky(), score=loss, sampling_rate=0.5, batch_size=5)
    got: list[Rows] = []
    with pytest.raises(SourceError, match="Shaky raised ConnectionResetError after 2 candidate ba"):
        got.extend(loader)
    ids = [i for batch in got for i in batch["id"].tolist()]
    assert (len(ids), loader.state_dict()["selector"]["rows"]["filled"]) == (5, 1)
    broken[0] = False
    for batch in loader:
        ids += batch["id"].tolist()
    assert len(set(ids)) == len(ids) == 10
    assert sum(i < 12 for i in ids) == 6


def failing_then_good(bad: Any) -> list[Any]:
    """A stream whose second batch cannot be used."""
    return [batches([6])[0], bad, *batches([6, 6, 6])[1:]]


def with_leaf(**leaves: Any) -> Rows:
    """A batch of six rows with a leaf changed."""
    return {**rows(100, 6), **leaves}


BAD_BATCHES: dict[str, tuple[Any, type[AdaselError], str]] = {
    "ragged": (with_leaf(x=torch.zeros(5, 4)), BatchError, "has 5 rows, batch.* has 6; every leaf"),
    "other shape": (with_leaf(x=torch.zeros(6, 3)), BatchError, "same shapes and dtypes"),
    "other dtype": (with_leaf(x=torch.zeros(6, 4).double()), BatchError, "float64, before it was"),
    "leaf missing": ({"id": rows(0, 6)["id"]}, BatchError, "must have the same structure"),
    "leaf too many": (with_leaf(note=["S3CR3T"] * 6), BatchError, "must have the same structure"),
    "scalar leaf": (with_leaf(x=torch.tensor(987654.0)), BatchError, "is a scalar, expected one"),
    "no leaf": ({}, BatchError, "nothing to select"),
    "text": ("S3CR3T", BatchError, "leaf batch has type str, expected a tensor, an array or a"),
    "id missing": ({"x": rows(0, 6)["x"]}, BatchError, "ids='id' is not in the batch, whose leav"),
    "float ids": (with_leaf(id=torch.full((6,), 987654.0)), BatchError, "dtype float32, expected"),
    "null ids": (
        with_leaf(id=[*"S3CR3", None]),
        BatchError,
        r"row 5 .* has no id: .* got NoneType",
    ),
    "too few ids": (with_leaf(id=[1, 2]), BatchError, "has 6 rows, .* has 2; every leaf"),
    "scalar loss": (with_leaf(loss=torch.full((6,), 9.0)), ScoreError, 'reduction="none"'),
    "whole losses": (
        with_leaf(loss=torch.full((6,), 8.0)),
        ScoreError,
        "dtype torch.int64, expected",
    ),
    "too many losses": (
        with_leaf(loss=torch.full((6,), 7.0)),
        ScoreError,
        r"shape \(12,\), expected",
    ),
}


def fussy(batch: Rows) -> Tensor:
    """Fail in the way that the first loss asks for."""
    losses = loss(batch)
    ways: dict[float, Callable[[], Tensor]] = {
        9.0: losses.mean,
        8.0: losses.long,
        7.0: lambda: losses.repeat(2),
    }
    return ways.get(float(losses[0]), lambda: losses)()


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_a_batch_that_cannot_be_used_raises_a_typed_error(name: str) -> None:
    """It says what was expected and what came, repeats no data, and no chosen row is lost."""
    bad, error, message = BAD_BATCHES[name]
    source = iter(failing_then_good(bad))
    loader = SelectingLoader(
        source,
        score=fussy,
        sampling_rate=0.5,
        batch_size=4,
        record=LossRecord(capacity=64),
        ids="id",
    )
    with pytest.raises(error, match=message) as caught:
        list(loader)
    for secret in ("S3CR3T", "987654"):
        assert secret not in str(caught.value)
    assert loader.state_dict()["selector"]["rows"]["filled"] == 3
    assert sum(len(batch["id"]) for batch in loader) == 8
    assert loader.metrics.samples_seen == 18


def test_a_score_that_fails_is_not_hidden() -> None:
    """The user's own error comes as it is; the next batch is scored again."""

    def score(batch: Rows) -> Tensor:
        if batch["id"][0] == 6:
            raise ZeroDivisionError
        return loss(batch)

    loader = SelectingLoader(iter(batches([6] * 4)), score=score, sampling_rate=0.5, batch_size=3)
    with pytest.raises(ZeroDivisionError):
        list(loader)
    assert len(list(loader)) == 2


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda batch: batch.losses[:-1], r"returned shape \(5,\), expected \(6,\): one prefer"),
        (lambda batch: batch.losses.mean(), r"returned shape \(\), expected \(6,\)"),
        (lambda batch: batch.losses.tolist(), "returned list, expected a tensor"),
        (lambda batch: None, "returned NoneType, expected a tensor"),
    ],
)
def test_a_method_that_gives_no_preference_a_row_is_named(
    method: Callable[[LossBatch], Any], message: str
) -> None:
    """With the shape that came and the one expected."""
    loader = SelectingLoader(batches([6]), score=loss, sampling_rate=0.5, methods={"mine": method})
    with pytest.raises(MethodError, match=f"method 'mine' {message}"):
        list(loader)


@policies
def test_preferences_that_are_not_finite_are_survived(policy: str) -> None:
    """NaN counts as the least, infinities as the ends."""

    def wild(batch: LossBatch) -> Tensor:
        values = torch.tensor([NAN, INF, -INF, 1e38, -1e38, 0.0])
        return values[: len(batch.losses)]

    check(batches([6] * 4), policy, methods=[wild])


def test_a_method_without_what_it_needs_says_how_to_get_it() -> None:
    """Losses alone give no gradient norms."""
    loader = SelectingLoader(batches([6]), score=loss, sampling_rate=0.5, methods=["gradient_norm"])
    with pytest.raises(MethodError, match="give the loader model= with a linear last layer, or"):
        list(loader)
