import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from prometheus_client.parser import text_string_to_metric_families

from adasel_stream.metrics import FAMILIES, LOSS_BOUNDS, Histogram, Metrics, PhaseClock, serve
from adasel_stream.record import LossRecord

DOCUMENTED = {
    "samples_seen",
    "samples_selected",
    "samples_dropped",
    "samples_forced",
    "selection_target_ratio",
    "selection_effective_ratio",
    "selection_variance_ratio",
    "score_rows",
    "method_weight_ratio",
    "method_loss",
    "method_agreed",
    "policy_updates",
    "loss",
    "record_lookups",
    "record_entries",
    "record_capacity_entries",
    "record_bytes",
    "record_evictions",
    "record_rejected",
    "record_age_seconds",
    "phase_seconds",
    "step_seconds",
    "steps",
    "last_step_timestamp_seconds",
    "last_checkpoint_timestamp_seconds",
    "checkpoints",
    "input_errors",
    "telemetry_lag_steps",
    "info",
}
METHODS = ["big_loss", "uniform"]


def make(methods: list[str] | None = None, **options: Any) -> Metrics:
    """Return metrics of a small run."""
    defaults = {"sampling_rate": 0.5, "batch_size": 4, "policy": "unbiased"}
    return Metrics(methods or METHODS, **{**defaults, **options})


def select(metrics: Metrics, seen: list[float], selected: list[float]) -> None:
    """Observe one selection with two methods."""
    weights = np.ones(len(selected), dtype=np.float32)
    two = np.array([0.75, 0.25])
    metrics.observe_selection(
        np.array(seen, np.float32), np.array(selected, np.float32), weights, two, two, two * 4
    )


def scrape(port: int | None) -> str:
    """Fetch the page over HTTP."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        page: bytes = answer.read()
    return page.decode()


def samples(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample of a page by name and labels other than run and rank."""
    return {
        (one.name, frozenset((k, v) for k, v in one.labels.items() if k not in ("run", "rank"))): (
            one.value
        )
        for family in text_string_to_metric_families(page)
        for one in family.samples
    }


def value(page: str, name: str, **labels: str) -> float:
    """Return one sample of a page."""
    return samples(page)[(name, frozenset(labels.items()))]


@given(
    arrays(
        np.float32,
        st.integers(0, 100),
        elements=st.one_of(
            st.floats(-10, 1000, width=32),
            st.sampled_from([float(np.float32(bound)) for bound in LOSS_BOUNDS]),
        ),
    )
)
@settings(deadline=None)
def test_bucket_counts_equal_those_of_the_client_library(losses: np.ndarray) -> None:
    """The vectorised count is the client's own, value for value, on every bucket."""
    theirs = prometheus_client.Histogram("loss", "-", buckets=LOSS_BOUNDS, registry=None)
    ours = Histogram(LOSS_BOUNDS)

    for loss in losses.tolist():
        theirs.observe(loss)
    ours.add(losses)

    family = next(iter(theirs.collect()))
    expected = [one.value for one in family.samples if one.name == "loss_bucket"]
    assert ours.state[0].tolist() == expected
    assert ours.state[1] == pytest.approx(math.fsum(losses.tolist()), rel=1e-9, abs=1e-6)


@given(arrays(np.float64, st.integers(0, 40), elements=st.floats(allow_subnormal=True)))
@settings(deadline=None)
def test_no_value_can_poison_a_sum(values: np.ndarray) -> None:
    """NaN, infinities and values beyond float32 are left out, counted and nowhere else."""
    histogram = Histogram([0.1, 1.0])

    rejected = histogram.add(values)

    assert math.isfinite(histogram.state[1])
    assert histogram.count + rejected == len(values)
    assert rejected == int(np.sum(~(np.abs(values) <= np.finfo(np.float32).max)))


def test_one_observation_counts_like_an_array_of_one() -> None:
    """`observe` and `add` fill the same buckets, bounds included, and both leave NaN out."""
    one_by_one, together = Histogram([0.1, 1.0]), Histogram([0.1, 1.0])
    values = [0.05, 0.1, 0.5, 1.0, 2.0, math.nan, math.inf]

    for one in values:
        one_by_one.observe(one)
    together.add(np.array(values))

    assert one_by_one.state_dict() == together.state_dict()


@pytest.mark.parametrize("bounds", [[], [1.0, 1.0], [2.0, 1.0], [math.nan], list(range(33))])
def test_bounds_that_are_none_are_refused(bounds: list[float]) -> None:
    """Bounds must rise, be finite and few."""
    with pytest.raises(ValueError, match="strictly increasing"):
        Histogram(bounds)


def test_a_real_page_shows_every_documented_family_with_help() -> None:
    """A renamed or lost metric fails here before it empties a dashboard."""
    metrics = make()
    with serve(metrics, port=0) as server:
        page = scrape(server.port)

    shown = {family.name: family for family in text_string_to_metric_families(page)}
    assert set(shown) == {f"adasel_{name}" for name in DOCUMENTED}
    for family in FAMILIES:
        found = shown[f"adasel_{family.name}"]
        assert found.documentation == family.help
        assert found.type == ("gauge" if family.kind == "info" else family.kind)


def test_a_page_shows_what_was_counted() -> None:
    """Numbers of slots, dicts, arrays and histograms arrive under their labels."""
    metrics = make(run="job", rank=3)
    with serve(metrics, port=0) as server:
        metrics.samples_seen += 4
        metrics.score_rows["record"] += 2
        select(metrics, [0.5, 1.0, 2.0, math.nan], [1.0, 2.0])
        metrics.observe_step(0.02)
        page = scrape(server.port)

    assert 'adasel_samples_seen_total{rank="3",run="job"} 4' in page
    assert value(page, "adasel_score_rows_total", origin="record") == 2
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


def test_one_page_serves_several_runs() -> None:
    """Arms of one process share a page and differ by `run`; the same name twice is refused."""
    first, second = make(run="adaselection"), make(run="uniform")
    with serve([first], port=0) as server:
        server.add(second)
        second.steps += 7
        page = scrape(server.port)
        with pytest.raises(ValueError, match="own name"):
            server.add(make(run="uniform"))

    assert 'adasel_steps_total{rank="0",run="adaselection"} 0' in page
    assert 'adasel_steps_total{rank="0",run="uniform"} 7' in page
    assert page.count("# HELP adasel_steps_total") == 1


def test_only_loopback_is_served_by_default() -> None:
    """Another machine cannot read the metrics unless it was asked for."""
    with serve(make(), port=0) as server, socket.socket() as outside:
        outside.settimeout(5)
        assert outside.connect_ex(("127.0.0.2", server.port or 0)) != 0


def test_a_taken_port_warns_and_training_goes_on() -> None:
    """The second process on a port counts on without a page, and the first keeps its own."""
    first, second = make(run="first"), make(run="second")
    with serve(first, port=0) as server:
        with pytest.warns(RuntimeWarning, match="training goes on"):
            unserved = serve(second, port=server.port or 0)
        second.observe_step(0.1)
        page = scrape(server.port)

    assert unserved.port is None
    assert second.steps == 1
    assert 'run="first"' in page
    assert 'run="second"' not in page
    unserved.close()


def test_a_closed_page_frees_its_port_and_its_registry() -> None:
    """The port can be taken again at once, in the caller's own registry too."""
    registry = prometheus_client.CollectorRegistry()
    server = serve(make(), port=0, registry=registry)
    server.close()
    server.close()

    with serve(make(), port=server.port or 0, registry=registry) as again:
        assert "adasel_steps_total" in scrape(again.port)


def test_the_global_registry_stays_untouched() -> None:
    """Neither the host application's page shows our metrics nor ours shows its."""
    with serve(make(), port=0) as server:
        page = scrape(server.port)

    assert "python_info" not in page
    assert "adasel" not in prometheus_client.generate_latest().decode()


FORKER = """
import os, sys, time
from adasel_stream.metrics import Metrics, serve
server = serve(Metrics(["uniform"], sampling_rate=1, batch_size=1, policy="paper"), port=0)
if os.fork() == 0:
    sys.stdin.buffer.read()  # a worker that reads on after its trainer has died
    os._exit(0)
print(server.port, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_forked_worker_does_not_keep_the_port_of_a_killed_trainer() -> None:
    """After kill -9 the restarted trainer gets its port although a worker still lives."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with serve(make(), port=port) as server:
                assert server.port == port
    finally:
        process.stdin.close()
        process.stdout.close()


@pytest.mark.slow
def test_scrapes_during_training_are_never_torn() -> None:
    """Pages read while another thread counts are whole: cumulative, consistent, monotone."""
    metrics = make()
    done = threading.Event()

    def train() -> None:
        while not done.is_set():
            metrics.samples_seen += 4
            with metrics.phase("train"):
                select(metrics, [0.5, 0.5, 0.5, 0.5], [0.5])
            metrics.observe_step(0.001)

    trainer = threading.Thread(target=train)
    before: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    with serve(metrics, port=0) as server:
        trainer.start()
        try:
            for _ in range(25):
                page = scrape(server.port)
                now = samples(page)
                for (name, labels), held in before.items():
                    if name.endswith(("_total", "_bucket", "_count")):
                        assert now[(name, labels)] >= held
                count = value(page, "adasel_loss_count", set="seen")
                assert value(page, "adasel_loss_bucket", set="seen", le="+Inf") == count
                assert value(page, "adasel_loss_sum", set="seen") == 0.5 * count
                before = now
        finally:
            done.set()
            trainer.join()


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


@dataclass
class Record:
    """Counts as a loss record keeps them."""

    counts: dict[str, int]
    capacity: int = 16
    record_bytes: int = 384
    entries: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        """Return how many ids are held."""
        return len(self.entries)


def test_a_watched_record_is_read_at_each_snapshot() -> None:
    """Lookups, evictions and occupancy of a real record appear without a call per step."""
    record = LossRecord(64)
    metrics = make()
    metrics.watch(record=record)
    ids = np.arange(10)
    record.update(ids, np.full(10, 0.5, np.float32))
    record.update(np.array([99]), np.array([math.nan], np.float32))
    record.lookup(np.arange(15))

    shown = metrics.snapshot()

    assert shown["record_lookups_total"] == {"hit": 10, "miss": 5, "stale": 0}
    assert shown["record_entries"] == 10
    assert shown["record_capacity_entries"] == record.capacity
    assert shown["record_bytes"] == record.record_bytes
    assert shown["record_rejected_total"] == 1


def test_a_record_that_restarts_from_zero_goes_on_counting() -> None:
    """Counts read from elsewhere never fall, whether or not the other side was restored."""
    names = ("hits", "misses", "stale", "evicted", "dropped", "rejected")
    metrics = make()
    metrics.observe_record(Record(dict.fromkeys(names, 5)))
    metrics.observe_record(Record(dict.fromkeys(names, 7)))
    metrics.observe_record(Record(dict.fromkeys(names, 2)))
    assert metrics.record_lookups == {"hit": 9, "miss": 9, "stale": 9}
    assert metrics.record_evictions == {"capacity": 9, "collision": 9}

    restored = make()
    restored.load_state_dict(metrics.state_dict())
    restored.observe_record(Record(dict.fromkeys(names, 2)))
    assert restored.record_lookups == metrics.record_lookups


@dataclass
class Source:
    """Counts as a connector keeps them."""

    counts: dict[str, int]


def test_a_watched_source_shows_what_it_left_out() -> None:
    """Skipped samples and shards are errors; what was read is none."""
    metrics = make()
    metrics.watch(source=Source({"samples": 100, "skipped_samples": 3, "skipped_shards": 1}))
    assert metrics.snapshot()["input_errors_total"] == {"sample": 3, "shard": 1, "retry": 0}
    assert metrics.snapshot()["input_errors_total"]["sample"] == 3


def test_counters_go_on_after_a_resume() -> None:
    """Every counter and histogram continues; gauges wait for their next value."""
    metrics = make()
    metrics.samples_seen += 4
    metrics.samples_dropped["too_old"] += 2
    metrics.observe_checkpoint("failure")
    metrics.phase_seconds["train"] += 12.5
    select(metrics, [0.5, 1.0, math.nan], [1.0])
    metrics.observe_step(0.2)
    metrics.observe_record_ages(np.array([5.0, 50.0]))
    state = json.loads(json.dumps(metrics.state_dict()))

    resumed = make()
    resumed.load_state_dict(state)
    resumed.samples_seen += 4

    before, after = metrics.snapshot(), resumed.snapshot()
    assert after["samples_seen_total"] == 8
    for family in FAMILIES:
        if family.kind in ("counter", "histogram") and family.name != "samples_seen":
            assert after[family.shown] == before[family.shown], family.name
    assert resumed.phase_seconds["train"] == 12.5
    with resumed.phase("train"):
        pass
    assert resumed.phase_seconds["train"] > 12.5


def test_a_resume_with_other_methods_and_bounds_keeps_the_rest() -> None:
    """Changed settings reset what they changed, and stop nothing."""
    metrics = make()
    metrics.samples_seen += 4
    select(metrics, [0.5], [0.5])

    resumed = make(["uniform", "mine"], loss_bounds=[1.0, 2.0])
    resumed.load_state_dict(metrics.state_dict())

    assert resumed.samples_seen == 4
    assert resumed.method_agreed == [1.0, 0.0]
    assert resumed.loss["seen"].count == 0


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"version": None},
        {"steps": {"": -1}},
        {"steps": {"": math.inf}},
        {"loss": {"seen": {"bounds": list(LOSS_BOUNDS), "counts": [1], "sum": 1.0}}},
    ],
)
def test_a_state_that_is_none_is_refused(change: dict[str, Any]) -> None:
    """A negative count, a wrong length or another version is named."""
    with pytest.raises(ValueError, match="must"):
        make().load_state_dict({**make().state_dict(), **change})


def test_a_snapshot_is_strict_json() -> None:
    """Unknown and non-finite numbers become null, so that any reader can parse the log."""
    metrics = make(run="job", rank=1)
    metrics.selection_variance_ratio = math.nan
    shown = json.loads(json.dumps(metrics.snapshot(), allow_nan=False))

    assert shown["run"] == "job"
    assert shown["rank"] == 1
    assert shown["selection_variance_ratio"] is None
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


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["data_wait", "score", "select", "train", "checkpoint", "leave"]),
            st.floats(0, 100),
        ),
        max_size=40,
    )
)
def test_phases_sum_to_wall_time(events: list[tuple[str, float]]) -> None:
    """However phases nest, every second is charged once."""
    now = 1000.0
    metrics = make(clock=lambda: now)
    open_spans: list[Any] = []
    for name, passed in events:
        now += passed
        if name != "leave":
            span = metrics.phase(name)
            span.__enter__()
            open_spans.append(span)
        elif open_spans:
            open_spans.pop().__exit__(None, None, None)
    now += 1.0
    metrics.observe_step(0.1)

    assert math.fsum(metrics.phase_seconds.values()) == pytest.approx(now - 1000.0)


def test_an_inner_phase_takes_its_time_from_the_outer_one() -> None:
    """A checkpoint inside a step is not training time, and what is outside is `other`."""
    times = iter([0.0, 1.0, 3.0, 7.0, 8.0, 10.0])
    metrics = make(clock=lambda: next(times))

    with metrics.phase("train"), metrics.phase("checkpoint"):
        pass
    metrics.observe_step(0.1)

    assert metrics.phase_seconds == {
        "data_wait": 0.0,
        "score": 0.0,
        "select": 0.0,
        "train": 3.0,
        "checkpoint": 4.0,
        "other": 3.0,
    }


def test_a_phase_ends_when_its_body_raises() -> None:
    """An error in a step does not leave the clock in that phase."""
    times = iter([0.0, 1.0, 3.0, 10.0])
    metrics = make(clock=lambda: next(times))

    with pytest.raises(ZeroDivisionError), metrics.phase("score"):
        raise ZeroDivisionError
    metrics.observe_step(0.1)

    assert metrics.phase_seconds["score"] == 2.0
    assert metrics.phase_seconds["other"] == 8.0


def test_a_generator_left_half_way_ends_its_own_phase() -> None:
    """Phases that end out of order keep the sum and the other phases right."""
    now = 0.0
    metrics = make(clock=lambda: now)

    def batches() -> Iterator[int]:
        with metrics.phase("train"):
            yield 1

    iterator = batches()
    next(iterator)
    now = 5.0
    with metrics.phase("checkpoint"):
        now = 6.0
        iterator.close()  # type: ignore[attr-defined]
        now = 9.0
    now = 10.0
    metrics.observe_step(0.1)

    assert metrics.phase_seconds["train"] == 5.0
    assert metrics.phase_seconds["checkpoint"] == 4.0
    assert metrics.phase_seconds["other"] == 1.0
