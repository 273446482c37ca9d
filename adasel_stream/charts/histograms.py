"""Distributions over the same logarithmic buckets, one over the other."""

import math
from collections.abc import Mapping, Sequence

from adasel_stream.charts.frame import Frame
from adasel_stream.charts.scales import Scale, number
from adasel_stream.charts.svg import color, element, shortened, text, text_width

__all__ = ["histogram_chart"]


def histogram_chart(
    bounds: Sequence[float],
    counts: Mapping[str, Sequence[float]],
    *,
    label: str,
    x_label: str,
    y_label: str = "share of samples per bucket",
    size: tuple[float, float] = (860, 300),
) -> str:
    """Draw each set's share per bucket; buckets of equal ratio are equally wide.

    The first set is filled, the others are outlines over it. Empty buckets at both ends
    are left out; the outermost ones hold everything beyond.

    Args:
        bounds: upper bounds of the buckets, ascending, at least two, positive.
        counts: for each set the number in each bucket, one more than `bounds`, at least 0.
        label: what the chart shows, for a screen reader.
        x_label: name and unit of the horizontal axis.
        y_label: name of the vertical axis, in percent.
        size: width and height in pixels.

    Returns:
        An SVG element that stands for itself: no script, no link, no id.

    Raises:
        ValueError: if a set has another number of buckets.

    >>> chart = histogram_chart([0.1, 1.0, 10.0], {"seen": [5, 10, 5, 0], "selected": [0, 2, 4, 0]},
    ...                         label="losses", x_label="loss")
    >>> ">seen</text>" in chart
    True
    """
    for name, held in counts.items():
        if len(held) != len(bounds) + 1:
            raise ValueError(f"{name!r} must have {len(bounds) + 1} buckets, got {len(held)}")
    first, last = _used(counts)
    shares = {name: _shares(held)[first : last + 1] for name, held in counts.items()}
    frame = Frame(*size, top=48)
    x = Scale(first, last + 1, frame.left, frame.x_end)
    y = frame.y_scale(0, 1.08 * max([max(held) for held in shares.values()], default=1.0) or 1.0)
    marks = [place for place in range(first, last) if _is_decade(bounds[place])]
    names = [number(bounds[place]) for place in marks]
    sets = [_steps(held, first, x, y, paint) for paint, held in enumerate(shares.values())]
    drawn = [
        *frame.y_axis(y, y_label, "%"),
        *sets,
        *frame.x_marks([x(place + 1) for place in marks], names, x_label),
        *_legend(list(map(shortened, shares)), frame),
    ]
    return frame.drawing(label, drawn)


def _used(counts: Mapping[str, Sequence[float]]) -> tuple[int, int]:
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    held = [place for place, total in enumerate(totals) if total > 0]
    return (held[0], held[-1]) if held else (0, max(len(totals) - 1, 0))


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts) or 1.0
    return [count / total for count in counts]


def _is_decade(bound: float) -> bool:
    return bound > 0 and abs(math.log10(bound) - round(math.log10(bound))) < 1e-9


def _paint(place: int) -> int:
    # grey for what all others are compared with, then the usual colours
    return 2 if place == 0 else 0 if place == 1 else place + 1


def _steps(shares: Sequence[float], first: int, x: Scale, y: Scale, place: int) -> str:
    path = [f"M{x(first):.1f} {y(0):.1f}"]
    for bucket, share in enumerate(shares):
        path.append(f"V{y(share):.1f}H{x(first + bucket + 1):.1f}")
    path.append(f"V{y(0):.1f}")
    paint = color(_paint(place))
    fill = f"fill:{paint};fill-opacity:.35" if place == 0 else f"fill:{paint};fill-opacity:.08"
    width = 1 if place == 0 else 2.2
    style = f"{fill};stroke:{paint};stroke-width:{width};stroke-linejoin:round"
    return element("path", d="".join(path), style=style)


def _legend(names: Sequence[str], frame: Frame) -> list[str]:
    drawn: list[str] = []
    x = frame.left
    for place, name in enumerate(names):
        paint = color(_paint(place))
        opacity = 0.35 if place == 0 else 0.08
        style = f"fill:{paint};fill-opacity:{opacity};stroke:{paint};stroke-width:2"
        drawn.append(element("rect", x=x, y=23, width=12, height=12, rx=2, style=style))
        drawn.append(text(x + 18, 29, name, weight=500))
        x += 18 + text_width(name) + 18
    return drawn
