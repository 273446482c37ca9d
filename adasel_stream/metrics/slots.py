"""What a run counts: plain numbers that the training thread adds to."""

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from adasel_stream.metrics import reading
from adasel_stream.metrics.collector import RunCollector
from adasel_stream.metrics.families import (
    AGES,
    FAMILIES,
    LOSS_BOUNDS,
    PHASES,
    RECORD_AGE_BOUNDS_S,
    STEP_BOUNDS_S,
)
from adasel_stream.metrics.histogram import Histogram
from adasel_stream.metrics.names import checked_methods, checked_name, checked_slices
from adasel_stream.metrics.phases import PhaseClock
from adasel_stream.metrics.watching import (
    CountsErrors,
    CountsLookups,
    CountsSegments,
    KnowsReliability,
    Outside,
)
from adasel_stream.paying import REASONS, Gain, Watch
from adasel_stream.spearman import Correlation

__all__ = ["Metrics"]


class Metrics:
    """Everything that one run shows, held in plain numbers.

    The loader adds to the attributes; a scrape or a snapshot reads them, from any thread.
    No object of a metrics library is touched in a step. Attributes are named as in
    `families.FAMILIES`; the labelled ones are dicts with the declared names as keys, and
    only declared names are ever shown.

    Args:
        methods: names of the selection methods, in the order of the arrays given to
            `observe_selection`; 1 to 12, different, printable, at most 64 characters each.
        run: stable name of the job, printable, 1 to 64 characters.
        rank: rank of the process in the job, at least 0.
        sampling_rate: target share of selected samples, in (0, 1].
        batch_size: emitted rows per batch, at least 1.
        policy: name of the selection policy, printable, 1 to 64 characters.
        slices: names of slices that are counted, at most 16, as `methods`.
        loss_bounds: bucket bounds of the losses, increasing; 1 to 32.
        clock: monotonic time in seconds, for the phases.

    Raises:
        ValueError: if an argument is not as described.

    >>> metrics = Metrics(["big_loss", "uniform"], sampling_rate=0.3, batch_size=128,
    ...                   policy="unbiased")
    >>> metrics.samples_seen += 128
    >>> with metrics.phase("score"):
    ...     pass
    >>> metrics.snapshot()["samples_seen_total"]
    128
    """

    def __init__(
        self,
        methods: Sequence[str],
        *,
        run: str = "adasel",
        rank: int = 0,
        sampling_rate: float,
        batch_size: int,
        policy: str,
        slices: Sequence[str] = (),
        loss_bounds: Sequence[float] = LOSS_BOUNDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start every count at zero."""
        self.methods = checked_methods(methods)
        self.slices = checked_slices(slices)
        self.run = checked_name("run", run)
        self.policy = checked_name("policy", policy)
        if rank < 0 or batch_size < 1:
            raise ValueError(
                f"rank must be at least 0 and batch_size at least 1, got {rank} and {batch_size}"
            )
        if not 0 < sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in (0, 1], got {sampling_rate}")
        self.rank = rank
        self.batch_size = batch_size
        self.score_mode = "forward"
        self.run_id = uuid.uuid4().hex[:12]
        self._phases = PhaseClock(PHASES, idle="other", clock=clock)
        self._outside = Outside()
        self._zero_counters(loss_bounds)
        self._unset_gauges(float(sampling_rate))

    def _zero_counters(self, loss_bounds: Sequence[float]) -> None:
        names = {family.name: family.names for family in FAMILIES}
        self.samples_seen = 0
        self.samples_selected = 0
        self.samples_dropped = dict.fromkeys(names["samples_dropped"], 0)
        self.decode_rows = dict.fromkeys(names["decode_rows"], 0)
        self.score_rows = dict.fromkeys(names["score_rows"], 0)
        self.policy_updates = 0
        self.policy_switches = dict.fromkeys(names["policy_switches"], 0)
        self.method_agreed = [0.0] * len(self.methods)
        self.slice_seen = [0] * len(self.slices)
        self.slice_selected = [0] * len(self.slices)
        self.suspicious_selected = 0
        self.record_lookups = dict.fromkeys(names["record_lookups"], 0)
        self.record_evictions = dict.fromkeys(names["record_evictions"], 0)
        self.record_rejected = 0
        self.record_segments = dict.fromkeys(names["record_segments"], 0)
        self.record_served_rows = dict.fromkeys(names["record_served_rows"], 0)
        self.record_pending = dict.fromkeys(names["record_pending"], 0)
        self.record_snapshots = dict.fromkeys(names["record_snapshots"], 0)
        self.phase_seconds = self._phases.seconds
        self.steps = 0
        self.checkpoints = dict.fromkeys(names["checkpoints"], 0)
        self.input_errors = dict.fromkeys(names["input_errors"], 0)
        self.loss = {name: Histogram(loss_bounds) for name in names["loss"]}
        self.step_seconds = Histogram(STEP_BOUNDS_S)
        self.record_age_seconds = Histogram(RECORD_AGE_BOUNDS_S)
        self.record_evicted_age_seconds = Histogram(RECORD_AGE_BOUNDS_S)

    def _unset_gauges(self, sampling_rate: float) -> None:
        # None and NaN until first known: shown without a sample, never as a false 0
        self.selection_target_ratio: float = sampling_rate
        self.selection_effective_ratio: float | None = None
        self.method_weight_ratio = [1 / len(self.methods)] * len(self.methods)
        self.method_loss = [math.nan] * len(self.methods)
        self.gain_ratio: dict[str, float | None] = dict.fromkeys(Gain._fields)
        self.fallback_ratio: dict[str, float | None] = dict.fromkeys(REASONS)
        self.stream_loss: float | None = None
        self.stop_indicator_ratio: float | None = None
        self.proxy_correlation_ratio: dict[str, float | None] = dict.fromkeys(Correlation._fields)
        self.proxy_alert_ratio: float | None = None
        self.record_entries: int | None = None
        self.record_capacity_entries: int | None = None
        self.record_bytes: int | None = None
        self.record_reliability_ratio: dict[str, float | None] = dict.fromkeys(AGES)
        self.record_backlog_segments: int | None = None
        self.record_served_lag_seconds: float | None = None
        self.record_pending_entries: int | None = None
        self.record_last_snapshot_timestamp_seconds: float | None = None
        self.record_snapshot_seconds: float | None = None
        self.record_snapshot_bytes: int | None = None
        self.record_damaged_files: int | None = None
        # set from the start, so that a run that hangs before its first step is noticed too
        self.last_step_timestamp_seconds = time.time()
        self.last_checkpoint_timestamp_seconds: float | None = None
        self.telemetry_lag_parcels = 0

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Return a context that charges its time to a phase, exclusively; about 1 µs.

        For the training thread. A phase inside another takes its time from the outer one;
        time outside all of them is `other`, so that the phases sum to wall time.

        Args:
            name: data_wait, score, select, decode, train, checkpoint or other.

        Raises:
            ValueError: if `name` is none of them.

        >>> metrics = Metrics(["uniform"], sampling_rate=1, batch_size=8, policy="paper")
        >>> with metrics.phase("train"), metrics.phase("checkpoint"):
        ...     pass
        >>> metrics.phase_seconds["checkpoint"] > 0
        True
        """
        return self._phases.phase(name)

    def observe_selection(
        self,
        seen: npt.NDArray[Any],
        selected: npt.NDArray[Any],
        importance_weights: npt.NDArray[Any],
        method_weights: npt.NDArray[Any],
        method_losses: npt.NDArray[Any],
        method_agreed: npt.NDArray[Any],
    ) -> None:
        """Take over what one selection decided; it may be called some steps late.

        Counts the non-finite losses in `seen` as dropped, so the caller must not. The caller
        counts `samples_seen` and `samples_selected` itself.

        Args:
            seen: losses of the candidates, shape (b,), non-finite ones included.
            selected: losses of the selected rows, shape (k,).
            importance_weights: weights of the selected rows, shape (k,), at least 0.
            method_weights: shape (M,), sum 1.
            method_losses: mean loss of what each method would choose or draw, shape (M,). An
                entry that is not finite leaves the last known value in place.
            method_agreed: selected rows, shared out among the methods, shape (M,), sum k.

        Raises:
            ValueError: if a method array has another shape than (M,).

        >>> metrics = Metrics(["uniform"], sampling_rate=0.5, batch_size=4, policy="paper")
        >>> seen, one = np.array([1.0, 2.0, 3.0, np.nan]), np.ones(1)
        >>> metrics.observe_selection(seen, seen[1:3], np.array([1.0, 3.0]), one, 2.5 * one, one)
        >>> metrics.samples_dropped["nonfinite_loss"], metrics.selection_effective_ratio
        (1, 0.8)
        """
        self.samples_dropped["nonfinite_loss"] += self.loss["seen"].add(seen)
        self.loss["selected"].add(selected)  # what it leaves out was counted one line above
        total = float(np.add.reduce(importance_weights))
        squares = float(importance_weights.dot(importance_weights))
        if squares > 0 and math.isfinite(squares):
            self.selection_effective_ratio = total * total / (len(importance_weights) * squares)
        # each list is replaced, never changed: a scrape sees the old one or the new one
        self.method_weight_ratio = _finite(method_weights, self.method_weight_ratio)
        self.method_loss = _finite(method_losses, self.method_loss)
        agreed = _finite(method_agreed, [0.0] * len(self.methods))
        self.method_agreed = list(map(add, self.method_agreed, agreed))

    def observe_watch(self, before: str, watch: Watch, gain: Gain) -> None:
        """Take over whether selection pays, and what was changed because of it.

        Args:
            before: why rows were drawn evenly until now; empty if they were not.
            watch: what was seen of the run.
            gain: over uniform sampling.
        """
        if watch.reason != before:
            self.policy_switches[watch.reason or "selection"] += 1
        self.gain_ratio = {n: v if math.isfinite(v) else None for n, v in gain._asdict().items()}
        self.fallback_ratio = {reason: float(reason == watch.reason) for reason in REASONS}
        if not math.isnan(watch.stream_loss):
            self.stream_loss = watch.stream_loss

    def observe_proxy(self, correlation: Correlation, *, alert: bool) -> None:
        """Take over how well a proxy score ranks rows, and whether that is too bad."""
        bounds = correlation._asdict().items()
        self.proxy_correlation_ratio = {n: v if math.isfinite(v) else None for n, v in bounds}
        self.proxy_alert_ratio = float(alert)

    def observe_step(self, seconds: float) -> None:
        """Count one training step of `seconds` and charge the phase that runs.

        >>> metrics = Metrics(["uniform"], sampling_rate=1, batch_size=8, policy="paper")
        >>> metrics.observe_step(0.05)
        >>> metrics.steps, metrics.step_seconds.count
        (1, 1)
        """
        self.steps += 1
        self.step_seconds.observe(seconds)
        self.last_step_timestamp_seconds = time.time()
        self._phases.settle()

    def observe_checkpoint(self, result: str = "success") -> None:
        """Count a checkpoint that is complete, or that failed.

        Args:
            result: success or failure.

        Raises:
            ValueError: if `result` is neither.

        >>> metrics = Metrics(["uniform"], sampling_rate=1, batch_size=8, policy="paper")
        >>> metrics.observe_checkpoint()
        >>> metrics.checkpoints
        {'success': 1, 'failure': 0}
        """
        if result not in self.checkpoints:
            raise ValueError(f"result must be success or failure, got {result!r}")
        self.checkpoints[result] += 1
        if result == "success":
            self.last_checkpoint_timestamp_seconds = time.time()

    def observe_record_ages(self, ages_s: npt.NDArray[Any]) -> None:
        """Count the ages of recorded losses that were reused, shape (n,), in seconds."""
        self.record_age_seconds.add(ages_s)

    def watch(
        self,
        *,
        record: CountsLookups | None = None,
        source: CountsErrors | None = None,
        feed: CountsSegments | None = None,
        staleness: KnowsReliability | None = None,
    ) -> None:
        """Read these at every snapshot and scrape from now on.

        What they counted before belongs to somebody else and is left out.
        """
        self._outside.watch(self, record=record, source=source, feed=feed, staleness=staleness)

    def refresh(self) -> None:
        """Read what `watch` was given."""
        self._outside.refresh(self)

    def observe_record(self, record: CountsLookups) -> None:
        """Read a record's counts and size; for snapshots and scrapes, not for steps."""
        self._outside.read(self, record=record)

    def observe_input(self, source: CountsErrors) -> None:
        """Read what a source left out or repeated; for snapshots and scrapes, not for steps."""
        self._outside.read(self, source=source)

    def collector(self) -> RunCollector:
        """Return a collector of this run alone, for a registry of the caller's own."""
        return RunCollector([self])

    def snapshot(self) -> dict[str, Any]:
        """Describe every family in values that JSON can hold; unknown ones are None."""
        return reading.snapshot(self)

    def state_dict(self) -> dict[str, Any]:
        """Describe all counters and histograms, so that they go on after a resume."""
        with self._outside.lock:  # a scrape in between could count what `read` then repeats
            return {**reading.saved(self), "read": self._outside.growth.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue counting from `state`.

        Names that are no longer declared are left out, and a histogram with other bounds
        starts from zero: a change of methods or bounds must not stop a resume.

        Raises:
            ValueError: if `state` is not from `state_dict` of this version.
        """
        with self._outside.lock:  # a scrape in between would add to what is being overwritten
            reading.restore(self, state)
            self._outside.growth.start(state.get("read", {}))


def _finite(new: npt.NDArray[Any], old: list[float]) -> list[float]:
    """Return `new` as numbers, with `old` ones in place of those that are not finite."""
    if new.shape != (len(old),):
        raise ValueError(f"method arrays must have shape ({len(old)},), got {new.shape}")
    values: list[float] = new.tolist()
    if math.isfinite(sum(values)):
        return values
    return [one if math.isfinite(one) else other for one, other in zip(values, old, strict=True)]
