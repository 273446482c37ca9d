"""Rows of mixed candidate batches until a whole batch of one kind is there."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from adasel_stream.buffer import Buffer
from adasel_stream.rows import Leaves

__all__ = ["Gathered", "Gathering"]


class Gathered(NamedTuple):
    """Candidates with what the record held of them.

    Attributes:
        leaves: flattened candidates, b rows each.
        ids: int64, shape (b,).
        recorded: float32, shape (b, 2): the loss, NaN where unknown, and its age in seconds.
    """

    leaves: Leaves
    ids: npt.NDArray[np.int64]
    recorded: npt.NDArray[np.float32]


class Gathering:
    """Rows of one kind, first in, first out.

    Args:
        rows: of the candidate batch that is gathered, at least 1.

    >>> gathering = Gathering(2)
    >>> ids, recorded = np.arange(3), np.zeros((3, 2), np.float32)
    >>> gathering.push(Gathered({"x": torch.arange(3)}, ids, recorded), np.array([0, 2]))
    >>> gathering.pop().ids.tolist(), gathering.pop() is None
    ([0, 2], True)
    """

    def __init__(self, rows: int) -> None:
        self._buffer = Buffer(rows)
        # these never leave the host, while the buffer's rows may lie on a device
        self._ids = np.empty(0, np.int64)
        self._recorded = np.empty((0, 2), np.float32)

    def __len__(self) -> int:
        """Count the rows that wait."""
        return len(self._buffer)

    def push(self, candidates: Gathered, where: npt.NDArray[np.int64]) -> None:
        """Add the rows that `where` names, shape (n,)."""
        self._buffer.push(candidates.leaves, torch.from_numpy(where))
        self._ids = np.concatenate([self._ids, candidates.ids[where]])
        self._recorded = np.concatenate([self._recorded, candidates.recorded[where]])

    def pop(self, *, rest: bool = False) -> Gathered | None:
        """Take out a whole batch, or with `rest` whatever waits; None where there is none."""
        waiting = len(self)
        leaves = self._buffer.pop() or (self._buffer.rest() if rest else None)
        if leaves is None:
            return None
        rows = waiting - len(self)
        taken = Gathered(leaves, self._ids[:rows], self._recorded[:rows])
        self._ids, self._recorded = self._ids[rows:], self._recorded[rows:]
        return taken

    def state_dict(self) -> dict[str, Any]:
        """Copy out every row that waits."""
        return {
            "buffer": self._buffer.state_dict(),
            "ids": torch.from_numpy(self._ids.copy()),
            "recorded": torch.from_numpy(self._recorded.copy()),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], device: torch.device | None) -> Self:
        """Wait with the rows of `state`, tensors on `device` or where they came from."""
        gathering = cls(state["buffer"]["batch_size"])
        gathering._buffer.load_state_dict(state["buffer"], device)
        gathering._ids = state["ids"].numpy()
        gathering._recorded = state["recorded"].numpy()
        return gathering
