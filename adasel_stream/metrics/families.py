"""Every metric that a run shows: its name, kind, help and bounded labels."""

from dataclasses import dataclass
from typing import Literal

__all__ = [
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

RECORD_AGE_BOUNDS_S = (1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0)
"""8 bounds for the age of a reused loss, from a second to a week."""


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
    Family("samples_seen", "counter", "Samples that reached the scorer."),
    Family("samples_selected", "counter", "Samples given to the backward pass."),
    Family(
        "samples_dropped",
        "counter",
        "Samples discarded: without a finite loss, or chosen and not to be decoded.",
        "reason",
        ("nonfinite_loss", "decode_error"),
    ),
    Family(
        "decode_rows",
        "counter",
        "Rows that were fetched and decoded after selection.",
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
        ("forward", "record", "unknown"),
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
    Family(
        "policy_updates",
        "counter",
        "Updates of the method weights by losses of training steps; only policies that learn "
        "from those make any.",
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
