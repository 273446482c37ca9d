"""Time one step's metric updates, and the same updates on client-library objects.

A step counts 512 candidate losses, 154 selected ones, seven methods and about as many other
numbers as a busy step has: 37 scalars in all. Target: at most 40 µs.
"""

import json
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from adasel_stream.metrics import LOSS_BOUNDS, Metrics

SEEN, SELECTED, METHODS, REPEATS = 512, 154, 7, 31
TARGET_US, PHASE_TARGET_US = 40.0, 1.5
NAMES = [f"method_{number}" for number in range(METHODS)]


def ours(metrics: Metrics, losses: np.ndarray, per_method: np.ndarray) -> Callable[[], None]:
    """Return one step as the loader counts it."""
    selected, weights = losses[:SELECTED], np.ones(SELECTED, dtype=np.float32)

    def step() -> None:
        metrics.samples_seen += SEEN
        metrics.samples_selected += SELECTED
        for reason in metrics.samples_dropped:
            metrics.samples_dropped[reason] += 1
        for origin in metrics.score_rows:
            metrics.score_rows[origin] += 100
        metrics.policy_updates += 1
        metrics.telemetry_lag_parcels = 1
        metrics.observe_selection(losses, selected, weights, per_method, per_method, per_method)
        for name in ("data_wait", "score", "select", "train"):
            with metrics.phase(name):
                pass
        metrics.observe_step(0.05)

    return step


def direct(registry: CollectorRegistry, losses: np.ndarray) -> Callable[[], None]:
    """Return the same step on cached children of client-library objects."""
    bounds = list(LOSS_BOUNDS)
    seen = Histogram("seen", "-", registry=registry, buckets=bounds)
    selected = Histogram("selected", "-", registry=registry, buckets=bounds)
    seconds = Histogram("seconds", "-", registry=registry)
    counter = Counter("count", "-", ["name"], registry=registry)
    gauge = Gauge("gauge", "-", ["name"], registry=registry)
    counters = [counter.labels(str(number)) for number in range(19)]
    gauges = [gauge.labels(str(number)) for number in range(18)]
    seen_list, selected_list = losses.tolist(), losses[:SELECTED].tolist()

    def step() -> None:
        for loss in seen_list:
            seen.observe(loss)
        for loss in selected_list:
            selected.observe(loss)
        for one in counters:
            one.inc()
        for one_gauge in gauges:
            one_gauge.set(0.5)
        seconds.observe(0.05)

    return step


def microseconds(step: Callable[[], object], times: int) -> float:
    """Return the mean time of one call."""
    start = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - start) / times * 1e6


def main() -> None:
    """Measure, interleaved, and print a table."""
    torch.set_num_threads(1)
    losses = np.random.default_rng(0).lognormal(size=SEEN).astype(np.float32)
    metrics = Metrics(NAMES, sampling_rate=0.3, batch_size=512, policy="unbiased")
    registry = CollectorRegistry()
    registry.register(metrics.collector())

    def phase() -> None:
        with metrics.phase("score"):
            pass

    contestants: dict[str, tuple[Callable[[], object], int]] = {
        "one step, adasel_stream": (ours(metrics, losses, np.full(METHODS, 1 / METHODS)), 500),
        "one step, client objects": (direct(CollectorRegistry(), losses), 20),
        "one phase": (phase, 2000),
        "one scrape": (lambda: generate_latest(registry), 5),
        "one snapshot as JSON": (lambda: json.dumps(metrics.snapshot()), 20),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(REPEATS):
        for name, (step, times) in contestants.items():
            taken[name].append(microseconds(step, times))
    base = median(taken["one step, adasel_stream"])
    targets = {"one step, adasel_stream": TARGET_US, "one phase": PHASE_TARGET_US}
    print(f"{'µs':26}{'median':>9}{'fastest':>9}{'ratio':>9}   target")
    for name, us in taken.items():
        target = f"<= {targets[name]:g} µs" if name in targets else ""
        print(f"{name:26}{median(us):9.1f}{min(us):9.1f}{median(us) / base:9.2f}   {target}")
    page = generate_latest(registry).decode()
    series = sum(not line.startswith("#") for line in page.splitlines())
    print(f"{series} series (budget 250), {len(page) / 1024:.1f} KiB a scrape")


if __name__ == "__main__":
    main()
