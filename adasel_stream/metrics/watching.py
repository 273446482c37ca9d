"""Counts that other objects keep, read now and then."""

import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

import numpy as np

from adasel_stream.metrics.families import AGES
from adasel_stream.metrics.histogram import Histogram

__all__ = [
    "Counted",
    "CountsErrors",
    "CountsLookups",
    "CountsSegments",
    "Growth",
    "KnowsReliability",
    "Outside",
]

_HOMES: Final = {
    "record.hits": ("record_lookups", "hit"),
    "record.misses": ("record_lookups", "miss"),
    "record.stale": ("record_lookups", "stale"),
    "record.evicted": ("record_evictions", "capacity"),
    "record.dropped": ("record_evictions", "collision"),
    "pending.expected": ("record_pending", "expected"),
    "pending.joined": ("record_pending", "joined"),
    "pending.expired": ("record_pending", "expired"),
    "pending.evicted": ("record_pending", "evicted"),
    "pending.rejected": ("record_pending", "rejected"),
    "pending.unmatched": ("record_pending", "unmatched"),
    "snapshots.saved": ("record_snapshots", "success"),
    "snapshots.failed": ("record_snapshots", "failure"),
    "feed.segments_applied": ("record_segments", "applied"),
    "feed.segments_damaged": ("record_segments", "damaged"),
    "feed.segments_missing": ("record_segments", "missing"),
    "feed.segments_newer": ("record_segments", "newer"),
    "feed.rows_applied": ("record_served_rows", "applied"),
    "feed.rows_ignored": ("record_served_rows", "ignored"),
    "input.skipped_samples": ("input_errors", "sample"),
    "input.skipped_shards": ("input_errors", "shard"),
    "input.retries": ("input_errors", "retry"),
}
"""Where each count that is kept elsewhere is shown: a family and its label."""


class CountsLookups(Protocol):
    """What is read of a record; `evicted_ages`, `pending` and `snapshots` where it has them."""

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
    """What is read of a source; the connectors' sources are such."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Monotone counts; of these skipped_samples, skipped_shards and retries are read."""
        ...


class CountsSegments(Protocol):
    """What is read of a feed of losses from serving; `LossFeed` is one."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Monotone counts of segments and rows."""
        ...

    @property
    def backlog_segments(self) -> int:
        """Segments that wait."""
        ...

    @property
    def newest_age_s(self) -> float:
        """Age of the newest row that was applied, infinite before the first."""
        ...


class KnowsReliability(Protocol):
    """What is read of `Staleness`."""

    @property
    def reliability(self) -> list[float | None]:
        """Correlation of recorded with fresh losses for each age."""
        ...


class Counted(Protocol):
    """The part of `Metrics` that is filled from outside; `_HOMES` names the rest."""

    record_rejected: int
    record_evicted_age_seconds: Histogram
    record_entries: int | None
    record_capacity_entries: int | None
    record_bytes: int | None
    record_reliability_ratio: dict[str, float | None]
    record_backlog_segments: int | None
    record_served_lag_seconds: float | None
    record_pending_entries: int | None
    record_last_snapshot_timestamp_seconds: float | None
    record_snapshot_seconds: float | None
    record_snapshot_bytes: int | None
    record_damaged_files: int | None


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
    """What a run watches beside itself, and how far it has read that.

    >>> Outside().growth.state_dict()
    {}
    """

    def __init__(self) -> None:
        """Watch nothing."""
        self.growth = Growth()
        self.lock = threading.RLock()
        """Held by whoever adds growth to a run's counters, or sets both anew, so that two
        threads at once do not add it twice. A holder may take it again."""
        self._watched: dict[str, Any] = {}

    def watch(self, run: Counted, **watched: Any) -> None:
        """Read these at each `refresh` from now on, and only what they count from now on.

        Args:
            run: what is filled.
            watched: `record`, `source`, `feed` and `staleness`; None for what stays as it is.
        """
        with self.lock:
            self.refresh(run)  # what is watched now has the last word before another takes over
            for name, one in watched.items():
                if one is not None and one is not self._watched.get(name):
                    self.growth.start(_COUNTS_OF[name](one))
                    self._watched[name] = one

    def refresh(self, run: Counted) -> None:
        """Add to `run` what was counted since the last look."""
        self.read(run, **self._watched)

    def read(self, run: Counted, **watched: Any) -> None:
        """Add the growth of these to `run`, and show their sizes."""
        with self.lock:
            for name, one in watched.items():
                grown = self.growth.of(_COUNTS_OF[name](one))
                for count, (family, label) in _HOMES.items():
                    if count in grown:
                        getattr(run, family)[label] += grown[count]
                if "evicted.sum" in grown:
                    ages = [grown[f"evicted.{i}"] for i in range(len(AGES))]
                    run.record_evicted_age_seconds.add_counts(np.array(ages), grown["evicted.sum"])
                run.record_rejected += grown.get("record.rejected", 0)
                _SIZES_OF[name](run, one)


def _record_counts(record: CountsLookups) -> dict[str, int]:
    counts = dict(_named("record", record.counts))
    if (ages := getattr(record, "evicted_ages", None)) is not None:
        counts |= {f"evicted.{i}": int(count) for i, count in enumerate(ages.counts)}
        counts["evicted.sum"] = ages.sum_s
    if (pending := getattr(record, "pending", None)) is not None:
        counts |= _named("pending", pending.counts)
    if (snapshots := getattr(record, "snapshots", None)) is not None:
        counts |= {"snapshots.saved": snapshots.saved, "snapshots.failed": snapshots.failed}
    return counts


def _named(whose: str, counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    return ((f"{whose}.{name}", count) for name, count in counts.items())


def _source_counts(source: CountsErrors) -> dict[str, int]:
    counts = source.counts
    names = ("skipped_samples", "skipped_shards", "retries")
    return {f"input.{name}": counts.get(name, 0) for name in names}


def _feed_counts(feed: CountsSegments) -> dict[str, int]:
    return dict(_named("feed", feed.counts))


def _show_record(run: Counted, record: Any) -> None:
    run.record_entries = len(record)
    run.record_capacity_entries = record.capacity
    run.record_bytes = record.record_bytes
    if (pending := getattr(record, "pending", None)) is not None:
        run.record_pending_entries = len(pending)
    if getattr(record, "kept", False):
        snapshots = record.snapshots
        run.record_last_snapshot_timestamp_seconds = snapshots.created_s or None
        run.record_snapshot_seconds = snapshots.duration_s or None
        run.record_snapshot_bytes = snapshots.total_bytes
        run.record_damaged_files = snapshots.damaged_files


def _show_feed(run: Counted, feed: CountsSegments) -> None:
    run.record_backlog_segments = feed.backlog_segments
    age_s = feed.newest_age_s
    run.record_served_lag_seconds = age_s if math.isfinite(age_s) else None


def _show_reliability(run: Counted, staleness: KnowsReliability) -> None:
    run.record_reliability_ratio = dict(zip(AGES, staleness.reliability, strict=True))


def _no_counts(_: object) -> dict[str, int]:
    return {}


def _no_sizes(_run: Counted, _: object) -> None:
    pass


_COUNTS_OF: Final[Mapping[str, Any]] = {
    "record": _record_counts,
    "source": _source_counts,
    "feed": _feed_counts,
    "staleness": _no_counts,
}
_SIZES_OF: Final[Mapping[str, Any]] = {
    "record": _show_record,
    "source": _no_sizes,
    "feed": _show_feed,
    "staleness": _show_reliability,
}
