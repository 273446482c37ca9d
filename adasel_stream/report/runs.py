"""The sections of a report that every run log can fill."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from adasel_stream.charts import Series, area_chart, bar_chart, histogram_chart, line_chart
from adasel_stream.report.page import Section
from adasel_stream.runlog import effective_records

__all__ = ["run_sections"]

Record = Mapping[str, Any]

_FAR = "samples_seen_total"
_X_LABEL = "samples seen"


def run_sections(arms: Mapping[str, Sequence[Record]]) -> list[Section]:
    """Return what the snapshots of one or several runs show, most important first.

    Sections that no run has numbers for are left out, and so is what a resume rolled back.

    Args:
        arms: for each run its name and its records, each a `Metrics.snapshot()` with any
            keys more, in the order written.

    >>> from adasel_stream.metrics import Metrics
    >>> metrics = Metrics(["uniform"], sampling_rate=0.5, batch_size=8, policy="paper")
    >>> metrics.observe_step(0.1)
    >>> [section.heading for section in run_sections({"ours": [metrics.snapshot()]})]
    ['Where did the time go?']
    """
    runs = {name: effective_records(records) for name, records in arms.items()}
    runs = {name: records for name, records in runs.items() if records}
    drawn = [
        _losses(runs),
        *(_weights(name, records, alone=len(runs) == 1) for name, records in runs.items()),
        *(_picks(name, records, alone=len(runs) == 1) for name, records in runs.items()),
        _rates(runs),
        _reuse(runs),
        _times(runs),
    ]
    return [section for section in drawn if section is not None]


def _losses(runs: Mapping[str, Sequence[Record]]) -> Section | None:
    lines = [
        Series(name, *points)
        for name, records in runs.items()
        if (points := _points(_interval_means(records)))
    ]
    if not lines:
        return None
    chart = line_chart(
        lines,
        label="mean loss of all samples seen, by run",
        x_label=_X_LABEL,
        y_label="mean loss of the samples seen since the record before",
    )
    words = (
        "Every sample is scored before the model trains on it, so this is the loss on data "
        "that it has not seen."
    )
    return Section("Is the model learning?", words, (chart,))


def _interval_means(records: Sequence[Record]) -> Iterator[tuple[float, float]]:
    for before, after in pairwise(records):
        start, end = before["loss"]["seen"], after["loss"]["seen"]
        count = sum(end["counts"]) - sum(start["counts"])
        if count > 0:
            yield after[_FAR], (end["sum"] - start["sum"]) / count


def _points(pairs: Iterator[tuple[float, float]]) -> tuple[list[float], list[float]] | None:
    held = list(pairs)
    if len(held) < 2:
        return None
    return [x for x, _ in held], [y for _, y in held]


def _heading(question: str, name: str, *, alone: bool) -> str:
    return question if alone else f"{question} ({name})"


def _weights(name: str, records: Sequence[Record], *, alone: bool) -> Section | None:
    methods = list(records[-1]["method_weight_ratio"])
    held = [record for record in records if list(record["method_weight_ratio"]) == methods]
    if len(methods) < 2 or len(held) < 2:
        return None
    shares = {
        method: [record["method_weight_ratio"][method] or 0.0 for record in held]
        for method in methods
    }
    chart = area_chart(
        [record[_FAR] for record in held],
        shares,
        label="method weights over time",
        x_label=_X_LABEL,
        y_label="method weight",
    )
    return Section(_heading("Which methods does it trust?", name, alone=alone), "", (chart,))


def _picks(name: str, records: Sequence[Record], *, alone: bool) -> Section | None:
    loss = records[-1]["loss"]
    if not sum(loss["selected"]["counts"]):
        return None
    chart = histogram_chart(
        loss["seen"]["bounds"],
        {"seen": loss["seen"]["counts"], "selected": loss["selected"]["counts"]},
        label="losses of all samples seen and of the selected ones",
        x_label="loss (logarithmic)",
    )
    words = "Each bucket's share of the samples: of all that were seen, and of those selected."
    return Section(_heading("What does it pick?", name, alone=alone), words, (chart,))


def _rates(runs: Mapping[str, Sequence[Record]]) -> Section | None:
    lines: list[Series] = []
    for name, records in runs.items():
        ratio = ((r[_FAR], r["samples_selected_total"] / r[_FAR]) for r in records if r[_FAR])
        if points := _points(ratio):
            lines.append(Series(name, *points))
    if not lines:
        return None
    chart = line_chart(
        lines,
        label="share of samples selected, by run",
        x_label=_X_LABEL,
        y_label="samples selected of those seen so far",
        y_unit="%",
        y_range=(0, 1.05 * max(max(line.y) for line in lines) or 1),
        size=(860, 240),
    )
    return Section("How much is trained on?", "", (chart,))


def _reuse(runs: Mapping[str, Sequence[Record]]) -> Section | None:
    lines: list[Series] = []
    for name, records in runs.items():
        looked_up = ((r[_FAR], r["record_lookups_total"]) for r in records)
        rates = ((x, one["hit"] / sum(one.values())) for x, one in looked_up if sum(one.values()))
        if points := _points(rates):
            lines.append(Series(name, *points))
    if not lines:
        return None
    chart = line_chart(
        lines,
        label="share of lookups that found a fresh loss, by run",
        x_label=_X_LABEL,
        y_label="lookups that found a fresh loss",
        y_unit="%",
        y_range=(0, 1),
        size=(860, 240),
    )
    words = "A loss that the record knows costs no scoring pass."
    return Section("Does the record help?", words, (chart,))


def _times(runs: Mapping[str, Sequence[Record]]) -> Section | None:
    bars = {name: records[-1]["phase_seconds_total"] for name, records in runs.items()}
    if not any(math.fsum(bar.values()) for bar in bars.values()):
        return None
    chart = bar_chart(
        bars, label="wall time by phase, by run", x_label="seconds of the training thread"
    )
    return Section("Where did the time go?", "", (chart,))
