"""What surrounds every chart: size, grid, axes, labels at the right edge."""

from collections.abc import Sequence
from dataclasses import dataclass

from adasel_stream.charts.scales import Scale, number, spread, ticks
from adasel_stream.charts.svg import FONT, color, element, text, text_width

__all__ = ["EndLabel", "Frame", "end_labels", "label_margin"]

_LABEL_GAP = 16.0


@dataclass(frozen=True, slots=True)
class EndLabel:
    """A name beside the right end of what it names.

    Attributes:
        y: pixel it belongs to.
        name: what it says.
        value: last value as text, may be empty.
        paint: number of the series' colour.
    """

    y: float
    name: str
    value: str
    paint: int


@dataclass(frozen=True, slots=True)
class Frame:
    """The plot's rectangle inside an image, in pixels.

    >>> frame = Frame(width=400, height=200, left=40, right=20)
    >>> frame.drawing("empty", []).startswith("<svg")
    True
    """

    width: float
    height: float
    left: float = 52
    right: float = 24
    top: float = 30
    bottom: float = 44

    @property
    def x_end(self) -> float:
        """Right edge of the plot."""
        return self.width - self.right

    @property
    def y_end(self) -> float:
        """Lower edge of the plot."""
        return self.height - self.bottom

    def x_scale(self, low: float, high: float) -> Scale:
        """Return the scale of the horizontal axis."""
        return Scale(low, high, self.left, self.x_end)

    def y_scale(self, low: float, high: float) -> Scale:
        """Return the scale of the vertical axis."""
        return Scale(low, high, self.y_end, self.top)

    def y_axis(self, scale: Scale, label: str, unit: str = "") -> list[str]:
        """Draw horizontal grid lines, their values, and the axis's name above them."""
        factor = 100 if unit == "%" else 1
        marks = ticks(scale.low * factor, scale.high * factor, 4)
        drawn = [text(0, 8, label, ink="muted", weight=500)]
        for mark in marks:
            y = scale(mark / factor)
            drawn.append(self._grid(self.left, self.x_end, y, y))
            shown = number(mark, marks) + ("\u202f%" if unit == "%" else "")
            drawn.append(text(self.left - 8, y, shown, ink="muted", anchor="end", size=11.5))
        return drawn

    def x_axis(self, scale: Scale, label: str) -> list[str]:
        """Draw the base line, the ticks below it, and the axis's name at its right end."""
        marks = ticks(scale.low, scale.high, 6 if self.width > 600 else 4)
        names = [number(mark, marks) for mark in marks]
        return self.x_marks([scale(mark) for mark in marks], names, label)

    def x_marks(self, places: Sequence[float], names: Sequence[str], label: str) -> list[str]:
        """Draw the base line with given ticks, and the axis's name."""
        drawn = [self._grid(self.left, self.x_end, self.y_end, self.y_end, "muted")]
        for x, shown in zip(places, names, strict=True):
            drawn.append(self._grid(x, x, self.y_end, self.y_end + 4, "muted"))
            drawn.append(text(x, self.y_end + 14, shown, ink="muted", anchor="middle", size=11.5))
        drawn.append(
            text(self.x_end, self.y_end + 34, label, ink="muted", anchor="end", weight=500)
        )
        return drawn

    def clipped(self, *drawn: str) -> str:
        """Cut off what leaves the plot, without an id that another chart could share."""
        width, height = self.x_end - self.left, self.y_end - self.top
        view = f"{self.left:g} {self.top:g} {width:g} {height:g}"
        return element(
            "svg",
            *drawn,
            x=self.left,
            y=self.top,
            width=width,
            height=height,
            viewBox=view,
            overflow="hidden",
        )

    def drawing(self, name: str, drawn: Sequence[str]) -> str:
        """Return the whole image.

        Args:
            name: what a screen reader says.
            drawn: markup of the parts, back to front.
        """
        return element(
            "svg",
            *drawn,
            "",
            viewBox=f"0 0 {self.width:g} {self.height:g}",
            width=self.width,
            height=self.height,
            role="img",
            aria_label=name,
            font_family=FONT,
            style="max-width:100%;height:auto;font-variant-numeric:tabular-nums",
        )

    @staticmethod
    def _grid(x1: float, x2: float, y1: float, y2: float, ink: str = "grid") -> str:
        style = f"stroke:{color(ink)};stroke-width:1"
        return element("line", x1=x1, x2=x2, y1=y1, y2=y2, style=style)


def end_labels(frame: Frame, labels: Sequence[EndLabel]) -> list[str]:
    """Draw names at the right edge of the plot, moved apart, each tied to its place."""
    places = spread([label.y for label in labels], _LABEL_GAP, frame.top, frame.y_end)
    drawn: list[str] = []
    for label, y in zip(labels, places, strict=True):
        x = frame.x_end
        line = f"M{x + 3:.1f} {label.y:.1f}L{x + 12:.1f} {y:.1f}h6"
        style = f"fill:none;stroke:{color(label.paint)};stroke-width:2"
        drawn.append(element("path", d=line, style=style))
        drawn.append(text(x + 23, y, label.name, weight=500, after=label.value))
    return drawn


def label_margin(names: Sequence[str], values: Sequence[str]) -> float:
    """Return how much room names and values need at the right edge, in pixels."""
    pairs = zip(names, values, strict=True)
    widest = max((text_width(name) + text_width(value) for name, value in pairs), default=0)
    return 23 + widest + 12
