"""Which rows of loaded segments are applied next, and where the cursors are afterwards."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from adasel_stream.serving.backlog import Loaded
from adasel_stream.serving.segment import ROW, Rows
from adasel_stream.serving.served import Cursor

__all__ = ["Taken", "take"]


@dataclass
class Taken:
    """Rows to apply at once.

    Attributes:
        rows: shape (n,), dtype ROW.
        moves: by writer, its cursor once they have been applied.
        ended: how many segments, the first ones, are then applied to their end.
        missing: segments that were passed over, as a writer's sequence has none of their numbers.
    """

    rows: Rows = field(default_factory=lambda: np.empty(0, ROW))
    moves: dict[str, Cursor] = field(default_factory=dict)
    ended: int = 0
    missing: int = 0


def take(loaded: Iterable[Loaded], cursors: Mapping[str, Cursor], max_rows: int) -> Taken:
    """Take the next rows; nothing that was given is changed.

    Args:
        loaded: segments, next first.
        cursors: how far each writer's segments were applied.
        max_rows: most rows to take, positive.

    >>> taken = take([Loaded("a", 5, np.zeros(3, ROW))], {"a": (4, 7)}, max_rows=2)
    >>> len(taken.rows), taken.moves, taken.ended, taken.missing
    (2, {'a': (5, 2)}, 0, 1)
    """
    taken = Taken()
    parts: list[Rows] = []
    room = max_rows
    for item in loaded:
        if room <= 0:
            break
        cursor = taken.moves.get(item.writer, cursors.get(item.writer))
        sequence, begin = cursor or (item.sequence, 0)
        if sequence != item.sequence:
            taken.missing += item.sequence - sequence
            begin = 0
        part = item.rows[begin : begin + room]
        parts.append(part)
        room -= len(part)
        taken.moves[item.writer] = (item.sequence, begin + len(part))
        if begin + len(part) >= len(item.rows):
            taken.moves[item.writer] = (item.sequence + 1, 0)
            taken.ended += 1
    if parts:
        taken.rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return taken
