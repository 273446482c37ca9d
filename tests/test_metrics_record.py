"""What a page shows of a record, its snapshots, its pending labels and its feed."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adasel_stream.metrics import serve
from adasel_stream.record import LossRecord
from adasel_stream.staleness import Staleness
from tests.metric_pages import make, scrape, value


class Kept:
    """A record with snapshots and pending labels, as far as metrics read it."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("hits", "misses", "stale", "evicted", "dropped"), 0)
        self.counts["rejected"] = 0
        self.capacity, self.record_bytes, self.kept = 64, 1536, True
        names = ("expected", "joined", "expired", "evicted", "rejected", "unmatched")
        self.pending = Waiting(dict.fromkeys(names, 0))
        self.snapshots = SimpleNamespace(
            saved=0, failed=0, damaged_files=1, created_s=0.0, duration_s=0.0, total_bytes=0
        )

    def __len__(self) -> int:
        """Hold seven ids."""
        return 7


class Waiting:
    """Pending labels, as far as metrics read them."""

    def __init__(self, counts: dict[str, int]) -> None:
        self.counts = counts

    def __len__(self) -> int:
        """Three predictions wait."""
        return 3


def feed() -> Any:
    """A feed that has read nothing yet."""
    names = ("segments_applied", "segments_damaged", "segments_missing", "segments_newer")
    counts = dict.fromkeys((*names, "rows_applied", "rows_ignored", "failures"), 0)
    return SimpleNamespace(counts=counts, backlog_segments=0, newest_age_s=math.inf)


def test_snapshots_and_pending_labels_of_a_record_are_shown() -> None:
    """Counted from when the run began to watch; sizes as they are."""
    record, metrics = Kept(), make()
    record.snapshots.saved, record.pending.counts["joined"] = 5, 9
    metrics.watch(record=record)
    record.snapshots.saved, record.snapshots.failed = 7, 1
    record.snapshots.created_s, record.snapshots.duration_s = 1.5e9, 0.25
    record.snapshots.total_bytes = 4096
    record.pending.counts |= {"joined": 12, "unmatched": 2}
    with serve(metrics, port=0) as server:
        page = scrape(server.port)
    assert value(page, "adasel_record_snapshots_total", result="success") == 2
    assert value(page, "adasel_record_snapshots_total", result="failure") == 1
    assert value(page, "adasel_record_last_snapshot_timestamp_seconds") == 1.5e9
    assert value(page, "adasel_record_snapshot_seconds") == 0.25
    assert value(page, "adasel_record_snapshot_bytes") == 4096
    assert value(page, "adasel_record_damaged_files") == 1
    assert value(page, "adasel_record_pending_entries") == 3
    assert value(page, "adasel_record_pending_total", result="joined") == 3
    assert value(page, "adasel_record_pending_total", result="unmatched") == 2


def test_what_is_not_known_yet_is_absent() -> None:
    """No snapshot yet is not a snapshot of 1970, and no served row is not one without age."""
    metrics = make()
    metrics.watch(record=Kept(), feed=feed(), staleness=Staleness())
    with serve(metrics, port=0) as server:
        page = scrape(server.port)
    for name in (
        "adasel_record_last_snapshot_timestamp_seconds",
        "adasel_record_snapshot_seconds",
        "adasel_record_served_lag_seconds",
    ):
        with pytest.raises(KeyError):
            value(page, name)
    with pytest.raises(KeyError):
        value(page, "adasel_record_reliability_ratio", age="1m")


def test_segments_of_serving_processes_are_shown() -> None:
    """What was applied, what was not, what waits, and how far behind it is."""
    served, metrics = feed(), make()
    metrics.watch(feed=served)
    served.counts |= {"segments_applied": 3, "segments_missing": 1, "rows_applied": 900}
    served.backlog_segments, served.newest_age_s = 4, 2.5
    with serve(metrics, port=0) as server:
        page = scrape(server.port)
    assert value(page, "adasel_record_segments_total", result="applied") == 3
    assert value(page, "adasel_record_segments_total", result="missing") == 1
    assert value(page, "adasel_record_served_rows_total", result="applied") == 900
    assert value(page, "adasel_record_backlog_segments") == 4
    assert value(page, "adasel_record_served_lag_seconds") == 2.5


def test_ages_of_evicted_losses_are_shown() -> None:
    """In the buckets of a histogram, and only those since the run began to watch."""
    now = [0.0]
    record = LossRecord(16, clock=lambda: now[0])
    metrics = make()
    record.update(np.arange(16), np.ones(16))
    metrics.watch(record=record)
    now[0] = 45.0
    record.update(np.arange(1000, 1200), np.ones(200))
    evicted = record.counts["evicted"]
    assert evicted > 8
    with serve(metrics, port=0) as server:
        page = scrape(server.port)
    name = "adasel_record_evicted_age_seconds"
    assert value(page, f"{name}_count") == evicted
    assert value(page, f"{name}_bucket", le="10.0") == 0
    assert value(page, f"{name}_bucket", le="60.0") == evicted
    assert value(page, f"{name}_sum") == 45 * evicted


def test_reliability_is_shown_by_age() -> None:
    """A record that says less with age is seen to."""
    staleness, metrics = Staleness(), make()
    random = np.random.default_rng(0)
    losses = random.random(500)
    staleness.learn(losses, np.full(500, 30.0), losses)
    staleness.learn(losses, np.full(500, 3e4), random.random(500))
    metrics.watch(staleness=staleness)
    with serve(metrics, port=0) as server:
        page = scrape(server.port)
    assert value(page, "adasel_record_reliability_ratio", age="1m") == pytest.approx(1)
    assert abs(value(page, "adasel_record_reliability_ratio", age="1d")) < 0.2
