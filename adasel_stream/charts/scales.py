"""From values to pixels, and numbers as people write them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Scale", "number", "significant", "span", "spread", "ticks"]


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight line from values to pixels.

    >>> Scale(0, 10, 100, 200)(5)
    150.0
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def span(values: Iterable[float], *, margin: float = 0.0) -> tuple[float, float]:
    """Return a range that holds every finite value and is never empty.

    Args:
        values: any numbers; those that are not finite are left out.
        margin: share of the range to add at both ends, at least 0.

    >>> span([1.0, 3.0, math.nan], margin=0.5), span([2.0]), span([])
    ((0.0, 4.0), (1.5, 2.5), (0.0, 1.0))
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        return low - 0.5, high + 0.5
    extra = margin * (high - low)
    return low - extra, high + extra


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers within a range.

    >>> ticks(0.31, 0.52), ticks(0, 336_776, 4)
    ([0.35, 0.4, 0.45, 0.5], [0.0, 100000.0, 200000.0, 300000.0])
    """
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def number(value: float, among: Iterable[float] = ()) -> str:
    """Write a tick, with as many decimals as the finest of its neighbours needs.

    >>> number(0.4, [0.35, 0.4]), number(100_000), number(2.5e6), number(0), number(2e-6)
    ('0.40', '100k', '2.5M', '0', '2e-6')
    """
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+", "e")
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if name == 'k' else unit):g}{name}"
    decimals = max((len(f"{one:.10g}".partition(".")[2]) for one in [value, *among]), default=0)
    return f"{value:,.{min(decimals, 6)}f}"


def significant(value: float, digits: int = 3) -> str:
    """Write a measured value with so many significant digits.

    >>> significant(0.40217), significant(12.345), significant(1234.5), significant(math.nan)
    ('0.402', '12.3', '1,234', 'n/a')
    >>> significant(-2.0e9), significant(3e-7)
    ('-2G', '3e-7')
    """
    if not math.isfinite(value):
        return "n/a"
    if abs(value) >= 1e7:
        return number(float(f"{value:.{digits}g}"))
    if value == 0 or abs(value) < 1e-4:
        return f"{value:.{digits}g}".replace("e-0", "e-")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def spread(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart so that neighbours are at least `gap` from each other.

    Args:
        wanted: where each label would like to be, any order.
        gap: least distance in pixels.
        low: first pixel that may be used.
        high: last pixel that may be used; exceeded only if there are too many labels.

    Returns:
        A place for each label, in the order given.

    >>> spread([10, 12, 50], 15, 0, 100)
    [10, 25, 50]
    """
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = list(wanted)
    floor = low
    for one in order:
        placed[one] = max(placed[one], floor)
        floor = placed[one] + gap
    ceiling = high
    for one in reversed(order):  # push back what ran over the end
        placed[one] = min(placed[one], ceiling)
        ceiling = placed[one] - gap
    return placed
