"""Lines over a common axis."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from adasel_stream.charts.frame import EndLabel, Frame, end_labels, label_margin
from adasel_stream.charts.scales import Scale, significant, span
from adasel_stream.charts.svg import color, element, shortened, text, with_halo

__all__ = ["Series", "line_chart"]

_MOST_POINTS = 600


@dataclass(frozen=True, slots=True)
class Series:
    """One line.

    Attributes:
        name: label at the end of the line.
        x: positions, ascending.
        y: values, as many as `x`; the line has a gap where one is not finite.
        low: lower edge of an error band, as many as `x`, or None.
        high: upper edge of an error band, as many as `x`, or None.
        dashed: draw it dashed, for what is shown as a reference.
        paint: number of its colour; by default its place among the series.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    dashed: bool = False
    paint: int | None = None


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str,
    y_label: str,
    y_unit: str = "",
    y_range: tuple[float, float] | None = None,
    reference: tuple[float, str] | None = None,
    size: tuple[float, float] = (860, 320),
) -> str:
    """Draw lines with their names and last values at their ends.

    Args:
        series: the lines; of one with more than 600 points evenly spaced ones are drawn.
        label: what the chart shows, for a screen reader.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical axis.
        y_unit: "%" shows shares as percent; anything else changes nothing.
        y_range: range of the vertical axis; by default that of the values. What lies
            outside is cut off.
        reference: a value and its name, drawn as a horizontal line.
        size: width and height in pixels.

    Returns:
        An SVG element that stands for itself: no script, no link, no id.

    Raises:
        ValueError: if a series' parts differ in length.

    >>> line = Series("ours", [0, 1, 2], [0.7, 0.5, 0.4])
    >>> chart = line_chart([line], label="loss", x_label="samples", y_label="loss")
    >>> chart.startswith("<svg") and ">ours<" in chart
    True
    """
    for one in series:
        _check(one)
    values = [
        f"{significant(_last(one.y) * 100)} %" if y_unit == "%" else significant(_last(one.y))
        for one in series
    ]
    margin = label_margin([shortened(one.name) for one in series], values)
    frame = Frame(*size, right=margin)
    x = frame.x_scale(*span(chain.from_iterable(one.x for one in series)))
    y = frame.y_scale(*(y_range or span(_extent(series, reference), margin=0.06)))
    lines = [_band(one, x, y, _paint(one, place)) for place, one in enumerate(series)]
    # drawn last to first, so that the first lies on top
    lines += [_line(one, x, y, _paint(one, place)) for place, one in enumerate(series)][::-1]
    ends = [
        EndLabel(
            min(max(y(_last(one.y)), frame.top), frame.y_end),
            shortened(one.name),
            value,
            _paint(one, n),
        )
        for n, (one, value) in enumerate(zip(series, values, strict=True))
        if math.isfinite(_last(one.y))
    ]
    rule, name = _reference(frame, y, reference)
    drawn = [
        *frame.y_axis(y, y_label, y_unit),
        *frame.x_axis(x, x_label),
        rule,
        frame.clipped(*lines),
        name,
        *end_labels(frame, ends),
    ]
    return frame.drawing(label, drawn)


def _check(one: Series) -> None:
    for part in (one.y, one.low, one.high):
        if part is not None and len(part) != len(one.x):
            raise ValueError(
                f"series {one.name!r} must have as many values as positions, "
                f"got {len(part)} and {len(one.x)}"
            )


def _paint(one: Series, place: int) -> int:
    return place if one.paint is None else one.paint


def _last(values: Sequence[float]) -> float:
    return next((value for value in reversed(values) if math.isfinite(value)), math.nan)


def _extent(series: Sequence[Series], reference: tuple[float, str] | None) -> list[float]:
    parts = [part for one in series for part in (one.y, one.low, one.high) if part is not None]
    return [*chain.from_iterable(parts), *([reference[0]] if reference else [])]


def _chosen(count: int) -> list[int]:
    if count <= _MOST_POINTS:
        return list(range(count))
    return [round(place * (count - 1) / (_MOST_POINTS - 1)) for place in range(_MOST_POINTS)]


def _line(one: Series, x: Scale, y: Scale, paint: int) -> str:
    steps: list[str] = []
    drawing = False
    for place in _chosen(len(one.x)):
        known = math.isfinite(one.y[place]) and math.isfinite(one.x[place])
        if known:
            here = f"{x(one.x[place]):.1f} {y(one.y[place]):.1f}"
            # h0 with round ends shows a value without neighbours as a dot
            steps.append(f"L{here}" if drawing else f"M{here}h0")
        drawing = known
    dashes = ";stroke-dasharray:6 4" if one.dashed else ";stroke-linecap:round"
    style = f"fill:none;stroke:{color(paint)};stroke-width:2;stroke-linejoin:round{dashes}"
    return element("path", d="".join(steps), style=style)


def _band(one: Series, x: Scale, y: Scale, paint: int) -> str:
    if one.low is None or one.high is None:
        return ""
    places = [
        place
        for place in _chosen(len(one.x))
        if math.isfinite(one.low[place]) and math.isfinite(one.high[place])
    ]
    upper = [f"{x(one.x[place]):.1f} {y(one.high[place]):.1f}" for place in places]
    lower = [f"{x(one.x[place]):.1f} {y(one.low[place]):.1f}" for place in reversed(places)]
    style = f"fill:{color(paint)};fill-opacity:.16"
    return element("polygon", points=",".join([*upper, *lower]), style=style)


def _reference(frame: Frame, y: Scale, reference: tuple[float, str] | None) -> tuple[str, str]:
    if reference is None:
        return "", ""
    value, name = reference
    style = f"stroke:{color('muted')};stroke-width:1;stroke-dasharray:2 3"
    rule = element("line", x1=frame.left, x2=frame.x_end, y1=y(value), y2=y(value), style=style)
    above = y(value) - 9
    return rule, with_halo(text(frame.left + 6, above, name, ink="muted", size=11.5))
