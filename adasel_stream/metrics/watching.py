"""Counts that other objects keep, read now and then."""

import threading
from collections.abc import Mapping
from typing import Protocol

__all__ = ["Counted", "CountsErrors", "CountsLookups", "Growth", "Outside"]


class CountsLookups(Protocol):
    """What `Metrics.observe_record` reads; `LossRecord` is one."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Monotone counts: hits, misses, stale, evicted, dropped, rejected."""
        ...

    @property
    def capacity(self) -> int:
        """Number of ids that fit."""
        ...

    @property
    def record_bytes(self) -> int:
        """Memory in use."""
        ...

    def __len__(self) -> int:
        """Return the number of ids held."""
        ...


class CountsErrors(Protocol):
    """What `Metrics.observe_input` reads; the connectors' sources are such."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Monotone counts; of these skipped_samples, skipped_shards and retries are read."""
        ...


class Counted(Protocol):
    """The part of `Metrics` that is filled from outside."""

    record_lookups: dict[str, int]
    record_evictions: dict[str, int]
    record_rejected: int
    record_entries: int | None
    record_capacity_entries: int | None
    record_bytes: int | None
    input_errors: dict[str, int]


class Growth:
    """How much each of several counts grew since it was last read.

    >>> growth = Growth()
    >>> growth.start({"hits": 3})
    >>> [growth.of({"hits": count})["hits"] for count in (5, 7, 1)]
    [2, 2, 1]
    """

    def __init__(self) -> None:
        """Start with every count at zero."""
        self._last: dict[str, int] = {}

    def start(self, counts: Mapping[str, int]) -> None:
        """Take `counts` as read, so that only what is added to them is growth."""
        self._last.update(counts)

    def of(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return by how much each count grew; one that fell was restarted from zero."""
        grown: dict[str, int] = {}
        for name, count in counts.items():
            before = self._last.get(name, 0)
            grown[name] = count - before if count >= before else count
        self._last.update(counts)
        return grown

    def state_dict(self) -> dict[str, int]:
        """Describe what was read last, for `start`."""
        return dict(self._last)


class Outside:
    """The record and the source that a run watches, and how far it has read them.

    >>> Outside().growth.state_dict()
    {}
    """

    def __init__(self) -> None:
        """Watch nothing."""
        self.growth = Growth()
        self.lock = threading.RLock()
        """Held by whoever adds growth to a run's counters, or sets both anew, so that two
        threads at once do not add it twice. A holder may take it again."""
        self._record: CountsLookups | None = None
        self._source: CountsErrors | None = None

    def watch(
        self, run: Counted, record: CountsLookups | None, source: CountsErrors | None
    ) -> None:
        """Read these at each `refresh` from now on, and only what they count from now on."""
        with self.lock:
            self.refresh(run)  # what is watched now has the last word before another takes over
            if record is not None and record is not self._record:
                self.growth.start(_record_counts(record))
                self._record = record
            if source is not None and source is not self._source:
                self.growth.start(_source_counts(source))
                self._source = source

    def refresh(self, run: Counted) -> None:
        """Add to `run` what was counted since the last look."""
        if self._record is not None:
            self.read_record(run, self._record)
        if self._source is not None:
            self.read_source(run, self._source)

    def read_record(self, run: Counted, record: CountsLookups) -> None:
        """Add a record's growth to `run`, and show its size."""
        with self.lock:
            grown = self.growth.of(_record_counts(record))
            for name, key in (("hit", "hits"), ("miss", "misses"), ("stale", "stale")):
                run.record_lookups[name] += grown[f"record.{key}"]
            run.record_evictions["capacity"] += grown["record.evicted"]
            run.record_evictions["collision"] += grown["record.dropped"]
            run.record_rejected += grown["record.rejected"]
            run.record_entries = len(record)
            run.record_capacity_entries = record.capacity
            run.record_bytes = record.record_bytes

    def read_source(self, run: Counted, source: CountsErrors) -> None:
        """Add a source's growth to `run`."""
        with self.lock:
            grown = self.growth.of(_source_counts(source))
            run.input_errors["sample"] += grown["input.skipped_samples"]
            run.input_errors["shard"] += grown["input.skipped_shards"]
            run.input_errors["retry"] += grown["input.retries"]


def _record_counts(record: CountsLookups) -> dict[str, int]:
    counts = record.counts
    names = ("hits", "misses", "stale", "evicted", "dropped", "rejected")
    return {f"record.{name}": counts[name] for name in names}


def _source_counts(source: CountsErrors) -> dict[str, int]:
    counts = source.counts
    names = ("skipped_samples", "skipped_shards", "retries")
    return {f"input.{name}": counts.get(name, 0) for name in names}
