"""Every metric that a run shows: its name, kind, help and bounded labels."""

from dataclasses import dataclass
from typing import Literal

from adasel_stream.paying import REASONS
from adasel_stream.record.evicted import EVICTED_AGE_BOUNDS_S

__all__ = [
    "AGES",
    "FAMILIES",
    "LOSS_BOUNDS",
    "PHASES",
    "PREFIX",
    "RECORD_AGE_BOUNDS_S",
    "STEP_BOUNDS_S",
    "Family",
]

PREFIX = "adasel_"

PHASES = ("data_wait", "score", "select", "decode", "train", "checkpoint", "other")
"""Where a second of the training thread can go."""

LOSS_BOUNDS = tuple(float(f"{10 ** (step / 4):.3g}") for step in range(-12, 9))
"""21 bounds from 0.001 to 100, four a decade: a median is read to about 2 %, p99 to 12 %."""

STEP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)
"""12 bounds for the seconds of one step."""

RECORD_AGE_BOUNDS_S = EVICTED_AGE_BOUNDS_S
"""8 bounds for ages of recorded losses, from a second to a week."""

AGES = ("1s", "10s", "1m", "10m", "1h", "6h", "1d", "1w", "older")
"""Ages of recorded losses up to each of these, as `staleness` tells them apart."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of a run.

    Attributes:
        name: name without prefix and without `_total`; also the attribute of `Metrics`.
        kind: what Prometheus calls its type.
        help: one line for a reader who sees the metric for the first time.
        label: name of the label that splits it, empty if none does.
        names: declared values of the label; empty where the run declares them.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "info"]
    help: str
    label: str = ""
    names: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """Name in a snapshot: counters end in `_total`.

        >>> Family("steps", "counter", "Training steps.").shown
        'steps_total'
        """
        return f"{self.name}_total" if self.kind == "counter" else self.name


FAMILIES: tuple[Family, ...] = (
    Family(
        "samples_seen",
        "counter",
        "Candidates that were chosen from: their losses were scored, recorded or guessed.",
    ),
    Family("samples_selected", "counter", "Samples chosen to be trained on."),
    Family(
        "samples_dropped",
        "counter",
        "Samples discarded: no finite loss or gradient, not to be decoded, or lost to a score that "
        "raised.",
        "reason",
        ("nonfinite_loss", "decode_error", "score_error"),
    ),
    Family(
        "decode_rows",
        "counter",
        "Rows that were fetched and decoded, after selection or to be scored.",
        "result",
        ("decoded", "failed"),
    ),
    Family("selection_target_ratio", "gauge", "Sampling rate in force."),
    Family(
        "selection_effective_ratio",
        "gauge",
        "Kish effective sample size of the importance weights, as a share of the selected rows.",
    ),
    Family(
        "score_rows",
        "counter",
        "Rows by where their loss came from; an unknown one was guessed as the stream's mean.",
        "origin",
        ("forward", "proxy", "record", "unknown"),
    ),
    Family("method_weight_ratio", "gauge", "Method weights; they sum to 1.", "method"),
    Family(
        "method_loss",
        "gauge",
        "Mean loss of what each method would choose (policy paper) or draw (policy unbiased).",
        "method",
    ),
    Family(
        "method_agreed",
        "counter",
        "Selected rows, shared out among methods by how much each wanted them "
        "(sums to selected rows).",
        "method",
    ),
    Family("slice_seen", "counter", "Candidates of each named slice.", "slice"),
    Family("slice_selected", "counter", "Chosen rows of each named slice.", "slice"),
    Family(
        "suspicious_selected",
        "counter",
        "Chosen rows that looked suspicious to the guards; their share of all is what cap bounds.",
    ),
    Family(
        "policy_updates",
        "counter",
        "Updates of the method weights by losses of training steps; only policies that learn "
        "from those make any.",
    ),
    Family(
        "gain_ratio",
        "gauge",
        "Share of a uniform draw's gradient variance that selection removes, with an interval of "
        "two standard errors; above 0 it pays.",
        "bound",
        ("mean", "low", "high"),
    ),
    Family(
        "fallback_ratio",
        "gauge",
        "1 while rows are drawn evenly for this reason, else 0.",
        "reason",
        REASONS,
    ),
    Family(
        "policy_switches",
        "counter",
        "Falls back to an even draw by their reason, and returns to selection.",
        "to",
        (*REASONS, "selection"),
    ),
    Family(
        "stream_loss",
        "gauge",
        "Smoothed mean loss of the stream, of rows that no choice has touched: of all scored "
        "candidates, or of the control arm.",
    ),
    Family(
        "stop_indicator_ratio",
        "gauge",
        "How little is left to learn, from 0 to 1: confidence that the stream's loss no longer "
        "improves; advice alone.",
    ),
    Family(
        "proxy_correlation_ratio",
        "gauge",
        "Rank correlation of a proxy score with the model's losses among all candidates, with an "
        "interval, from rows that were trained on.",
        "bound",
        ("value", "low", "high"),
    ),
    Family(
        "proxy_alert_ratio",
        "gauge",
        "1 while a proxy score ranks rows worse than its floor, else 0.",
    ),
    Family("loss", "histogram", "Per-sample loss.", "set", ("seen", "selected")),
    Family(
        "record_lookups",
        "counter",
        "Ids looked up in the loss record.",
        "result",
        ("hit", "miss", "stale"),
    ),
    Family("record_entries", "gauge", "Ids that the loss record holds."),
    Family("record_capacity_entries", "gauge", "Ids that the loss record can hold."),
    Family("record_bytes", "gauge", "Memory of the loss record."),
    Family(
        "record_evictions",
        "counter",
        "Losses forgotten for newer ones (capacity) or never kept (collision).",
        "reason",
        ("capacity", "collision"),
    ),
    Family("record_rejected", "counter", "Losses that the record refused: not finite."),
    Family("record_age_seconds", "histogram", "Age of a recorded loss when it is reused."),
    Family(
        "record_evicted_age_seconds",
        "histogram",
        "Age of a recorded loss when it makes room; ages below the time after which instances "
        "come back mean that the record is too small.",
    ),
    Family(
        "record_reliability_ratio",
        "gauge",
        "Correlation of recorded losses with fresh ones of the same rows, by the record's age.",
        "age",
        AGES,
    ),
    Family(
        "record_segments",
        "counter",
        "Segment files of serving processes; missing ones were removed by their writer as too "
        "many, or lost.",
        "result",
        ("applied", "damaged", "missing", "newer"),
    ),
    Family(
        "record_served_rows",
        "counter",
        "Rows of serving processes that went into the record, or had no place there.",
        "result",
        ("applied", "ignored"),
    ),
    Family("record_backlog_segments", "gauge", "Segment files that wait to be applied."),
    Family(
        "record_served_lag_seconds",
        "gauge",
        "Age of the newest row of a serving process that was applied.",
    ),
    Family("record_pending_entries", "gauge", "Predictions that wait for their label."),
    Family(
        "record_pending",
        "counter",
        "Predictions by what became of them, and labels that found none (unmatched).",
        "result",
        ("expected", "joined", "expired", "evicted", "rejected", "unmatched"),
    ),
    Family(
        "record_snapshots", "counter", "Snapshots of the record.", "result", ("success", "failure")
    ),
    Family(
        "record_last_snapshot_timestamp_seconds",
        "gauge",
        "When the last snapshot of the record was complete, in seconds since 1970.",
    ),
    Family("record_snapshot_seconds", "gauge", "Time that the record's last snapshot took."),
    Family("record_snapshot_bytes", "gauge", "Size of the record's snapshot on disk."),
    Family(
        "record_damaged_files",
        "gauge",
        "Files of the record's snapshot that could not be used when it was opened.",
    ),
    Family(
        "phase_seconds",
        "counter",
        "Time of the training thread by phase; the phases sum to wall time.",
        "phase",
        PHASES,
    ),
    Family("step_seconds", "histogram", "Time of one training step."),
    Family("steps", "counter", "Training steps."),
    Family(
        "last_step_timestamp_seconds",
        "gauge",
        "When the last step ended, or the run began, in seconds since 1970.",
    ),
    Family(
        "last_checkpoint_timestamp_seconds",
        "gauge",
        "When the last checkpoint was complete, in seconds since 1970.",
    ),
    Family("checkpoints", "counter", "Checkpoints written.", "result", ("success", "failure")),
    Family(
        "input_errors",
        "counter",
        "Samples and shards that the source left out, and reads that it repeated.",
        "kind",
        ("sample", "shard", "retry"),
    ),
    Family(
        "telemetry_lag_parcels",
        "gauge",
        "Parcels of numbers on their way from the device, about one or two a step; what this "
        "page shows lacks them.",
    ),
    Family("info", "info", "Identity of the run; always 1."),
)
"""Every family; `Metrics` has an attribute for each."""
