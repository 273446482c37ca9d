"""Seconds that only go forward."""

from collections.abc import Callable
from typing import Any, Final

from adasel_stream.errors import RecordError

__all__ = ["FIRST_TICK", "Ticks"]

_MAX_TICK: Final = 2**32 - 1


FIRST_TICK: Final = 30 * 86_400
"""A month of seconds: losses older than the record itself have ticks, too."""


class Ticks:
    """Count whole seconds from `FIRST_TICK` while the clock may jump.

    A step backwards counts as no time passed, and time goes on from there; were ticks the
    difference to a fixed beginning, a clock that ran ahead once would stop them until it is due.

    Args:
        clock: returns seconds.

    Attributes:
        last: the tick that `now` returned last, in [1, 2**32).

    >>> readings = iter([50.0, 51.5, 10.0, 11.0])
    >>> ticks = Ticks(lambda: next(readings))
    >>> [ticks.now() - FIRST_TICK for _ in range(3)]
    [1, 1, 2]
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._read_s = float(clock())
        self._elapsed_s = float(FIRST_TICK - 1)

    @property
    def last(self) -> int:
        """The tick of the last reading."""
        # 136 years of seconds fit; a clock that jumps further must not wrap ages
        return int(self._elapsed_s) + 1 if self._elapsed_s < _MAX_TICK else _MAX_TICK

    def now(self) -> int:
        """Read the clock and return the current tick, in [1, 2**32)."""
        read_s = float(self._clock())
        if read_s > self._read_s:
            self._elapsed_s += read_s - self._read_s
        self._read_s = read_s
        return self.last

    def state_dict(self) -> dict[str, float]:
        """Describe the position in time."""
        return {"read_s": self._read_s, "elapsed_s": self._elapsed_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the time since then has passed, if the clock says so.

        Raises:
            RecordError: if the state is damaged.
        """
        read_s, elapsed_s = state.get("read_s"), state.get("elapsed_s")
        if not (isinstance(read_s, float) and isinstance(elapsed_s, float) and elapsed_s >= 0):
            raise RecordError("the state is damaged: its time is no number of seconds")
        self._read_s, self._elapsed_s = read_s, elapsed_s
