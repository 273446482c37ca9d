"""What an engine computes on a record's table, and in which terms."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from adasel_stream.record.known import Known

__all__ = ["Engine", "Outcome", "Stamps", "Tally", "Window"]


class Stamps(NamedTuple):
    """When and by which model losses were computed.

    Attributes:
        now: the record's time, in [1, 2**32).
        ticks: of each row, shape (b,), or of all, shape (1,); uint32, in [1, now].
        versions: model version of each row, shape (b,), or of all, shape (1,); uint16.
    """

    now: int
    ticks: npt.NDArray[np.uint32]
    versions: npt.NDArray[np.uint16]


class Window(NamedTuple):
    """Which losses are not stale.

    Attributes:
        now: the record's time, in [1, 2**32).
        max_age_s: oldest that is known, in [0, 2**32).
        version: current model version, in [0, 2**16).
        max_version_lag: farthest from it, either side, that is known, in [0, 2**15].
    """

    now: int
    max_age_s: int
    version: int
    max_version_lag: int


class Outcome(NamedTuple):
    """What became of a batch.

    Attributes:
        rejected: rows whose loss is not finite.
        evicted: keys that made room.
        dropped: distinct new keys that found none.
    """

    rejected: int
    evicted: int
    dropped: int


class Tally(NamedTuple):
    """How many rows of a lookup were known, stale, and stale by their version alone."""

    hits: int
    stale: int
    stale_version: int


class Engine(Protocol):
    """Computes on one table, under one seed; both engines give the same slots and counts."""

    @property
    def name(self) -> str:
        """Either "numpy" or "numba"."""
        ...

    def update(
        self,
        ids: npt.NDArray[np.int64],
        losses: npt.NDArray[np.float32],
        stamps: Stamps,
        decay: float,
    ) -> Outcome:
        """Record losses, shape (b,), and count evicted ages; see `LossRecord.update`."""
        ...

    def lookup(self, ids: npt.NDArray[np.int64], window: Window) -> tuple[Known, Tally]:
        """Return what the table holds of ids, shape (b,); see `LossRecord.lookup`."""
        ...
