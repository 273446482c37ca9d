import json
import math
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from adasel_stream.metrics import FAMILIES, LOSS_BOUNDS
from adasel_stream.record import LossRecord
from tests.metric_pages import make, select


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


NOTHING = {"hit": 0, "miss": 0, "stale": 0}


def looked_up() -> LossRecord:
    """Return a record with a history: 10 hits and 5 misses."""
    record = LossRecord(64)
    record.update(np.arange(10), np.full(10, 0.5, np.float32))
    record.lookup(np.arange(15))
    return record


def test_what_a_shared_record_counted_earlier_is_not_charged_to_a_new_run() -> None:
    """Counting starts where the record stood when the run began to watch it."""
    record, metrics = looked_up(), make()
    metrics.watch(record=record)
    assert metrics.snapshot()["record_lookups_total"] == NOTHING

    record.lookup(np.arange(2))
    assert metrics.snapshot()["record_lookups_total"] == {"hit": 2, "miss": 0, "stale": 0}


def test_what_a_shared_source_counted_earlier_is_not_charged_to_a_new_run() -> None:
    """Errors of an earlier run over the same source are that run's."""
    source, metrics = Source({"skipped_samples": 3}), make()
    metrics.watch(source=source)
    source.counts = {"skipped_samples": 4, "retries": 1}
    assert metrics.snapshot()["input_errors_total"] == {"sample": 1, "shard": 0, "retry": 1}


def test_watching_the_same_again_or_another_one_loses_nothing() -> None:
    """What was counted since the last look is added before the start moves."""
    first, second, metrics = looked_up(), looked_up(), make()
    metrics.watch(record=first)
    first.lookup(np.arange(1))
    metrics.watch(record=first)
    first.lookup(np.arange(2))
    metrics.watch(record=second)
    first.lookup(np.arange(10))
    second.lookup(np.arange(3))
    assert metrics.snapshot()["record_lookups_total"]["hit"] == 1 + 2 + 3


def test_a_resumed_run_goes_on_counting_its_restored_record() -> None:
    """Neither the restored history nor a look before the restore is counted twice."""
    record, metrics = LossRecord(64), make()
    metrics.watch(record=record)
    record.load_state_dict(looked_up().state_dict())
    saved, state = metrics.state_dict(), record.state_dict()
    assert saved["record_lookups"] == {"hit": 10, "miss": 5, "stale": 0}

    again, resumed = LossRecord(64), make()
    resumed.watch(record=again)
    resumed.refresh()
    again.load_state_dict(state)
    resumed.load_state_dict(saved)
    again.lookup(np.arange(1))
    assert resumed.snapshot()["record_lookups_total"] == {"hit": 11, "miss": 5, "stale": 0}


def test_a_state_without_a_record_does_not_charge_the_history_of_one() -> None:
    """A record that is watched for the first time after a resume starts from now."""
    resumed = make()
    resumed.watch(record=looked_up())
    resumed.load_state_dict(make().state_dict())
    assert resumed.snapshot()["record_lookups_total"] == NOTHING


class Slow(dict[str, Any]):
    """A state whose reader is overtaken by a scrape, half way."""

    def __init__(self, state: dict[str, Any], scrape: threading.Thread) -> None:
        """Hold `state` and start `scrape` when the last family is read."""
        super().__init__(state)
        self._scrape = scrape

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry; before the last one, let the scrape try to run."""
        if name == "read":
            self._scrape.start()
            self._scrape.join(0.2)
        return super().get(name, default)


def test_a_scrape_during_a_restore_counts_nothing_twice() -> None:
    """It waits until counters and what they were read from are both in place."""
    record, metrics = looked_up(), make()
    metrics.observe_record(record)
    saved = metrics.state_dict()

    resumed = make()
    scrape = threading.Thread(target=resumed.observe_record, args=(record,))
    resumed.load_state_dict(Slow(saved, scrape))
    scrape.join()
    assert resumed.record_lookups == metrics.record_lookups


@dataclass
class Source:
    """Counts as a connector keeps them."""

    counts: dict[str, int]


def test_a_watched_source_shows_what_it_left_out() -> None:
    """Skipped samples and shards are errors; what was read is none."""
    metrics = make()
    source = Source({"samples": 90})
    metrics.watch(source=source)
    source.counts = {"samples": 100, "skipped_samples": 3, "skipped_shards": 1}
    assert metrics.snapshot()["input_errors_total"] == {"sample": 3, "shard": 1, "retry": 0}
    assert metrics.snapshot()["input_errors_total"]["sample"] == 3


def test_counters_go_on_after_a_resume() -> None:
    """Every counter and histogram continues; gauges wait for their next value."""
    metrics = make()
    metrics.samples_seen += 4
    metrics.samples_dropped["nonfinite_loss"] += 2
    metrics.policy_updates += 3
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
