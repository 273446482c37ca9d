"""Where the time of the training thread goes."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType

__all__ = ["PhaseClock"]


class PhaseClock:
    """Charge every moment since construction to exactly one phase.

    A phase inside another one takes its time from the outer one, and what no phase claims
    goes to `idle`, so that the phases sum to the wall time. For one thread: the one that
    trains. Entering and leaving a phase cost about a microsecond together.

    Args:
        names: the phases, `idle` among them.
        idle: the phase outside all others.
        clock: monotonic time in seconds.

    Raises:
        ValueError: if `idle` is not among `names`.

    >>> now = iter([0.0, 1.0, 5.0, 7.0])
    >>> phases = PhaseClock(["train", "other"], idle="other", clock=lambda: next(now))
    >>> with phases.phase("train"):
    ...     pass
    >>> phases.settle()
    >>> phases.seconds
    {'train': 4.0, 'other': 3.0}
    """

    __slots__ = ("_clock", "_since", "_spans", "_stack", "seconds")

    def __init__(
        self,
        names: Sequence[str],
        *,
        idle: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock in the idle phase."""
        if idle not in names:
            raise ValueError(f"idle must be one of {list(names)}, got {idle!r}")
        self.seconds: dict[str, float] = dict.fromkeys(names, 0.0)
        """Seconds charged to each phase so far; the phase that runs is charged when it ends,
        when another begins inside it, or by `settle`."""
        self._spans = {name: _Span(self, name) for name in names}
        self._stack = [idle]
        self._clock = clock
        self._since = clock()

    def phase(self, name: str) -> "_Span":
        """Return a context that charges its time to `name`.

        Raises:
            ValueError: if `name` is no declared phase.
        """
        try:
            return self._spans[name]
        except KeyError:
            raise ValueError(f"phase must be one of {list(self._spans)}, got {name!r}") from None

    def settle(self) -> None:
        """Charge the phase that runs up to now; call it in the thread that trains."""
        now = self._clock()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def enter(self, name: str) -> None:
        """Begin a phase, where a context does not fit; pair it with `leave`."""
        self.settle()
        self._stack.append(name)

    def leave(self, name: str) -> None:
        """End the innermost phase of this name."""
        self.settle()
        if self._stack[-1] == name:
            self._stack.pop()
            return
        # A generator left half-way closes its phase after a later one has begun.
        place = len(self._stack) - 1 - self._stack[::-1].index(name)
        del self._stack[place]


class _Span:
    """One phase as a context; made once, entered as often as wanted."""

    __slots__ = ("_name", "_phases")

    def __init__(self, phases: PhaseClock, name: str) -> None:
        self._phases = phases
        self._name = name

    def __enter__(self) -> None:
        self._phases.enter(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._phases.leave(self._name)
