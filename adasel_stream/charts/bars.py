"""Amounts made of parts, one bar a row."""

from collections.abc import Mapping
from itertools import cycle

from adasel_stream.charts.frame import Frame
from adasel_stream.charts.scales import Scale, significant, span
from adasel_stream.charts.svg import color, element, ink_on, shortened, text, text_width, visible

__all__ = ["bar_chart"]

_ROW, _BAR = 44.0, 26.0


def bar_chart(
    bars: Mapping[str, Mapping[str, float]],
    *,
    label: str,
    x_label: str,
    unit: str = "s",
    width: float = 860,
) -> str:
    """Draw one stacked bar a row, with its total at the end and a legend above.

    Args:
        bars: for each row the amount of each part, finite and at least 0. A part has the
            same colour in every row, grey if it is called other; parts appear in the order
            in which they first come. One that no row has anything of is not in the legend,
            but takes its colour, so that charts of the same parts are alike.
        label: what the chart shows, for a screen reader.
        x_label: name and unit of the horizontal axis.
        unit: written after each amount.
        width: in pixels; the height follows from the number of rows.

    Returns:
        An SVG element that stands for itself: no script, no link, no id.

    Raises:
        ValueError: if an amount is negative or not finite.

    >>> bars = {"ours": {"score": 10.0, "train": 30.0}, "uniform": {"train": 31.0}}
    >>> chart = bar_chart(bars, label="time", x_label="seconds")
    >>> ">40.0 s</text>" in chart
    True
    """
    for row, amounts in bars.items():
        if not all(0 <= amount < float("inf") for amount in amounts.values()):
            raise ValueError(f"amounts of {row!r} must be finite and at least 0, got {amounts}")
    parts = _paints(bars)
    totals = {row: sum(amounts.values()) for row, amounts in bars.items()}
    shown = {part for amounts in bars.values() for part, amount in amounts.items() if amount > 0}
    legend, top = _legend({part: parts[part] for part in parts if part in shown}, width)
    left = max([text_width(shortened(row), 12.5) for row in bars], default=0) + 16
    frame = Frame(width, top + _ROW * len(bars) + 48, left, 84, top, 48)
    scale = frame.x_scale(0, span([0.0, *totals.values()])[1])
    drawn = [*legend]
    for place, (row, amounts) in enumerate(bars.items()):
        y = top + _ROW * place + _ROW / 2
        drawn.append(text(left - 10, y, shortened(row), anchor="end", size=12.5, weight=500))
        drawn += _bar(amounts, parts, scale, y, unit)
        total = f"{significant(totals[row])} {unit}"
        drawn.append(text(scale(totals[row]) + 8, y, total, weight=600))
    drawn += frame.x_axis(scale, x_label)
    return frame.drawing(label, drawn)


def _paints(bars: Mapping[str, Mapping[str, float]]) -> dict[str, int]:
    parts = dict.fromkeys(part for row in bars.values() for part in row)
    paints = cycle((6, 5, 4, 0, 3, 1, 7, 8, 9, 10, 11))
    return {part: 2 if part == "other" else next(paints) for part in parts}


def _legend(parts: Mapping[str, int], width: float) -> tuple[list[str], float]:
    """Return the legend, in as many lines as it needs, and where it ends."""
    drawn: list[str] = []
    x, y = 0.0, 8.0
    for part, number in parts.items():
        name = shortened(part)
        room = 20 + text_width(name) + 14
        if x and x + room > width:
            x, y = 0.0, y + 20
        style = f"fill:{color(number)}"
        drawn.append(element("rect", x=x, y=y - 6, width=12, height=12, rx=2, style=style))
        drawn.append(text(x + 18, y, name))
        x += room
    return drawn, y + 18


def _bar(
    amounts: Mapping[str, float], parts: Mapping[str, int], scale: Scale, y: float, unit: str
) -> list[str]:
    drawn: list[str] = []
    start = 0.0
    stacked = sum(amount > 0 for amount in amounts.values()) > 1  # else the total says it all
    for part in parts:
        amount = amounts.get(part, 0.0)
        if amount <= 0:
            continue
        x, end = scale(start), scale(start + amount)
        start += amount
        shown = f"{significant(amount)} {unit}"
        style = f"fill:{color(parts[part])};stroke:{color('paper')};stroke-width:1"
        tip = element("title", visible(f"{part}: {shown}"))
        drawn.append(
            element("rect", tip, x=x, y=y - _BAR / 2, width=end - x, height=_BAR, style=style)
        )
        if stacked and end - x > text_width(shown, 11.5) + 10:
            drawn.append(
                text((x + end) / 2, y, shown, ink=ink_on(parts[part]), anchor="middle", size=11.5)
            )
    return drawn
