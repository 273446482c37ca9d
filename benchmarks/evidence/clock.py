"""Processor time by phase, without what is nobody's cost."""

import contextlib
import time
from collections.abc import Generator

__all__ = ["Clock"]


class Clock:
    """Processor time of this process, which can be stopped.

    >>> clock = Clock()
    >>> with clock.phase("train"), clock.off():
    ...     _ = sum(range(100_000))
    >>> clock.by_phase()["train"] < 1e-3
    True
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin at 0."""
        self._began = time.process_time()
        self._off = 0.0
        self._stopped: float | None = None
        self._phases: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Time since the start, without what was off the clock."""
        now = time.process_time() if self._stopped is None else self._stopped
        return now - self._began - self._off

    @contextlib.contextmanager
    def off(self) -> Generator[None]:
        """Stop the clock for a block."""
        self._stopped = time.process_time()
        try:
            yield
        finally:
            self._off += time.process_time() - self._stopped
            self._stopped = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Count a block as a phase; phases must not be nested."""
        began = self.seconds
        try:
            yield
        finally:
            self._phases[name] = self._phases.get(name, 0.0) + self.seconds - began

    def by_phase(self) -> dict[str, float]:
        """Give the time of each phase, what is left as "select", and all together as "all"."""
        whole = self.seconds
        return {"all": whole, **self._phases, "select": whole - sum(self._phases.values())}
