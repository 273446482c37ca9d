import math
from dataclasses import replace

import numpy as np
import pytest

from adasel_stream.paying import REASONS, Rules, Watch, after_batch, after_costs, gain_of

RULES = Rules(window=200, least=30, hold=10, probe_every=4)


def watched(rules: Rules, ratios: list[float], watch: Watch | None = None) -> Watch:
    """Watch batches whose squared errors have these ratios, at a loss of 1."""
    watch = watch or Watch()
    for ratio in ratios:
        watch = after_batch(watch, rules, variances=(ratio, 1.0), mean_loss=1.0)
    return watch


def noisy(mean: float, count: int, seed: int) -> list[float]:
    """Draw ratios that scatter by a factor around their mean."""
    ratios: list[float] = (mean * np.random.default_rng(seed).gamma(4.0, 0.25, count)).tolist()
    return ratios


@pytest.mark.parametrize("mean", [0.3, 1.0, 1.7])
def test_interval_holds_the_true_gain(mean: float) -> None:
    """Two standard errors cover the truth in some 95 % of runs, and shrink as batches come."""
    gains = [gain_of(watched(RULES, noisy(mean, 150, seed)), RULES) for seed in range(300)]
    covered = np.mean([gain.low <= 1 - mean <= gain.high for gain in gains])
    assert 0.90 <= covered <= 0.99
    few = gain_of(watched(RULES, noisy(mean, 20, 0)), RULES)
    assert gains[0].high - gains[0].low < few.high - few.low


def test_nothing_is_known_at_first() -> None:
    """Without a comparison there is no gain, and rows are drawn by their scores."""
    assert math.isnan(gain_of(Watch(), RULES).mean)
    assert Watch().selecting
    assert Watch().scores(RULES)


def test_falls_back_where_the_interval_excludes_a_gain() -> None:
    """Once enough batches were seen, and not before."""
    assert watched(RULES, noisy(1.8, 29, 1)).selecting
    assert watched(RULES, noisy(1.8, 60, 1)).reason == "no_gain"


@pytest.mark.parametrize("seed", range(20))
def test_stays_where_there_is_a_gain(seed: int) -> None:
    """A selection that halves the error never falls back by chance."""
    watch = Watch()
    for ratio in noisy(0.5, 2000, seed):
        watch = after_batch(watch, RULES, variances=(ratio, 1.0), mean_loss=1.0)
        assert watch.selecting


def test_comes_back_once_there_is_a_gain_again() -> None:
    """Probes show it, and the interval must exclude that there is none."""
    fallen = watched(RULES, noisy(1.8, 100, 2))
    assert fallen.reason == "no_gain"
    assert watched(RULES, noisy(0.4, 10, 3), fallen).reason == "no_gain"
    assert watched(RULES, noisy(0.4, 400, 3), fallen).selecting


def test_only_probes_are_scored_without_a_gain() -> None:
    """An even draw needs no losses; one batch in `probe_every` is scored all the same."""
    watch = Watch(reason="no_gain")
    scored = []
    for _ in range(40):
        scored.append(watch.scores(RULES))
        watch = after_batch(watch, RULES)
    assert sum(scored) == 10


def test_losses_that_turn_nonfinite_end_selection_until_they_are_over() -> None:
    """A share above the limit falls back; `hold` batches after it is gone selection goes on."""
    watch = watched(RULES, [0.5] * 50)
    for _ in range(5):
        watch = after_batch(watch, RULES, mean_loss=1.0, nonfinite=0.5)
    assert watch.reason == "nonfinite_loss"
    assert watch.scores(RULES)
    batches = 0
    while not watch.selecting and batches < 1000:
        watch = after_batch(watch, RULES, variances=(0.5, 1.0), mean_loss=1.0, nonfinite=0.0)
        batches += 1
    assert RULES.hold <= batches <= RULES.hold + 60


@pytest.mark.parametrize("seed", range(10))
def test_drift_is_noticed_soon_and_never_without_one(seed: int) -> None:
    """A loss that falls slowly, with noise, is no drift; a jump by three deviations is, soon."""
    random = np.random.default_rng(seed)
    watch, t = Watch(), 0
    for t in range(5000):
        loss = 1 + math.exp(-t / 800) + 0.1 * random.normal()
        watch = after_batch(watch, RULES, variances=(0.5, 1.0), mean_loss=loss)
        assert watch.reason != "drift", t
    late = 0
    for late in range(40):  # noqa: B007 # asked for below
        loss = 1 + 0.3 + 0.1 * random.normal()
        watch = after_batch(watch, RULES, variances=(0.5, 1.0), mean_loss=loss)
        if watch.reason:
            break
    assert watch.reason == "drift"
    assert late <= 30
    for _ in range(RULES.hold):
        watch = after_batch(watch, RULES, variances=(0.5, 1.0), mean_loss=1.3)
    assert watch.selecting
    assert watch.stream_loss == pytest.approx(1.3, abs=0.15)  # the new level is what counts now


def test_two_levels_are_no_drift() -> None:
    """Rows that the record knows have other losses than new ones; their turns are no jump."""
    random, watch = np.random.default_rng(0), Watch()
    for t in range(3000):
        trained = t % 40 > 30
        loss = (0.5 if trained else 1.0) + 0.02 * random.normal()
        watch = after_batch(watch, RULES, mean_loss=loss, trained=trained)
        assert watch.selecting
    assert watch.stream_loss == pytest.approx(1.0, abs=0.02)
    for _ in range(20):
        watch = after_batch(watch, RULES, mean_loss=0.7, trained=True)
    assert watch.reason == "drift"


def test_cost_is_for_good_and_needs_no_losses() -> None:
    """What the arithmetic rules out does not come back, and nothing is scored for it."""
    watch = watched(RULES, [0.1] * 200, Watch(reason="cost"))
    assert watch.reason == "cost"
    assert not watch.scores(RULES)


def test_judged_by_time_the_gain_must_be_worth_its_cost() -> None:
    """Half the error at twice the time is no gain; at a tenth more time it is one."""
    by_time = replace(RULES, judged_by="time")
    for cost, pays in ((1.5, False), (0.1, True)):
        watch = after_costs(Watch(), selecting_s=cost, training_s=1.0)
        watch = watched(by_time, noisy(0.5, 200, 4), watch)
        assert watch.selecting is pays, cost
        assert gain_of(watch, by_time).mean == pytest.approx(1 - 0.5 * (1 + cost), abs=0.1)


def test_a_cost_that_falls_brings_selection_back() -> None:
    """Probes tell what selection would cost by now."""
    by_time = replace(RULES, judged_by="time")
    watch = after_costs(Watch(), selecting_s=5.0, training_s=1.0)
    watch = watched(by_time, noisy(0.5, 60, 4), watch)
    assert watch.reason == "no_gain"
    for probes in range(400):
        if watch.selecting:
            break
        watch = after_costs(watch, selecting_s=0.1, training_s=1.0)
        watch = watched(by_time, noisy(0.5, 1, 1000 + probes), watch)
    assert watch.selecting


@pytest.mark.parametrize("seed", range(10))
def test_a_gain_that_turns_into_a_loss_is_noticed_soon(seed: int) -> None:
    """After a long good phase, within three times the comparisons that decide anything."""
    watch, rules = watched(RULES, noisy(0.5, 1000, seed)), RULES
    late = 0
    for late in range(400):
        watch = watched(rules, noisy(1.5, 1, 100 * seed + late), watch)
        if watch.reason:
            break
    assert watch.reason == "no_gain"
    assert late <= 3 * rules.least


@pytest.mark.parametrize(
    "variances", [None, (math.nan, 1.0), (1.0, math.inf), (1.0, 0.0), (math.inf, 1.0)]
)
def test_what_is_no_number_changes_nothing(variances: tuple[float, float] | None) -> None:
    """Unknown or broken comparisons and losses leave gain and level as they were."""
    before = watched(RULES, [0.5] * 40)
    after = after_batch(before, RULES, variances=variances, mean_loss=math.nan)
    assert after.sums == before.sums
    assert after.level == before.level


def test_state_goes_there_and_back() -> None:
    """A watch comes back equal from plain data."""
    watch = watched(RULES, noisy(0.7, 77, 5))
    assert Watch.of_state(watch.state_dict()) == watch


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("control", 0.0),
        ("control", 1.0),
        ("nonfinite", -0.1),
        ("window", 0),
        ("least", 1.5),
        ("hold", True),
        ("probe_every", 0),
        ("compare_every", -1),
        ("judged_by", "money"),
    ],
)
def test_rules_out_of_range_are_refused(field: str, value: object) -> None:
    """The message names the rule and what came."""
    with pytest.raises(ValueError, match=f"{field} must be.*{value}"):
        replace(RULES, **{field: value})  # type: ignore[arg-type] # wrong on purpose


def test_every_reason_can_be_a_state() -> None:
    """The declared reasons are those that a watch falls back for."""
    assert REASONS == ("no_gain", "nonfinite_loss", "drift", "unseen", "cost")
