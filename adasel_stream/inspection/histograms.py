"""Histograms as text: where their cells end, what these are called, and bars for them."""

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Final

import numpy as np

from adasel_stream.inspection.sketch import Sketch
from adasel_stream.inspection.wording import age_words, bar, figure, share_words
from adasel_stream.record.evicted import EVICTED_AGE_BOUNDS_S

__all__ = ["age_lines", "cells", "loss_bounds", "loss_lines"]

_STEPS: Final = 10
_DECADES: Final = 3
_BAR: Final = 24


def loss_bounds(low: float, high: float) -> list[float]:
    """Return bounds of cells, of equal ratios for losses from 0 up, of equal widths for others.

    Args:
        low: a loss that few are below.
        high: a loss that few are above, at least `low`.

    Returns:
        At most 11 bounds of three digits, ascending. Ratios reach down at most a factor of 1,000.

    >>> loss_bounds(0.1, 10)[::5], loss_bounds(-1, 1)[::5], loss_bounds(2, 2)
    ([0.1, 1.0, 10.0], [-1.0, 0.0, 1.0], [2.0])
    """
    if low >= 0 < high:
        bounds = np.geomspace(max(low, high / 10**_DECADES), high, _STEPS + 1)
    else:
        bounds = np.linspace(low, high, _STEPS + 1)
    return sorted({float(f"{bound:.3g}") for bound in bounds})


def cells(sketch: Sketch, bounds: Sequence[float]) -> list[int]:
    """Count the values below the first bound, between any two, and from the last on.

    >>> sketch = Sketch()
    >>> sketch.add(np.array([0.5, 1.0, 7.0], np.float32))
    >>> cells(sketch, [1.0, 2.0])
    [1, 1, 1]
    """
    return [int(count) for count in np.diff([0, *sketch.below(bounds), sketch.size])]


def loss_lines(sketches: Sequence[Sketch], bounds: Sequence[float]) -> list[list[str]]:
    """Draw several histograms side by side, for `aligned`: a label, then bar and share of each."""
    named = list(map(figure, bounds))
    between = [f"{low} to {high}" for low, high in pairwise(named)]
    labels = [f"below {named[0]}", *between, f"from {named[-1]}"]
    columns = [_drawn(cells(sketch, bounds)) for sketch in sketches]
    return [[label, *chain(*row)] for label, *row in zip(labels, *columns, strict=True)]


def age_lines(counts: Sequence[int]) -> list[list[str]]:
    """Draw a histogram of ages, without empty cells at its ends.

    Args:
        counts: as `EvictedAges.counts`.

    >>> age_lines([0, 0, 1, 0, 1, 0, 0, 0, 0])[0][0]
    'up to 60 s'
    """
    words = [age_words(bound_s) for bound_s in EVICTED_AGE_BOUNDS_S]
    labels = [*(f"up to {word}" for word in words), f"over {words[-1]}"]
    used = np.flatnonzero(counts)
    lines = [[label, *cell] for label, cell in zip(labels, _drawn(counts), strict=True)]
    return lines[used[0] : used[-1] + 1] if len(used) else []


def _drawn(counts: Sequence[int]) -> list[list[str]]:
    whole, longest = sum(counts), max(counts)
    return [[bar(count, longest, _BAR).ljust(_BAR), share_words(count, whole)] for count in counts]
