"""Shares of a whole over time."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from adasel_stream.charts.frame import EndLabel, Frame, end_labels, label_margin
from adasel_stream.charts.scales import Scale, span
from adasel_stream.charts.svg import color, element, shortened, visible

__all__ = ["area_chart"]

_MOST_POINTS = 400


def area_chart(
    x: Sequence[float],
    shares: Mapping[str, Sequence[float]],
    *,
    label: str,
    x_label: str,
    y_label: str,
    size: tuple[float, float] = (860, 320),
) -> str:
    """Draw parts of a whole, one on top of the other, named at their right ends.

    Args:
        x: positions, ascending, at least two to see an area.
        shares: values of each part, as many as `x`, at least 0; each moment is scaled to
            sum 1, and a value that is not finite counts as 0.
        label: what the chart shows, for a screen reader.
        x_label: name and unit of the horizontal axis.
        y_label: name of the vertical axis, which runs from 0 to 100 %.
        size: width and height in pixels.

    Returns:
        An SVG element that stands for itself: no script, no link, no id.

    Raises:
        ValueError: if a part has not as many values as `x`.

    >>> shares = {"big_loss": [0.5, 0.7], "uniform": [0.5, 0.3]}
    >>> chart = area_chart([0, 100], shares, label="weights", x_label="steps", y_label="weight")
    >>> ">big_loss<" in chart and ">70 %<" in chart
    True
    """
    for name, values in shares.items():
        if len(values) != len(x):
            raise ValueError(
                f"{name!r} must have {len(x)} values, one a position, got {len(values)}"
            )
    every = max(1, math.ceil(len(x) / _MOST_POINTS))
    places = [*range(0, max(len(x) - 1, 0), every), *range(len(x))[-1:]]
    levels = _levels(list(shares.values()), places)
    last = [level[-1] if level else 0.0 for level in levels]
    values_at_end = [f"{100 * (high - low):.0f} %" for low, high in pairwise(last)]
    names = list(map(shortened, shares))
    frame = Frame(*size, right=label_margin(names, values_at_end))
    across, up = frame.x_scale(*span(x)), frame.y_scale(0, 1)
    parts: list[str] = []
    ends: list[EndLabel] = []
    for number, name in enumerate(shares):
        low, high = levels[number], levels[number + 1]
        parts.append(_area(name, [x[place] for place in places], low, high, across, up, number))
        middle = up((last[number] + last[number + 1]) / 2)
        ends.append(EndLabel(middle, names[number], values_at_end[number], number))
    drawn = [
        *frame.y_axis(up, y_label, "%"),
        frame.clipped(*parts),
        *frame.x_axis(across, x_label),
        *end_labels(frame, ends),
    ]
    return frame.drawing(label, drawn)


def _levels(parts: Sequence[Sequence[float]], places: Sequence[int]) -> list[list[float]]:
    """Return the edges between the parts from bottom to top, scaled to end at 1."""
    columns: list[list[float]] = []
    for place in places:
        values = [max(part[place], 0.0) if math.isfinite(part[place]) else 0.0 for part in parts]
        total = sum(values) or 1.0
        column = [0.0]
        for value in values:
            column.append(column[-1] + value / total)
        columns.append(column)
    return [[column[level] for column in columns] for level in range(len(parts) + 1)]


def _area(
    name: str,
    x: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    across: Scale,
    up: Scale,
    number: int,
) -> str:
    upper = [f"{across(a):.1f} {up(b):.1f}" for a, b in zip(x, high, strict=True)]
    lower = [f"{across(a):.1f} {up(b):.1f}" for a, b in zip(x, low, strict=True)]
    style = f"fill:{color(number)};fill-opacity:.88;stroke:{color('paper')};stroke-width:1.2"
    tip = element("title", visible(name))
    return element("polygon", tip, points=",".join([*upper, *reversed(lower)]), style=style)
