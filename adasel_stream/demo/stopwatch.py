"""Time of one contestant alone, while several take turns in one thread."""

import time

__all__ = ["Stopwatch"]


class Stopwatch:
    """A clock that stands still outside its `with` blocks.

    It counts processor seconds of this thread, in which all training and choosing is done, so
    that arms are timed alike on a machine that others use as well.

    >>> watch = Stopwatch()
    >>> before = watch()
    >>> with watch:
    ...     work = sum(range(10_000))
    ...     watch() > before
    True
    """

    def __init__(self) -> None:
        """Stand at zero."""
        self._held = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        """Give the seconds that it ran so far."""
        running = 0.0 if self._since is None else time.thread_time() - self._since
        return self._held + running

    def __enter__(self) -> None:
        """Run."""
        self._since = time.thread_time()

    def __exit__(self, *_: object) -> None:
        """Stand still."""
        self._held = self()
        self._since = None
