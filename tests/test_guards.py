"""Caps on suspicious rows and least rates of slices, in draws and in a top-k."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream import Guards, Proxy, SelectingLoader, auto
from adasel_stream.draw import systematic
from adasel_stream.errors import BatchError
from adasel_stream.filling import inclusions
from adasel_stream.guards import bounded, bounded_scores, top_loss
from adasel_stream.loss_batch import Bounds
from tests.candidates import generator
from tests.streams import Rows, Stream, loss

EXPLORATION = 0.2


def drawn(b: int, k: int, seed: int, masked: float = 0.0) -> tuple[Tensor, Tensor, float]:
    """Make probabilities of a draw with exploration, a mask of usable rows, and their floor."""
    random = generator(seed)
    usable = torch.rand(b, generator=random) >= masked
    usable[:k] = True
    p = torch.rand(b, generator=random).double() ** 6 * usable
    n = int(usable.sum())
    p = (1 - EXPLORATION) * p / p.sum() + EXPLORATION * usable / n
    return inclusions(p, k), usable, EXPLORATION * k / n


def some(b: int, share: float, seed: int) -> Tensor:
    """Choose a share of rows at random, (b,), bool."""
    return torch.rand(b, generator=generator(seed)) < share


def no_slices(b: int) -> tuple[Tensor, Tensor]:
    """Give no slices and no rates."""
    return torch.zeros(0, b, dtype=torch.bool), torch.zeros(0)


@given(b=st.integers(1, 50), seed=st.integers(0, 999), cap=st.floats(0.01, 1), data=st.data())
def test_a_cap_holds_where_it_can_and_the_sum_always(
    b: int, seed: int, cap: float, data: st.DataObject
) -> None:
    """Flagged rows get at most cap·k, unless floors or too few others forbid it."""
    k = data.draw(st.integers(1, b))
    pi, usable, least = drawn(b, k, seed, masked=0.2)
    flagged = some(b, 0.4, seed + 1)
    got = bounded(pi, Bounds(flagged, cap, *no_slices(b)), k, least)
    assert float(got.sum()) == pytest.approx(k, abs=1e-6)
    assert ((got >= 0) & (got <= 1 + 1e-9)).all()
    assert torch.equal(got > 0, usable)
    assert (got[usable] >= least - 1e-6).all()
    mine, others = flagged & usable, usable & ~flagged
    most = max(cap * k, float(mine.sum()) * least, k - float(others.sum()))
    assert float(got[mine].sum()) <= most + 1e-6
    if float(pi[mine].sum()) <= cap * k:
        torch.testing.assert_close(got, pi, atol=1e-9, rtol=1e-9)


@given(b=st.integers(1, 50), seed=st.integers(0, 999), data=st.data())
def test_slices_get_their_rate_and_the_sum_stays(b: int, seed: int, data: st.DataObject) -> None:
    """Each slice's own rows sum to at least rate times their number, where all can be met."""
    k = data.draw(st.integers(1, b))
    rates = torch.tensor(data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=4)))
    pi, usable, least = drawn(b, k, seed, masked=0.2)
    slices = torch.stack([some(b, 0.3, seed + i) for i in range(len(rates))])
    nobody = torch.zeros(b, dtype=torch.bool)
    got = bounded(pi, Bounds(nobody, 1.0, slices, rates), k, least)
    assert float(got.sum()) == pytest.approx(k, abs=1e-6)
    assert ((got >= 0) & (got <= 1 + 1e-9)).all()
    taken = nobody.clone()
    demands = []
    for members, rate in zip(slices, rates, strict=True):
        own = members & usable & ~taken
        taken |= members
        floor = least * float(own.sum())
        demands.append((own, floor, max(0.0, float(rate) * float(own.sum()) - floor)))
    spare, total = k - least * float(usable.sum()), sum(demand for *_, demand in demands)
    for own, floor, demand in demands:
        granted = demand * min(1.0, spare / max(total, 1e-12))
        assert float(got[own].sum()) >= floor + granted - 1e-6


@given(b=st.integers(2, 50), seed=st.integers(0, 999), rate=st.floats(0, 1), data=st.data())
def test_a_cap_does_not_take_what_a_slice_is_promised(
    b: int, seed: int, rate: float, data: st.DataObject
) -> None:
    """Its suspicious rows pass as far as its rate asks for them; those of nobody do not."""
    k = data.draw(st.integers(1, b))
    pi, usable, least = drawn(b, k, seed, masked=0.2)
    flagged, members = some(b, 0.4, seed + 1), some(b, 0.3, seed + 2)
    capped = bounded(pi, Bounds(flagged, 0.1, *no_slices(b)), k, least)
    got = bounded(pi, Bounds(flagged, 0.1, members[None], torch.tensor([rate])), k, least)
    own = members & usable
    floor, spare = least * float(own.sum()), k - least * float(usable.sum())
    due = min(max(0.0, rate * float(own.sum()) - floor), spare)
    assert float(got[own].sum()) >= floor + due - 1e-6
    assert float(got.sum()) == pytest.approx(k, abs=1e-6)
    rest = flagged & ~members
    assert float(got[rest].sum()) <= float(capped[rest].sum()) + 1e-6


def test_bounded_draws_stay_unbiased() -> None:
    """Over many draws the weighted mean comes to that of all rows."""
    b, k = 40, 10
    pi, _, least = drawn(b, k, 5)
    slices = torch.stack([some(b, 0.2, 1), some(b, 0.3, 2)])
    flagged = some(b, 0.3, 3)
    got = bounded(pi, Bounds(flagged, 0.1, slices, torch.tensor([0.6, 0.4])), k, least)
    values, random = torch.randn(b, generator=generator(4)).double(), generator(6)
    means = []
    for _ in range(4000):
        permutation = torch.randperm(b, generator=random)
        rows = systematic(got, k, permutation, torch.rand((), generator=random))
        means.append((values[rows] / got[rows]).sum() / b)
    estimates = torch.stack(means)
    assert abs(estimates.mean() - values.mean()) < 4 * estimates.std() / 4000**0.5


@given(b=st.integers(2, 40), seed=st.integers(0, 999), cap=st.floats(0.05, 1), data=st.data())
def test_a_top_k_keeps_to_cap_and_rates(b: int, seed: int, cap: float, data: st.DataObject) -> None:
    """The best of a slice come first, flagged rows beyond the cap last, masked ones never."""
    k = data.draw(st.integers(1, b // 2))
    random = generator(seed)
    scores, flagged = torch.randn(b, generator=random), some(b, 0.3, seed + 1)
    members = some(b, 0.2, seed + 2) & ~flagged
    rate = data.draw(st.floats(0, 1))
    bounds = Bounds(flagged, cap, members[None], torch.tensor([rate]))
    chosen = bounded_scores(scores, bounds, k).argsort(descending=True)[:k]
    picked = torch.zeros(b, dtype=torch.bool).scatter(0, chosen, torch.ones(k, dtype=torch.bool))
    due = torch.tensor(rate) * members.sum()
    assert int((picked & members).sum()) >= min(k, int(torch.ceil(due)))
    free = int((~flagged).sum())
    assert int((picked & flagged).sum()) <= max(int(cap * k), k - free)
    best = scores[members].sort(descending=True).values[: min(k, int(torch.ceil(due)))]
    assert set(best.tolist()) <= set(scores[picked].tolist())


def test_the_tail_is_the_largest_losses() -> None:
    """A share of the rows that may be chosen; of equal ones at its edge none."""
    ranks = torch.tensor([0.0, 4.0, 2.0, 1.0, 3.0])
    assert top_loss(ranks, 5, 0.4).tolist() == [False, True, False, False, True]
    assert not bool(top_loss(ranks, 5, 0.0).any())
    assert not bool(top_loss(torch.tensor([0.0, 2.5, 2.5, 2.5, 2.5]), 5, 0.4).any())


def poisoned() -> list[Rows]:
    """Make batches of which one row in sixteen has an enormous loss."""
    random = generator(0)
    rows = []
    for start in range(0, 64 * 200, 64):
        losses = torch.rand(64, generator=random)
        losses[::16] = 1000.0
        rows.append({"id": torch.arange(start, start + 64), "loss": losses})
    return rows


@pytest.mark.parametrize("policy", ["auto", "unbiased", "paper"])
def test_a_poisoned_source_gets_no_more_than_its_cap(policy: str) -> None:
    """Without a guard it takes a quarter of all that is trained on, or far more."""
    shares = {}
    for cap in (1.0, 0.1):
        loader = SelectingLoader(
            poisoned(),
            score=loss,
            sampling_rate=0.25,
            policy=policy,
            methods=["big_loss"],
            guards=Guards(cap=cap, tail=1 / 16),
        )
        bad = list[int]()
        for batch in loader:
            loader.mean(batch["loss"])
            bad.append(int((batch["loss"] > 100).sum()))
        shares[cap] = sum(bad) / (64 * len(bad))
        counts = loader.metrics.snapshot()
        assert counts["suspicious_selected_total"] == sum(bad)
        assert counts["samples_selected_total"] == 64 * len(bad)
    assert shares[1.0] > 0.14
    assert shares[0.1] <= 0.105


def test_a_slice_that_nobody_wants_gets_its_rate_and_is_counted() -> None:
    """Easy rows of a named slice are trained on all the same; metrics show both numbers."""

    def first(batch: Rows) -> Tensor:
        eighth: Tensor = batch["id"] % 8 == 0
        return eighth

    guards = Guards(slices={"first": (first, 0.9), "none": (lambda b: b["id"] < 0, 1.0)})
    loader = SelectingLoader(Stream((16,) * 100), score=loss, sampling_rate=0.25, guards=guards)
    ids = torch.cat([batch["id"] for batch in loader])
    assert float((ids % 8 == 0).float().sum()) / 200 == pytest.approx(0.9, abs=0.04)
    snapshot = loader.metrics.snapshot()
    assert snapshot["slice_seen_total"] == {"first": 200, "none": 0}
    assert snapshot["slice_selected_total"]["first"] == pytest.approx(180, abs=8)
    assert float(loader.weights.min()) > 0


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            lambda b: b["id"],
            r"slice 'x' gave shape \(8,\) and dtype torch.int64, expected \(\d+,\)",
        ),
        (lambda b: torch.tensor(True), r"slice 'x' gave shape \(\) and dtype torch.bool"),
    ],
)
def test_slices_that_are_no_masks_are_refused(members: Any, message: str) -> None:
    """The error names the slice, what came and what was expected."""
    guards = Guards(slices={"x": (members, 0.5)})
    loader = SelectingLoader(
        Stream((8,) * 4), score=loss, sampling_rate=0.5, guards=guards, window=1
    )
    with pytest.raises(BatchError, match=message):
        list(loader)


def test_a_cap_that_cannot_bind_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """A fifth of three tenths of the rows is more than the tail holds."""
    SelectingLoader(Stream(), score=loss, sampling_rate=0.3, guards=Guards(cap=0.2, tail=0.05))
    assert "cap=0.2 cannot bind at sampling_rate=0.3, since 0.06 of the" in caplog.text
    assert "lower cap below 0.167" in caplog.text
    caplog.clear()
    SelectingLoader(Stream(), score=loss, sampling_rate=0.3, guards=Guards(cap=0.1, tail=0.1))
    assert not caplog.messages


def test_a_slice_that_cannot_get_its_rate_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Nine tenths of all rows are promised where a quarter is chosen."""
    guards = Guards(
        slices={"all": (lambda b: b["id"] >= 0, 0.9), "none": (lambda b: b["id"] < 0, 0.1)}
    )
    list(SelectingLoader(Stream((8,) * 200), score=loss, sampling_rate=0.25, guards=guards))
    told = [line for line in caplog.messages if "slice 'all' is to be chosen at 0.9, and" in line]
    assert len(told) == 1
    assert "ask for more than is chosen" in told[0]


def test_an_error_of_a_slice_names_it() -> None:
    """The function is a user's own, and there may be sixteen."""
    guards = Guards(slices={"mine": (lambda b: b["missing"] > 0, 0.5)})
    loader = SelectingLoader(Stream((8,)), score=loss, sampling_rate=0.5, guards=guards)
    with pytest.raises(KeyError, match="missing") as caught:
        list(loader)
    assert caught.value.__notes__ == ["It came from the function of slice 'mine', given a batch."]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cap": 0}, ValueError, r"cap must be in \(0, 1\], got 0"),
        ({"tail": 1}, ValueError, r"tail must be in \[0, 1\), got 1"),
        ({"repeats": 3, "cap": 0.5}, ValueError, "repeats must be at least 4 or None, got 3"),
        ({"slices": {"a": (3, 0.5)}}, TypeError, r"pairs of a function .* got \(3, 0.5\) for 'a'"),
        ({"slices": {"a": len}}, TypeError, r"pairs of a function .* got <built-in function len>"),
        ({"slices": {1: (len, 0.5)}}, TypeError, "name of a slice must be a string, got 1"),
        ({"slices": [len]}, TypeError, "slices must be a mapping .* got list"),
        ({"slices": {"a": (len, "x")}}, TypeError, "rate of slice 'a' must be a number, got str"),
        ({"cap": "0.2"}, TypeError, "cap must be a number, got str"),
        (
            {"cap": 0.2, "repeats": 5.5},
            TypeError,
            "repeats must be an integer, got float",
        ),
        ({"slices": {"a": (len, 2)}}, ValueError, r"rate of slice 'a' must be in \[0, 1\], got 2"),
        ({"slices": {str(i): (len, 0.1) for i in range(17)}}, ValueError, "at most 16 slices"),
    ],
)
def test_guards_out_of_range_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(error, match=message):
        Guards(**options)


def test_repeats_need_to_know_instances() -> None:
    """Without a record nobody can tell that a row comes again."""
    with pytest.raises(ValueError, match=r"guards\.repeats needs record= and ids="):
        SelectingLoader(Stream(), score=loss, sampling_rate=0.5, guards=Guards(cap=0.5, repeats=9))


def test_the_control_arm_tells_the_streams_loss_under_a_cap() -> None:
    """Guards move rows of the arm as well, and weights undo it: 1 in 8 at 50, the others at 0.5."""
    losses = torch.full((64,), 0.5)
    losses[::8] = 50.0
    loader = SelectingLoader(
        [{"loss": losses}] * 3000,
        score=Proxy(loss),
        sampling_rate=0.25,
        policy=auto(control=0.3),
        guards=Guards(cap=0.1, tail=1 / 8),
    )
    for batch in loader:
        loader.mean(batch["loss"])
    assert loader.metrics.stream_loss == pytest.approx(6.69, rel=0.15)
