"""What a feed needs of a loss record."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Accepting", "Cursor", "ServedRecord"]

Cursor = tuple[int, int]
"""How far a writer's segments were applied: the sequence number that is due, and its rows."""


class ServedRecord(Protocol):
    """A loss record that serving processes feed."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held while rows are applied and cursors move, so that a snapshot has both or neither."""
        ...

    @property
    def cursors(self) -> dict[str, Cursor]:
        """By writer, how far its segments were applied; changed in place, kept with the rows."""
        ...

    @property
    def saved_cursors(self) -> Mapping[str, Cursor] | None:
        """The cursors to which the record may go back, at the farthest; None if to none."""
        ...

    @property
    def copying(self) -> bool:
        """Whether a snapshot is being copied, during which no row may be applied."""
        ...

    @property
    def pending(self) -> object | None:
        """Where predictions wait for labels, or None."""
        ...

    @property
    def update(self) -> "Accepting":
        """Records losses, each with the version that gave it and its age in seconds."""
        ...

    @property
    def expect(self) -> "Accepting":
        """Keeps predictions until their labels come."""
        ...


class Accepting(Protocol):
    """A method of a record that takes rows."""

    def __call__(
        self,
        ids: npt.NDArray[np.int64],
        values: npt.NDArray[np.float32],
        /,
        *,
        version: npt.NDArray[np.uint16],
        age_s: npt.NDArray[np.float64],
    ) -> None:
        """Take rows, all of shape (n,)."""
        ...
