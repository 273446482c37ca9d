"""Counts that other objects keep, read now and then."""

import threading
from collections.abc import Mapping
from typing import Protocol

__all__ = ["CountsErrors", "CountsLookups", "Growth"]


class CountsLookups(Protocol):
    """What `Metrics.observe_record` reads; `LossRecord` is one."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Monotone counts: hits, misses, stale, evicted, dropped, rejected."""
        ...

    @property
    def capacity(self) -> int:
        """Number of ids that fit."""
        ...

    @property
    def record_bytes(self) -> int:
        """Memory in use."""
        ...

    def __len__(self) -> int:
        """Return the number of ids held."""
        ...


class CountsErrors(Protocol):
    """What `Metrics.observe_input` reads; the connectors' sources are such."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Monotone counts; of these skipped_samples, skipped_shards and retries are read."""
        ...


class Growth:
    """How much each of several counts grew since it was last read.

    >>> growth = Growth()
    >>> growth.of("hits", 5), growth.of("hits", 7), growth.of("hits", 1)
    (5, 2, 1)
    """

    def __init__(self) -> None:
        """Start with every count at zero."""
        self.lock = threading.Lock()
        """Held by whoever reads counts and adds their growth, so that two scrapes at once
        do not add it twice."""
        self.last: dict[str, int] = {}

    def of(self, name: str, count: int) -> int:
        """Return by how much `count` grew; one that fell was restarted from zero."""
        before = self.last.get(name, 0)
        self.last[name] = count
        return count - before if count >= before else count
