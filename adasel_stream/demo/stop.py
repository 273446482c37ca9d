"""Signals that ask a run to stop: it goes on to a point where it can be saved."""

import signal
from types import FrameType
from typing import Any

__all__ = ["Stop"]


class Stop:
    """Notice SIGINT and SIGTERM inside a `with` block instead of dying of them.

    The second signal acts as it would have without this, for those who cannot wait.

    >>> with Stop() as stop:
    ...     signal.raise_signal(signal.SIGINT)
    ...     stop.asked, stop.exit_code
    (True, 130)
    """

    def __init__(self) -> None:
        """Nothing was asked yet."""
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """What a process that ends as asked returns: 130 after Ctrl-C, as shells expect.

        After SIGTERM it is 0: who manages a job wants to know whether it left in order.
        """
        return 128 + signal.SIGINT if self._signal == signal.SIGINT else 0

    def _notice(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> "Stop":
        """Take the signals over."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        self._restore()
