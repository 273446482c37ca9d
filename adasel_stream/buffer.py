"""Selected rows until a batch is full: first in, first out, nothing lost.

Algorithm 2 waits until |C| = |B|; here a batch leaves as soon as `batch_size` rows are there,
and the rest is carried (docs/algorithm.md).
"""

from collections import deque
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from adasel_stream.errors import BatchError
from adasel_stream.trees import Leaf, Leaves, slots_for, take_rows

__all__ = ["Buffer"]


class Buffer:
    """Rows of flattened batches, waiting to be emitted `batch_size` at a time.

    Args:
        batch_size: rows of every emitted batch, at least 1.

    >>> buffer = Buffer(2)
    >>> buffer.push({"x": torch.tensor([1, 2, 3, 4])}, torch.tensor([3, 0, 1]))
    >>> buffer.pop(), buffer.pop(), len(buffer)
    ({'x': tensor([4, 1])}, None, 1)
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._full: deque[Leaves] = deque()
        self._filling: Leaves | None = None
        self._filled = 0

    def __len__(self) -> int:
        """Count the rows that wait."""
        return len(self._full) * self.batch_size + self._filled

    def push(
        self,
        leaves: Leaves,
        indices: Tensor,
        chosen: Leaves | None = None,
        void: Tensor | None = None,
    ) -> None:
        """Copy rows in; each row is copied once, straight to its place in an emitted batch.

        Args:
            leaves: a flattened candidate batch, b rows each.
            indices: which rows, in the order they are to leave, shape (n,), int64, on the device
                of the tensors among the leaves.
            chosen: further columns with one row per index already, n rows each.
            void: slots to fill with zeros instead, shape (n,), bool, or None for none.

        Raises:
            BatchError: the leaves are not those of the rows that wait.
        """
        columns = {**leaves, **(chosen or {})}
        every = torch.arange(indices.shape[0], device=indices.device)
        on_host: Tensor | None = None
        taken = 0
        while taken < indices.shape[0]:
            filling = self._slots(columns)
            room = min(self.batch_size - self._filled, indices.shape[0] - taken)
            part = slice(taken, taken + room)
            for path, leaf in columns.items():
                rows = indices if path in leaves else every
                if not (isinstance(leaf, Tensor) and leaf.device == indices.device):
                    on_host = indices.cpu() if on_host is None else on_host
                    rows = on_host
                take_rows(leaf, rows[part], filling[path], self._filled)
                if void is not None:
                    _clear(filling[path], self._filled, void[part])
            taken += room
            self._filled += room
            if self._filled == self.batch_size:
                self._full.append(filling)
                self._filling, self._filled = None, 0

    def pop(self) -> Leaves | None:
        """Take the oldest full batch out, or None when fewer than `batch_size` rows wait."""
        return self._full.popleft() if self._full else None

    def flush(self) -> Leaves | None:
        """Take out the rows of the last, short batch, or None when there are none."""
        if self._filling is None or self._filled == 0:
            return None
        rest = {path: _rows(leaf, 0, self._filled) for path, leaf in self._filling.items()}
        self._filling, self._filled = None, 0
        return rest

    def state_dict(self) -> dict[str, Any]:
        """Copy out every waiting row: full batches, then the part of the next."""
        part = self._filling or {}
        return {
            "batch_size": self.batch_size,
            "full": [dict(leaves) for leaves in self._full],
            "part": {path: _rows(leaf, 0, self._filled) for path, leaf in part.items()},
            "filled": self._filled,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device | None = None) -> None:
        """Wait with the rows of `state`, on `device` where they are tensors.

        Raises:
            ValueError: the state belongs to another batch size.
        """
        if state["batch_size"] != self.batch_size:
            raise ValueError(
                f"the snapshot emits batches of {state['batch_size']} rows, this loader of "
                f"{self.batch_size}; construct the loader with the snapshot's batch_size"
            )
        self._full = deque(
            {path: _restored(leaf, device) for path, leaf in leaves.items()}
            for leaves in state["full"]
        )
        self._filling, self._filled = None, int(state["filled"])
        if self._filled:
            self._filling = {}
            for path, leaf in state["part"].items():
                rows = _restored(leaf, device)
                slots = slots_for(rows, self.batch_size)
                slots[: self._filled] = rows  # type: ignore[index,assignment]
                self._filling[path] = slots

    def _slots(self, leaves: Leaves) -> Leaves:
        if self._filling is None:
            self._filling = {
                path: slots_for(leaf, self.batch_size) for path, leaf in leaves.items()
            }
        if self._filling.keys() != leaves.keys():
            raise BatchError(
                f"a batch with leaves {sorted(leaves)} follows one with {sorted(self._filling)}; "
                "all batches of a stream must have the same structure"
            )
        for path, leaf in leaves.items():
            _check_alike(path, leaf, self._filling[path])
        return self._filling


def _check_alike(path: str, leaf: Leaf, slots: Leaf) -> None:
    if isinstance(leaf, list) or isinstance(slots, list):
        alike = isinstance(leaf, list) and isinstance(slots, list)
    else:
        alike = leaf.shape[1:] == slots.shape[1:] and leaf.dtype == slots.dtype
    if not alike:
        raise BatchError(
            f"leaf batch{path} is {_describe(leaf)}, rows before it were {_describe(slots)}; every "
            "batch of a stream must have the same shapes and dtypes (pad, or bucket upstream)"
        )


def _describe(leaf: Leaf) -> str:
    if isinstance(leaf, list):
        return "a list"
    return f"{type(leaf).__name__} rows of shape {tuple(leaf.shape[1:])}, {leaf.dtype}"


def _clear(slots: Leaf, start: int, void: Tensor) -> None:
    if isinstance(slots, Tensor) and slots.device == void.device:
        rows = slots[start : start + void.shape[0]]
        rows.masked_fill_(void.reshape(-1, *[1] * (rows.ndim - 1)), 0)


def _rows(leaf: Leaf, start: int, stop: int) -> Leaf:
    rows = leaf[start:stop]
    return (
        rows
        if isinstance(rows, list)
        else cast("Leaf", rows.clone() if isinstance(rows, Tensor) else rows.copy())
    )


def _restored(leaf: Leaf, device: torch.device | None) -> Leaf:
    if isinstance(leaf, Tensor):
        return leaf.to(device) if device is not None else leaf.clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else list(leaf)
