import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream import SelectingLoader, load_checkpoint, save_checkpoint
from adasel_stream.proxy import Proxy, ProxyWatch
from adasel_stream.scorers import ModelScorer
from adasel_stream.spearman import spearman
from adasel_stream.types import Scored

Floats = npt.NDArray[np.float64]


def rows(count: int, likeness: float, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Give a proxy, losses that are like it by a correlation, and uneven weights."""
    random = np.random.default_rng(seed)
    proxy, other = random.normal(size=(2, count))
    losses = np.exp(likeness * proxy + np.sqrt(1 - likeness**2) * other)
    return proxy, losses, random.uniform(0.3, 3.0, count)


def shown(watch: ProxyWatch, likeness: float, batches: int, *, size: int = 512) -> None:
    """Show a watch some batches of rows."""
    for seed in range(batches):
        watch.learn(*rows(size, likeness, seed))


def test_a_proxy_gives_what_its_score_gives() -> None:
    """Losses or more, of whatever batch; a loader and a scorer take it for a score."""
    scored = Scored(torch.tensor([1.0, 2.0]), torch.ones(2, 1), torch.ones(2, 3))
    assert Proxy(lambda _: scored)({}) is scored
    model = torch.nn.Linear(1, 1)
    batch = {"x": torch.ones(4, 1)}
    with torch.no_grad():
        losses = model(batch["x"]).square().sum(1)
    cheap = Proxy(lambda batch: model(batch["x"]).square().sum(1), floor=0.5)
    assert torch.equal(ModelScorer(cheap, model)(batch).losses, losses)
    assert len(list(SelectingLoader([batch] * 8, score=cheap, model=model, sampling_rate=0.5))) == 4


@pytest.mark.parametrize("policy", ["unbiased", "auto"])
def test_a_loaders_rows_tell_the_correlation_among_all(policy: str) -> None:
    """By the loader's own weights: within 0.06 of that of 40,960 candidates, from 2,048 rows."""
    proxy, losses, _ = rows(40_960, 0.7)
    candidates = {"proxy": torch.from_numpy(np.exp(proxy)), "loss": torch.from_numpy(losses)}
    stream = [{n: c[i : i + 512] for n, c in candidates.items()} for i in range(0, 40_960, 512)]
    cheap = Proxy(lambda batch: batch["proxy"])
    loader = SelectingLoader(
        stream, score=cheap, policy=policy, methods=["big_loss"], sampling_rate=0.1
    )
    watch = ProxyWatch(cheap.floor)
    for batch in loader:
        loader.mean(batch["loss"])
        watch.learn(batch["proxy"].numpy(), batch["loss"].numpy(), loader.weights.numpy())
    truth = float(spearman(proxy, losses, np.ones(len(proxy))))
    assert watch.correlation.value == pytest.approx(truth, abs=0.06)
    assert watch.correlation.low < truth < watch.correlation.high


def test_nothing_is_known_of_few_rows() -> None:
    """The correlation is NaN, and there is no alert, before 1,024 rows have come."""
    watch = ProxyWatch(0.3)
    watch.learn(*rows(1023, -0.9))
    assert np.isnan(watch.correlation).all()
    watch.learn(*rows(1, -0.9))
    assert watch.correlation.value < -0.8
    assert not watch.alert


def test_only_the_last_rows_count() -> None:
    """What was before the last 2,048 rows is forgotten, in one batch or in many."""
    watch, other = ProxyWatch(0.3), ProxyWatch(0.3)
    shown(watch, -0.9, 8)
    late = rows(4096, 0.8, 1)
    for part in np.split(np.arange(4096), 32):
        watch.learn(*(column[part] for column in late))
    other.learn(*late)
    assert watch.correlation == other.correlation
    assert watch.correlation.value == pytest.approx(
        float(spearman(*(column[-2048:].astype(np.float32) for column in late))), abs=1e-6
    )


def test_an_alert_begins_and_ends_once_an_episode(caplog: pytest.LogCaptureFixture) -> None:
    """Each after some 4,000 rows: one warning, and one line when it is over."""
    watch = ProxyWatch(0.3)
    seen = []
    with caplog.at_level(logging.INFO):
        for likeness in (0.8, 0.1, 0.8, 0.0):
            shown(watch, likeness, 12)
            seen.append(watch.alert)
    assert seen == [False, True, False, True]
    assert watch.alerts == 2
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO", "WARNING"]
    assert "no longer ranks rows" in caplog.text
    assert "floor 0.3" in caplog.text


def test_a_short_dip_is_no_alert() -> None:
    """Some batches of noise among good ones pass."""
    watch = ProxyWatch(0.3)
    for _ in range(10):
        shown(watch, 0.0, 2)
        shown(watch, 0.8, 5)
    assert watch.alerts == 0


@pytest.mark.parametrize(("likeness", "alerts"), [(0.45, 0), (0.15, 1)])
def test_there_is_no_flapping_near_the_floor(likeness: float, alerts: int) -> None:
    """A correlation that is 0.15 from the floor is on one side of it for 200,000 rows."""
    watch = ProxyWatch(0.3)
    shown(watch, likeness, 400)
    assert watch.alerts == alerts
    assert watch.alert is bool(alerts)


def test_a_proxy_that_went_silent_is_found() -> None:
    """One value for every row, as of a network that died, ranks nothing."""
    watch = ProxyWatch(0.3)
    shown(watch, 0.8, 8)
    for seed in range(12):
        _, losses, weights = rows(512, 0.0, seed)
        watch.learn(np.full(512, 0.7), losses, weights)
    assert watch.correlation == (0, 0, 0)
    assert watch.alert


def test_what_cannot_be_compared_is_left_out_and_counted() -> None:
    """Rows with a NaN or an infinity are counted; slots that no row fills are not even rows."""
    watch, other = ProxyWatch(0.3), ProxyWatch(0.3)
    proxy, losses, weights = rows(1100, 0.6)
    other.learn(proxy, losses, weights)
    broken = [np.nan, np.inf, -np.inf, 1e300]
    proxy = np.concatenate([broken, np.zeros(4), proxy, np.zeros(5)])
    losses = np.concatenate([np.ones(4), broken, losses, np.full(5, np.nan)])
    watch.learn(proxy, losses, np.concatenate([np.ones(8), weights, np.zeros(5)]))
    assert watch.ignored == 8
    assert watch.correlation == other.correlation


def test_no_rows_are_no_news() -> None:
    """An empty batch changes nothing."""
    watch = ProxyWatch(0.3)
    watch.learn(*(np.empty(0) for _ in range(3)))
    assert watch.state_dict()["rows"].shape == (3, 0)


@given(sizes=st.lists(st.integers(0, 1500), max_size=8), cut=st.integers(0, 8))
def test_it_goes_on_exactly_from_its_state(sizes: list[int], cut: int) -> None:
    """At any batch; the state is the taker's own."""
    batches = [rows(size, 0.3, size) for size in sizes]
    one, other = ProxyWatch(0.3), ProxyWatch(0.3)
    for batch in batches[:cut]:
        one.learn(*batch)
    other.load_state_dict(one.state_dict())
    for batch in batches[cut:]:
        one.learn(*batch)
        other.learn(*batch)
    assert same(one.state_dict(), other.state_dict())


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Compare states, NaN being equal to NaN."""
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name], equal_nan=True) for name in one
    )


def test_a_checkpoint_holds_its_state(tmp_path: Any) -> None:
    """A file written by `save_checkpoint` gives it back."""
    watch, other = ProxyWatch(0.3), ProxyWatch(0.3)
    shown(watch, 0.2, 9)
    save_checkpoint(tmp_path / "run.adasel", {"proxy": watch.state_dict()})
    other.load_state_dict(load_checkpoint(tmp_path / "run.adasel")["proxy"])
    assert same(other.state_dict(), watch.state_dict())


def test_its_size_does_not_grow() -> None:
    """A million rows leave three columns of 2,048."""
    watch = ProxyWatch(0.3)
    shown(watch, 0.5, 10, size=100_000)
    assert watch.state_dict()["rows"].shape == (3, 2048)


def test_rows_are_not_changed() -> None:
    """The caller's arrays stay as they are."""
    batch = rows(3000, 0.4)
    before = [column.copy() for column in batch]
    ProxyWatch(0.3).learn(*batch)
    assert all(np.array_equal(*pair) for pair in zip(batch, before, strict=True))


@pytest.mark.parametrize("floor", [-0.1, 1.0, float("nan")])
def test_floors_out_of_range_are_refused(floor: float) -> None:
    """By the proxy and by what watches it."""
    with pytest.raises(ValueError, match=r"floor must be in \[0, 1\), got"):
        Proxy(lambda batch: batch, floor=floor)
    with pytest.raises(ValueError, match=r"floor must be in \[0, 1\), got"):
        ProxyWatch(floor)


def test_a_proxy_needs_a_score() -> None:
    """What cannot be called is refused by its type."""
    with pytest.raises(TypeError, match="score must be a function of a batch, got int"):
        Proxy(3)  # type: ignore[arg-type] # that is the point
