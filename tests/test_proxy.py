import json
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
from adasel_stream.spearman import jackknifed, rank_products, spearman
from adasel_stream.types import Scored

Floats = npt.NDArray[np.float64]


def rows(count: int, likeness: float, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Give a proxy, losses that are like it by a correlation, and uneven weights."""
    random = np.random.default_rng(seed)
    proxy, other = random.normal(size=(2, count))
    losses = np.exp(likeness * proxy + np.sqrt(1 - likeness**2) * other)
    return proxy, losses, random.uniform(0.3, 3.0, count)


def shown(watch: ProxyWatch, likeness: float, batches: int, *, size: int = 64) -> None:
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


def through_a_loader(policy: str, seed: int) -> tuple[float, float]:
    """Give the correlation as it was measured on 40 batches of 64 rows, and that of candidates."""
    proxy, losses, ones = rows(640 * 40, 0.7, seed)
    candidates = {"proxy": torch.from_numpy(np.exp(proxy)), "loss": torch.from_numpy(losses)}
    stream = [{n: c[i : i + 640] for n, c in candidates.items()} for i in range(0, 640 * 40, 640)]
    cheap = Proxy(lambda batch: batch["proxy"])
    loader = SelectingLoader(
        stream,
        score=cheap,
        policy=policy,
        methods=["big_loss"],
        sampling_rate=0.1,
        batch_size=64,
        seed=seed,
    )
    watch = ProxyWatch(cheap.floor)
    for batch in loader:
        loader.mean(batch["loss"])
        watch.learn(batch["proxy"].numpy(), batch["loss"].numpy(), loader.weights.numpy())
    return watch.correlation.value, spearman(proxy, losses, np.ones_like(ones))


@pytest.mark.parametrize("policy", ["unbiased", "auto"])
def test_a_loaders_rows_tell_the_correlation_among_all(policy: str) -> None:
    """By the loader's own weights, to within 0.03 on average over 8 runs, and 0.08 in each."""
    runs = np.array([through_a_loader(policy, seed) for seed in range(8)])
    apart = runs[:, 0] - runs[:, 1]
    assert abs(apart.mean()) < 0.03
    assert np.abs(apart).max() < 0.08


def test_nothing_is_known_of_few_rows() -> None:
    """The correlation is NaN, and there is no alert, before ten groups of rows are whole."""
    watch = ProxyWatch(0.3)
    shown(watch, -0.9, 19)
    assert np.isnan(watch.correlation).all()
    watch.learn(*rows(64, -0.9))
    assert watch.correlation.value < -0.8
    assert not watch.alert


@pytest.mark.parametrize(("size", "batches"), [(1, 2060), (64, 40), (103, 20), (512, 20)])
def test_only_the_last_rows_count(size: int, batches: int) -> None:
    """As if what came before twenty groups, batches of 103 rows or more, had never been."""
    watch, other = ProxyWatch(0.3), ProxyWatch(0.3)
    shown(watch, -0.9, 8)
    for seed in range(batches):
        watch.learn(*rows(size, 0.8, seed))
        other.learn(*rows(size, 0.8, seed))
    assert watch.correlation == other.correlation


def test_small_batches_are_ranked_each_by_itself() -> None:
    """The correlation is that of the sums of their rank products."""
    watch = ProxyWatch(0.3)
    batches = [rows(52, 0.6, seed) for seed in range(40)]
    for batch in batches:
        watch.learn(*batch)
    products = np.array([rank_products(*batch) for batch in batches]).reshape(20, 2, 3).sum(1)
    assert watch.correlation == pytest.approx(jackknifed(products))


def test_an_alert_begins_and_ends_once_an_episode(caplog: pytest.LogCaptureFixture) -> None:
    """Each after twenty groups: one warning, and one line when it is over."""
    watch = ProxyWatch(0.3)
    seen = []
    with caplog.at_level(logging.INFO):
        for likeness in (0.8, 0.1, 0.8, 0.0):
            shown(watch, likeness, 80)
            seen.append(watch.alert)
    assert seen == [False, True, False, True]
    assert watch.alerts == 2
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO", "WARNING"]
    assert "does not rank rows" in caplog.text
    assert "floor 0.3" in caplog.text


def test_a_short_dip_is_no_alert() -> None:
    """Some batches of noise among good ones pass."""
    watch = ProxyWatch(0.3)
    for _ in range(10):
        shown(watch, 0.0, 20)
        shown(watch, 0.8, 40)
    assert watch.alerts == 0


@pytest.mark.parametrize(("likeness", "alerts"), [(0.45, 0), (0.15, 1)])
def test_there_is_no_flapping_near_the_floor(likeness: float, alerts: int) -> None:
    """A correlation that is 0.15 from the floor is on one side of it for 128,000 rows."""
    watch = ProxyWatch(0.3)
    shown(watch, likeness, 2000)
    assert watch.alerts == alerts
    assert watch.alert is bool(alerts)


def test_a_proxy_that_went_silent_is_found() -> None:
    """One value for every row, as of a network that died, ranks nothing."""
    watch = ProxyWatch(0.3)
    shown(watch, 0.8, 80)
    for seed in range(80):
        _, losses, weights = rows(64, 0.0, seed)
        watch.learn(np.full(64, 0.7), losses, weights)
    assert watch.correlation == (0, 0, 0)
    assert watch.alert


def test_what_cannot_be_compared_is_left_out_and_counted() -> None:
    """Rows with a NaN or an infinity are counted; slots that no row fills are not even rows."""
    watch, other = ProxyWatch(0.3), ProxyWatch(0.3)
    broken = [np.nan, np.inf, -np.inf, 1.0]
    for seed in range(20):
        proxy, losses, weights = rows(103, 0.6, seed)
        other.learn(proxy, losses, weights)
        watch.learn(
            np.concatenate([broken, np.zeros(4), proxy, np.zeros(5)]),
            np.concatenate([np.ones(4), broken, losses, np.full(5, np.nan)]),
            np.concatenate([np.ones(3), [0.0], np.ones(3), [0.0], weights, np.zeros(5)]),
        )
    assert watch.ignored == 20 * 6
    assert watch.correlation == other.correlation


def test_no_rows_are_no_news() -> None:
    """An empty batch changes nothing."""
    watch = ProxyWatch(0.3)
    shown(watch, 0.5, 3)
    before = watch.state_dict()
    watch.learn(*(np.empty(0) for _ in range(3)))
    watch.learn(np.ones(2), np.ones(2), np.zeros(2))
    assert same(watch.state_dict(), before)


@given(sizes=st.lists(st.integers(0, 200), max_size=60), cut=st.integers(0, 60))
def test_it_goes_on_exactly_from_its_state(sizes: list[int], cut: int) -> None:
    """At any batch, through JSON."""
    batches = [rows(size, 0.3, size) for size in sizes]
    one, other = ProxyWatch(0.3), ProxyWatch(0.3)
    for batch in batches[:cut]:
        one.learn(*batch)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for batch in batches[cut:]:
        one.learn(*batch)
        other.learn(*batch)
    assert same(one.state_dict(), other.state_dict())


def test_its_state_is_the_callers_own() -> None:
    """A state that was taken does not change with the watch, nor the other way round."""
    watch, other = ProxyWatch(0.3), ProxyWatch(0.3)
    shown(watch, 0.5, 41)
    state = watch.state_dict()
    before = json.dumps(state)
    other.load_state_dict(state)
    shown(watch, 0.1, 3)
    shown(other, 0.2, 3)
    assert json.dumps(state) == before


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Compare states, NaN being equal to NaN."""
    return json.dumps(one) == json.dumps(other)


def test_a_checkpoint_holds_its_state(tmp_path: Any) -> None:
    """A file written by `save_checkpoint` gives it back."""
    watch, other = ProxyWatch(0.3), ProxyWatch(0.3)
    shown(watch, 0.2, 99)
    save_checkpoint(tmp_path / "run.adasel", {"proxy": watch.state_dict()})
    other.load_state_dict(load_checkpoint(tmp_path / "run.adasel")["proxy"])
    assert same(other.state_dict(), watch.state_dict())


def test_its_size_does_not_grow() -> None:
    """A million rows leave three numbers for each of twenty groups, and a few more."""
    watch = ProxyWatch(0.3)
    shown(watch, 0.5, 10, size=100_000)
    shown(watch, 0.5, 2000)
    assert len(json.dumps(watch.state_dict())) < 1500


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
