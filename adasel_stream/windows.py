"""How many candidate batches are chosen from together.

Parameters are frozen between two updates, so all candidates that come in between may be compared
with each other: the more there are, the better the choice, and the less its fixed cost a row. A
window of as many as make one emitted batch holds no batch back for longer than its update takes to
fill.
"""

import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Final

__all__ = ["MOST_BYTES", "gather", "window_of"]

_log = logging.getLogger(__name__)

MOST_BYTES: Final = 1 << 30
"""What the candidates of a window may take, and what their last layer may, in bytes."""

_LARGEST: Final = 64
"""More candidate batches are only held together where a user asks for it."""


def window_of(window: int | None, *, wide: bool) -> int | None:
    """Check what a user asked for, and say how many batches make a window, None for by their rows.

    Args:
        window: at least 1, or None for what the policy does of itself.
        wide: whether the policy chooses from many batches as one, where nothing else is asked for.

    Raises:
        ValueError: a window of less than 1.
        TypeError: a window that is no whole number.

    >>> window_of(None, wide=False), window_of(None, wide=True), window_of(3, wide=True)
    (1, None, 3)
    """
    if window is None:
        return None if wide else 1
    if not isinstance(window, int) or isinstance(window, bool):
        raise TypeError(f"window must be a whole number, got {type(window).__name__}")
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    return window


def gather(
    take: Callable[[], tuple[int, int]],
    *,
    window: int | None,
    batch_size: int | None,
    sampling_rate: float,
) -> None:
    """Take candidate batches until a window is full.

    Args:
        take: takes the next candidate batch and says how many rows it has, and bytes; what it
            raises passes through.
        window: batches of a window, or None for as many as one emitted batch is chosen from, as
            long as they are no more than 64 and take no more than `MOST_BYTES`.
        batch_size: rows of an emitted batch, or None for those of the first candidate batch.
        sampling_rate: in (0, 1].

    >>> sizes = iter([(2, 16)] * 9)
    >>> gather(lambda: next(sizes), window=None, batch_size=4, sampling_rate=0.5)
    >>> len(list(sizes))
    5
    """
    rows = wanted = held = 0
    for _ in range(window or _LARGEST):
        more, size = take()
        rows, held = rows + more, held + size
        wanted = wanted or math.ceil(round((batch_size or rows) / sampling_rate, 6))
        if window is None and rows >= wanted:
            return
        if window is None and held >= MOST_BYTES:
            break
    else:
        if window is not None or not rows:
            return
    _log_once(
        f"more than {_LARGEST} batches" if held < MOST_BYTES else f"{MOST_BYTES / 1e9:.1f} GB"
    )


@cache
def _log_once(much: str) -> None:
    _log.warning(
        "the candidates of one emitted batch take %s, so that fewer of them are chosen from "
        "together; pass window= to hold so many candidate batches all the same",
        much,
    )
