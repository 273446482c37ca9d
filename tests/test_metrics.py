import json
import math
from typing import Any

import numpy as np
import pytest

from adasel_stream.metrics import FAMILIES, LOSS_BOUNDS, Metrics, PhaseClock, serve
from tests.metric_pages import (
    METHODS,
    busy,
    described,
    documented,
    make,
    samples,
    scrape,
    select,
    value,
)


def test_every_metric_on_a_real_page_is_documented_and_the_other_way_round() -> None:
    """A renamed, lost or invented metric fails here before it empties a dashboard."""
    with serve(busy(), port=0) as server:
        page = scrape(server.port)

    shown = described(page)
    assert set(documented()) == set(shown)
    for name, row in documented().items():
        assert row.kind == shown[name].kind
        assert row.help == shown[name].help
        assert row.labels == shown[name].labels, name
        assert row.audience, name


def test_documented_label_values_are_those_declared() -> None:
    """A reader of the documentation can rely on the names that it lists."""
    for family in FAMILIES:
        if family.names:
            assert documented()[f"adasel_{family.shown}"].values == set(family.names)


def test_a_page_shows_what_was_counted() -> None:
    """Numbers of slots, dicts, arrays and histograms arrive under their labels."""
    metrics = make(run="job", rank=3)
    with serve(metrics, port=0) as server:
        metrics.samples_seen += 4
        metrics.score_rows["record"] += 2
        metrics.score_rows["unknown"] += 1
        metrics.policy_updates += 5
        metrics.telemetry_lag_parcels = 3
        select(metrics, [0.5, 1.0, 2.0, math.nan], [1.0, 2.0])
        metrics.observe_step(0.02)
        page = scrape(server.port)

    assert 'adasel_samples_seen_total{rank="3",run="job"} 4' in page
    assert value(page, "adasel_score_rows_total", origin="record") == 2
    assert value(page, "adasel_score_rows_total", origin="unknown") == 1
    assert value(page, "adasel_policy_updates_total") == 5
    assert value(page, "adasel_telemetry_lag_parcels") == 3
    assert value(page, "adasel_samples_dropped_total", reason="nonfinite_loss") == 1
    assert value(page, "adasel_method_agreed_total", method="big_loss") == 3
    assert value(page, "adasel_method_weight_ratio", method="uniform") == 0.25
    assert value(page, "adasel_loss_sum", set="seen") == 3.5
    assert value(page, "adasel_loss_bucket", set="selected", le="1.0") == 1
    assert value(page, "adasel_loss_count", set="selected") == 2
    assert value(page, "adasel_selection_effective_ratio") == 1.0
    assert value(page, "adasel_step_seconds_bucket", le="0.025") == 1


def test_what_is_not_known_yet_has_no_sample() -> None:
    """A gauge without a value is absent, never a false zero."""
    metrics = make()
    with serve(metrics, port=0) as server:
        before = scrape(server.port)
        metrics.observe_checkpoint()
        after = scrape(server.port)

    name = ("adasel_last_checkpoint_timestamp_seconds", frozenset[tuple[str, str]]())
    assert name not in samples(before)
    assert samples(after)[name] > 1.7e9
    assert not any(name == "adasel_method_loss" for name, _ in samples(before))
    assert value(after, "adasel_checkpoints_total", result="success") == 1


def test_no_label_comes_from_data() -> None:
    """A name that was not declared is never shown, and twelve methods stay within budget."""
    metrics = make([f"method_{number}" for number in range(12)])
    for number in range(1000):
        metrics.samples_dropped[f"id-{number}"] = 1
        metrics.phase_seconds[f"id-{number}"] = 1.0
    with serve(metrics, port=0) as server:
        page = scrape(server.port)

    assert "id-" not in page
    assert sum(not line.startswith("#") for line in page.splitlines()) <= 250
    assert "id-" not in json.dumps(metrics.snapshot())


def test_hostile_names_cannot_break_the_page() -> None:
    """Quotes and markup in a declared name come back as they were given."""
    name = 'x"} 1 \\ {<b>'
    with serve(make([name, "uniform"], run=name), port=0) as server:
        page = scrape(server.port)

    assert value(page, "adasel_method_weight_ratio", method=name) == 0.5


def test_a_missing_value_leaves_the_last_one() -> None:
    """A method without a loss in this batch keeps its last known one, and counts stay."""
    metrics = make()
    select(metrics, [1.0, 2.0], [2.0])
    empty = np.zeros(0, dtype=np.float32)

    metrics.observe_selection(
        empty,
        empty,
        empty,
        np.array([0.6, 0.4]),
        np.array([math.nan, 5.0]),
        np.array([math.nan, math.inf]),
    )

    assert metrics.method_loss == [0.75, 5.0]
    assert metrics.method_weight_ratio == [0.6, 0.4]
    assert metrics.method_agreed == [3.0, 1.0]
    assert metrics.selection_effective_ratio == 1.0


def test_the_effective_ratio_is_kish() -> None:
    """Weights 1 and 3 are worth 1.6 of 2 samples."""
    metrics = make()
    two = np.array([0.5, 0.5])
    metrics.observe_selection(two, two, np.array([1.0, 3.0]), two, two, two)
    assert metrics.selection_effective_ratio == pytest.approx(0.8)


def test_arrays_of_another_number_of_methods_are_refused() -> None:
    """A mismatch of names and numbers is found at the first step, not on a dashboard."""
    metrics = make()
    three = np.ones(3)
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        metrics.observe_selection(three, three, three, three, three, three)


def test_counting_does_not_change_what_it_is_given() -> None:
    """The loader's arrays are read, never sorted or filtered in place."""
    seen = np.array([3.0, math.nan, 1.0], dtype=np.float32)
    kept = seen.copy()
    two = np.array([0.5, 0.5])
    make().observe_selection(seen, seen[2:], np.ones(1), two, two, two)
    np.testing.assert_array_equal(seen, kept)


def test_a_snapshot_is_strict_json() -> None:
    """Unknown and non-finite numbers become null, so that any reader can parse the log."""
    metrics = make(run="job", rank=1)
    metrics.selection_effective_ratio = math.nan
    shown = json.loads(json.dumps(metrics.snapshot(), allow_nan=False))

    assert shown["run"] == "job"
    assert shown["rank"] == 1
    assert shown["selection_effective_ratio"] is None
    assert shown["method_loss"] == {"big_loss": None, "uniform": None}
    assert shown["info"]["policy"] == "unbiased"
    assert len(shown["loss"]["seen"]["counts"]) == len(LOSS_BOUNDS) + 1
    assert {family.shown for family in FAMILIES} <= set(shown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, "1 to 12"),
        ({"methods": ["a", "a"]}, "different"),
        ({"methods": [f"m{n}" for n in range(13)]}, "1 to 12"),
        ({"methods": ["new\nline"]}, "printable"),
        ({"methods": [""]}, "printable"),
        ({"run": "x" * 65}, "run must be"),
        ({"policy": ""}, "policy must be"),
        ({"rank": -1}, "rank must be"),
        ({"batch_size": 0}, "batch_size"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": math.nan}, "sampling_rate"),
        ({"sampling_rate": 1.5}, "got 1.5"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    """What was expected and what came is said before the first step."""
    defaults = {
        "methods": METHODS,
        "sampling_rate": 0.5,
        "batch_size": 4,
        "policy": "unbiased",
    }
    with pytest.raises(ValueError, match=message):
        Metrics(**{**defaults, **options})


def test_other_wrong_names_are_refused() -> None:
    """A phase, a result or a port that does not exist is named."""
    with pytest.raises(ValueError, match="phase must be one of"):
        make().phase("lunch")
    with pytest.raises(ValueError, match="success or failure"):
        make().observe_checkpoint("maybe")
    with pytest.raises(ValueError, match="port"):
        serve(make(), port=70000)
    with pytest.raises(ValueError, match="idle"):
        PhaseClock(["train"], idle="other")
