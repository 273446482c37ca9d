"""The sections of a report that every run log can fill."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from adasel_stream.charts import Series, area_chart, bar_chart, histogram_chart, line_chart
from adasel_stream.report.page import Section
from adasel_stream.runlog import effective_records

__all__ = ["run_sections"]

Record: TypeAlias = Mapping[str, Any]
Runs: TypeAlias = Mapping[str, Sequence[Record]]

_FAR = "samples_seen_total"
_SMOOTHED = 10
"""Losses are shown as means over a part of the run: one divided by this."""


def run_sections(
    arms: Mapping[str, Sequence[Record]],
    *,
    paints: Mapping[str, int] | None = None,
    samples: str = "samples",
) -> list[Section]:
    """Return what the snapshots of one or several runs show, most important first.

    Sections that no run has numbers for are left out, and so is what a resume rolled back.

    Args:
        arms: for each run its name and its records, each a `Metrics.snapshot()` with any
            keys more, in the order written.
        paints: number of each run's colour; by default its place among the runs.
        samples: what the samples are, in the plural.

    >>> from adasel_stream.metrics import Metrics
    >>> metrics = Metrics(["uniform"], sampling_rate=0.5, batch_size=8, policy="paper")
    >>> metrics.observe_step(0.1)
    >>> [section.heading for section in run_sections({"ours": [metrics.snapshot()]})]
    ['Where did the time go?']
    """
    runs = {name: effective_records(records) for name, records in arms.items()}
    runs = {name: records for name, records in runs.items() if records}
    painted = {name: place for place, name in enumerate(runs)} | dict(paints or {})
    alone = len(runs) == 1
    drawn = [
        _losses(runs, painted, samples),
        _gains(runs, painted, samples),
        *(_weights(name, records, samples, alone=alone) for name, records in runs.items()),
        *(_picks(name, records, samples, alone=alone) for name, records in runs.items()),
        _rates(runs, painted, samples),
        _reuse(runs, painted, samples),
        _times(runs),
    ]
    return [section for section in drawn if section is not None]


def _losses(runs: Runs, paints: Mapping[str, int], samples: str) -> Section | None:
    lines = _lines({name: _running_means(records) for name, records in runs.items()}, paints)
    if not lines:
        return None
    chart = line_chart(
        lines,
        label=f"running mean of the loss of all {samples} seen, by run",
        x_label=f"{samples} seen",
        y_label="loss, mean over the last tenth of the run",
    )
    words = (
        f"All {samples} are scored before the model trains on them, so this is the loss on data "
        "that it has not seen. The lines are running means over a tenth of the run."
    )
    return Section("Is the model learning?", words, (chart,))


def _running_means(records: Sequence[Record]) -> Iterator[tuple[float, float]]:
    """Give mean losses since some records before, at first since the first one."""
    back = max(1, len(records) // _SMOOTHED)
    for place, after in enumerate(records[1:], 1):
        before = records[max(0, place - back)]
        start, end = before["loss"]["seen"], after["loss"]["seen"]
        count = sum(end["counts"]) - sum(start["counts"])
        if count > 0:
            yield after[_FAR], (end["sum"] - start["sum"]) / count


def _gains(runs: Runs, paints: Mapping[str, int], samples: str) -> Section | None:
    known = {
        name: [one for one in records if None not in one.get("gain_ratio", {"": None}).values()]
        for name, records in runs.items()
    }
    lines = [
        Series(
            name,
            [one[_FAR] for one in records],
            [one["gain_ratio"]["mean"] for one in records],
            low=[one["gain_ratio"]["low"] for one in records],
            high=[one["gain_ratio"]["high"] for one in records],
            paint=paints[name],
        )
        for name, records in known.items()
        if len(records) > 1
    ]
    if not lines:
        return None
    chart = line_chart(
        lines,
        label="gain over uniform sampling with its interval, by run",
        x_label=f"{samples} seen",
        y_label="share of uniform's gradient noise removed",
        y_unit="%",
        reference=(0.0, "uniform sampling"),
    )
    words = [
        "Above 0 the gradient varies less than that of as many rows drawn evenly; the band is an "
        "interval of two standard errors. Less noise makes a better model only where noise is what "
        "holds training back.",
        *(_told(line.name, known[line.name][-1]) for line in lines),
    ]
    return Section("Is it paying?", " ".join(words), (chart,))


def _told(name: str, last: Record) -> str:
    """Say how often a run fell back, and what became of broken rows."""
    switches = {why: count for why, count in last["policy_switches_total"].items() if count}
    back = switches.pop("selection", 0)
    told = ", ".join(f"{why} {count}" for why, count in switches.items())
    now = [why for why, there in last["fallback_ratio"].items() if there]
    words = f"{name}: " + (
        f"drawn evenly for a while because of {told}, and {back} times back again"
        if switches
        else "never drawn evenly instead"
    )
    words += f"; evenly now, because of {now[0]}" if now else ""
    dropped = last["samples_dropped_total"]["nonfinite_loss"]
    return f"{words}; {dropped} rows dropped because their loss was not finite."


def _lines(
    runs: Mapping[str, Iterator[tuple[float, float]]], paints: Mapping[str, int]
) -> list[Series]:
    return [
        Series(name, *points, paint=paints[name])
        for name, pairs in runs.items()
        if (points := _points(pairs))
    ]


def _points(pairs: Iterator[tuple[float, float]]) -> tuple[list[float], list[float]] | None:
    held = list(pairs)
    if len(held) < 2:
        return None
    return [x for x, _ in held], [y for _, y in held]


def _heading(question: str, name: str, *, alone: bool) -> str:
    return question if alone else f"{question} ({name})"


def _weights(name: str, records: Sequence[Record], samples: str, *, alone: bool) -> Section | None:
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
        x_label=f"{samples} seen",
        y_label="method weight",
    )
    return Section(_heading("Which methods does it trust?", name, alone=alone), "", (chart,))


def _picks(name: str, records: Sequence[Record], samples: str, *, alone: bool) -> Section | None:
    loss = records[-1]["loss"]
    if not sum(loss["selected"]["counts"]):
        return None
    chart = histogram_chart(
        loss["seen"]["bounds"],
        {"seen": loss["seen"]["counts"], "selected": loss["selected"]["counts"]},
        label=f"losses of all {samples} seen and of the selected ones",
        x_label="loss (logarithmic)",
        y_label=f"share of {samples} per bucket",
    )
    words = f"Each bucket's share of the {samples}: of all that were seen, and of those selected."
    return Section(_heading("What does it pick?", name, alone=alone), words, (chart,))


def _rates(runs: Runs, paints: Mapping[str, int], samples: str) -> Section | None:
    lines = _lines({name: _selected(records) for name, records in runs.items()}, paints)
    if not lines:
        return None
    chart = line_chart(
        lines,
        label=f"share of {samples} selected, by run",
        x_label=f"{samples} seen",
        y_label=f"{samples} selected of those seen so far",
        y_unit="%",
        y_range=(0, 1.05 * max(max(line.y) for line in lines) or 1),
        size=(860, 240),
    )
    return Section("How much is trained on?", "", (chart,))


def _selected(records: Sequence[Record]) -> Iterator[tuple[float, float]]:
    for record in records:
        if record[_FAR]:
            yield record[_FAR], record["samples_selected_total"] / record[_FAR]


def _reuse(runs: Runs, paints: Mapping[str, int], samples: str) -> Section | None:
    lines = _lines({name: _hits(records) for name, records in runs.items()}, paints)
    if not lines:
        return None
    chart = line_chart(
        lines,
        label="share of lookups that found a fresh loss, by run",
        x_label=f"{samples} seen",
        y_label="lookups that found a fresh loss",
        y_unit="%",
        y_range=(0, 1),
        size=(860, 240),
    )
    words = "A loss that the record knows costs no scoring pass."
    return Section("Does the record help?", words, (chart,))


def _hits(records: Sequence[Record]) -> Iterator[tuple[float, float]]:
    for record in records:
        lookups = record["record_lookups_total"]
        if asked := sum(lookups.values()):
            yield record[_FAR], lookups["hit"] / asked


def _times(runs: Runs) -> Section | None:
    bars = {name: records[-1]["phase_seconds_total"] for name, records in runs.items()}
    if not any(math.fsum(bar.values()) for bar in bars.values()):
        return None
    chart = bar_chart(
        bars, label="wall time by phase, by run", x_label="seconds of the training thread"
    )
    return Section("Where did the time go?", "", (chart,))
