"""A small run, and what its page of metrics says."""

import re
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from adasel_stream.metrics import Metrics
from adasel_stream.paying import Gain, Watch
from adasel_stream.record import LossRecord
from adasel_stream.spearman import Correlation
from adasel_stream.staleness import Staleness

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "metrics.md"
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


def busy() -> Metrics:
    """Return metrics in which every family has a value."""
    record, staleness, metrics = LossRecord(64), Staleness(), make(slices=["new"])
    losses = np.linspace(0, 1, 200)
    for age_s in (0.0, 5.0, 30.0, 300.0, 3e3, 2e4, 8e4, 6e5, 1e6):
        staleness.learn(losses, np.full(200, age_s), losses)
    metrics.watch(record=record, staleness=staleness)
    two = np.array([0.5, 0.5])
    metrics.observe_selection(two, two, two, two, two, two)
    metrics.observe_watch(
        "", Watch(reason="drift", level=(0.5, 0.1, 7, 0, 0, 0)), Gain(0.5, 0.4, 0.6)
    )
    metrics.stop_indicator_ratio = 0.5
    metrics.observe_proxy(Correlation(0.5, 0.4, 0.6), alert=False)
    metrics.observe_checkpoint()
    return metrics


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


class Row(NamedTuple):
    """What is said of one metric.

    Attributes:
        kind: its type.
        labels: names of its labels, without run, rank and le.
        values: the values that are listed of its label.
        help: one sentence or two.
        audience: whom it serves.
    """

    kind: str
    labels: set[str]
    values: set[str]
    help: str
    audience: str = ""


def documented() -> dict[str, Row]:
    """Return the table of docs/metrics.md by name."""
    rows: dict[str, Row] = {}
    for line in DOCUMENTATION.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `adasel_"):
            name, kind, label, text, audience = (cell.strip() for cell in line.split("|")[1:-1])
            names, _, listed = label.partition(": ")
            labels = set(re.findall(r"`(\w+)`", names))
            values = set(listed.split(", ")) if listed else set[str]()
            assert name not in rows, name
            rows[name.strip("`")] = Row(kind, labels, values, text, audience)
    return rows


def described(page: str) -> dict[str, Row]:
    """Return what a page says of each of its metrics, by the name in its TYPE line."""
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))
    texts = dict(re.findall(r"^# HELP (\w+) (.+)$", page, re.MULTILINE))
    labels: dict[str, set[str]] = {name: set() for name in kinds}
    for sample, pairs in samples(page):
        name = sample if sample in kinds else sample.rpartition("_")[0]
        labels[name] |= {label for label, _ in pairs} - {"le"}
    return {name: Row(kinds[name], labels[name], set(), texts[name]) for name in kinds}
