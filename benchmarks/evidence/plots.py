"""Plots of the evidence: files of their own, readable on light and dark pages."""

import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

from adasel_stream.charts import Series, bar_chart, line_chart
from benchmarks.evidence.standings import Standings

__all__ = ["phase_bars", "rank_bars", "standalone", "value_against_rate"]

SHOWN = ("auto", "uniform", "unbiased", "auto + serving", "paper", "big_loss")
"""Contestants in plots: more lines than these nobody can tell apart."""

GREY = 2
"""Number of the colour for what is only compared with."""

PAINTS = {"auto": 0, "uniform": GREY, "unbiased": 3, "auto + serving": 6, "paper": 4, "big_loss": 1}

MARGIN = 12
"""Around a chart, in pixels."""

PHASES: tuple[str, ...] = ("data", "score", "select", "train")

ROOM = 0.4
"""Share of the range of what matters that is shown above and below it."""


def standalone(svg: str) -> str:
    """Make an image file of a chart: with its own colours for light and dark, and a background.

    >>> image = standalone('<svg viewBox="0 0 9 9" width="9" height="9"><g/></svg>')
    >>> 'viewBox="0 0 33 33"' in image and "prefers-color-scheme:dark" in image
    True
    """
    css = files("adasel_stream.report").joinpath("report.css").read_text(encoding="utf-8")
    colors = css[: css.index("*{")]
    sizes = re.search(r'width="([0-9.]+)" height="([0-9.]+)"', svg)
    assert sizes is not None, "a chart says how large it is"
    width, height = (float(size) + 2 * MARGIN for size in sizes.groups())
    inner = svg.replace("<svg ", f'<svg x="{MARGIN}" y="{MARGIN}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}"><style>{colors}</style>'
        f'<rect width="100%" height="100%" style="fill:var(--paper)"/>{inner}</svg>\n'
    )


def value_against_rate(standings: Standings, task: str, measure: str) -> str:
    """Draw the value of some contestants against the sampling rate, with a standard error."""
    rates = standings.rates(task)
    series = [
        one
        for name in SHOWN
        for one in [_series(standings, task, name, rates)]
        if any(map(math.isfinite, one.y))
    ]
    full = standings.mean(task, "full", 1.0).value
    return line_chart(
        series,
        label=f"{task}: {measure} against the sampling rate",
        x_label="sampling rate",
        y_label=measure,
        y_range=_range(standings, task, rates, full),
        reference=(full, "full training") if math.isfinite(full) else None,
        size=(760, 320),
    )


def _series(standings: Standings, task: str, name: str, rates: Sequence[float]) -> Series:
    means = [standings.mean(task, name, rate) for rate in rates]
    return Series(
        name,
        rates,
        [mean.value for mean in means],
        low=[mean.value - mean.error for mean in means],
        high=[mean.value + mean.error for mean in means],
        paint=PAINTS[name],
    )


def _range(
    standings: Standings, task: str, rates: Sequence[float], full: float
) -> tuple[float, float] | None:
    """Show where uniform, full training and ours lie; what is far worse leaves the plot."""
    values = [full] + [
        standings.mean(task, name, rate).value
        for name in ("uniform", "auto", "unbiased")
        for rate in rates
    ]
    finite = [value for value in values if math.isfinite(value)]
    if not finite or max(finite) == min(finite):
        return None
    room = ROOM * (max(finite) - min(finite))
    return min(finite) - room, max(finite) + room


def rank_bars(ranks: Mapping[str, float], own: Sequence[str]) -> str:
    """Draw average ranks, the best first; those of this package are one colour.

    Args:
        ranks: average rank by contestant.
        own: which of them are policies of this package.
    """
    bars = {
        name: {("policies of this package" if name in own else "others"): rank}
        for name, rank in sorted(ranks.items(), key=lambda item: item[1])
    }
    legend = {"policies of this package": 0.0, "others": 0.0}
    return bar_chart(
        {name: {**legend, **parts} for name, parts in bars.items()},
        label="average rank over all tasks and rates",
        x_label="average rank, 1 is the best",
        unit="",
        width=760,
    )


def phase_bars(standings: Standings, rate: float) -> str:
    """Draw where the time goes, in percent of full training's, averaged over the tasks."""
    return bar_chart(
        {name: _phases(standings, name, rate) for name in standings.contestants},
        label="processor time by phase",
        x_label="percent of full training's processor time",
        unit="%",
        width=760,
    )


def _phases(standings: Standings, name: str, rate: float) -> dict[str, float]:
    sums: dict[str, float] = {phase: 0.0 for phase in PHASES}
    places = 0
    for task in standings.tasks:
        whole = standings.seconds(task, "full", rate)
        if math.isnan(whole):  # there is nothing to be a share of
            continue
        for row in standings.seeds(task, name, rate).values():
            places += 1
            for phase in PHASES:
                sums[phase] += 100 * row["seconds"].get(phase, 0.0) / whole
    return {phase: value / max(1, places) for phase, value in sums.items()}
