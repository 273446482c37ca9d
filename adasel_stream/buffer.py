"""Selected rows until a batch is full: first in, first out, nothing lost.

Algorithm 2 waits until |C| = |B|; here a batch leaves as soon as `batch_size` rows are there,
and the rest is carried (docs/algorithm.md).
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from adasel_stream.errors import BatchError
from adasel_stream.rows import Leaf, Leaves, clear_rows, copy_rows, put_rows, slots_for, take_rows

__all__ = ["Buffer", "check_batch_size", "kept_at"]

_HOST = torch.device("cpu")

_Kind: TypeAlias = tuple[str, Any, tuple[int, ...]]
"""What a leaf is, its dtype, and the shape of one row."""


class Buffer:
    """Rows of flattened batches, waiting to be emitted `batch_size` at a time.

    Args:
        batch_size: rows of every emitted batch, at least 1.

    Raises:
        TypeError: batch_size is no whole number.
        ValueError: batch_size is less than 1.

    >>> buffer = Buffer(2)
    >>> buffer.push({"x": torch.tensor([1, 2, 3, 4])}, torch.tensor([3, 0, 1]))
    >>> buffer.pop(), buffer.pop(), len(buffer)
    ({'x': tensor([4, 1])}, None, 1)
    """

    def __init__(self, batch_size: int) -> None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool):
            raise TypeError(f"batch_size must be a whole number, got {type(batch_size).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size = batch_size
        self._full: deque[Leaves] = deque()
        self._filling: Leaves = {}
        self._filled = 0
        self._kinds: dict[str, _Kind] = {}

    def __len__(self) -> int:
        """Count the rows that wait."""
        return len(self._full) * self.batch_size + self._filled

    @property
    def full(self) -> bool:
        """Whether a whole batch waits."""
        return bool(self._full)

    def check(self, leaves: Leaves) -> None:
        """Make sure that rows of these leaves can follow the rows that came before.

        Raises:
            BatchError: the leaves have other names, shapes or dtypes.
        """
        kinds = {path: _kind(leaf) for path, leaf in leaves.items()}
        if not self._kinds:
            self._kinds = kinds
        if kinds.keys() != self._kinds.keys():
            raise BatchError(
                f"a batch with leaves {_say_all(kinds)} follows one with "
                f"{_say_all(self._kinds)}; all batches of a stream must have the same structure"
            )
        for path, kind in kinds.items():
            if kind != self._kinds[path]:
                raise BatchError(
                    f"leaf batch{path} is {_say(kind)}, before it was {_say(self._kinds[path])}; "
                    "every batch of a stream must have the same shapes and dtypes (pad, or bucket "
                    "upstream)"
                )

    def push(
        self,
        leaves: Leaves,
        indices: Tensor,
        chosen: Mapping[str, Leaf] | None = None,
        void: Tensor | None = None,
    ) -> None:
        """Copy rows in; each row is copied once, straight to its place in an emitted batch.

        Where leaves stay on the host while `indices` are on a device, such as lists of strings,
        this waits for the indices; leaves on the device, or indices on the host, never make it
        wait.

        Args:
            leaves: a flattened candidate batch, b rows each, as `check` accepts it.
            indices: which rows, in the order they are to leave, shape (n,), int64.
            chosen: further columns with one row per index already, n rows each.
            void: slots to fill with zeros instead, shape (n,), bool, or None for none.
        """
        chosen = chosen or {}
        taken, count = 0, indices.shape[0]
        while taken < count:
            part = slice(taken, min(taken + self.batch_size - self._filled, count))
            filling = self._slots({**leaves, **chosen})
            rows = indices[part]
            at = {rows.device: rows}
            for path, leaf in leaves.items():
                home = leaf.device if isinstance(leaf, Tensor) else _HOST
                if home not in at:
                    at[home] = rows.to(home, non_blocking=home != _HOST)
                take_rows(leaf, at[home], filling[path], self._filled)
            for path, leaf in chosen.items():
                put_rows(leaf[part], filling[path], self._filled)
            if void is not None:
                for slots in filling.values():
                    clear_rows(slots, self._filled, void[part])
            self._filled += part.stop - part.start
            taken = part.stop
            if self._filled == self.batch_size:
                self._full.append(filling)
                self._filling, self._filled = {}, 0

    def pop(self) -> Leaves | None:
        """Take the oldest full batch out, or None when fewer than `batch_size` rows wait."""
        return self._full.popleft() if self._full else None

    def rest(self) -> Leaves | None:
        """Take out all rows that wait for a full batch, or None when there are none."""
        leaves, rows = self._filling, self._filled
        self._filling, self._filled = {}, 0
        return {path: leaf[:rows] for path, leaf in leaves.items()} if rows else None

    def state_dict(self) -> dict[str, Any]:
        """Copy out every waiting row: full batches, then the part of the next."""
        waiting = [*self._full, *([self._filling] if self._filled else [])]
        tensors = {p: t for leaves in waiting for p, t in leaves.items() if isinstance(t, Tensor)}
        return {
            "batch_size": self.batch_size,
            "full": [
                {path: copy_rows(leaf, self.batch_size) for path, leaf in leaves.items()}
                for leaves in self._full
            ],
            "part": {path: copy_rows(leaf, self._filled) for path, leaf in self._filling.items()},
            "filled": self._filled,
            "leaves": list(self._kinds),
            "devices": {path: tensor.device.type for path, tensor in tensors.items()},
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device | None = None) -> None:
        """Wait with the rows of `state`.

        Args:
            state: what `state_dict` returned.
            device: where tensors go; None for the kind of device that they came from.

        Raises:
            ValueError: the state belongs to another batch size.
        """
        check_batch_size(state["batch_size"], self.batch_size)
        homes = {path: kept_at(kind, device) for path, kind in state["devices"].items()}
        self._full = deque(
            {path: _restored(leaf, homes.get(path)) for path, leaf in leaves.items()}
            for leaves in state["full"]
        )
        self._filling, self._filled = {}, int(state["filled"])
        for path, leaf in state["part"].items():
            rows = _restored(leaf, homes.get(path))
            self._filling[path] = slots_for(rows, self.batch_size)
            put_rows(rows, self._filling[path], 0)
        waiting = self._full[0] if self._full else self._filling
        self._kinds = {path: _kind(waiting[path]) for path in state["leaves"] if waiting}

    def _slots(self, leaves: Leaves) -> Leaves:
        if not self._filling:
            self._filling = {
                path: slots_for(leaf, self.batch_size) for path, leaf in leaves.items()
            }
        return self._filling


def check_batch_size(theirs: int, mine: int) -> None:
    """Make sure that a snapshot's batches are as large as this loader's.

    Raises:
        ValueError: they are not.
    """
    if theirs != mine:
        raise ValueError(
            f"the snapshot emits batches of {theirs} rows, this loader of {mine}; construct the "
            "loader with the snapshot's batch_size"
        )


def kept_at(kind: str, device: torch.device | None) -> torch.device:
    """Choose where restored tensors go.

    Args:
        kind: type of the device that they came from, such as "cuda".
        device: where the caller wants them, or None.

    Returns:
        `device`, or else the current device of that type, or the CPU where there is none.

    >>> kept_at("cpu", None)
    device(type='cpu')
    """
    if device is not None:
        return device
    here = torch.accelerator.current_accelerator(check_available=True)
    return torch.device(kind if here is not None and here.type == kind else "cpu")


def _kind(leaf: Leaf) -> _Kind:
    if isinstance(leaf, list):
        return ("a list", None, ())
    name = "a tensor" if isinstance(leaf, Tensor) else "an array"
    return (name, leaf.dtype, tuple(leaf.shape[1:]))


def _say_all(paths: Iterable[str]) -> str:
    return ", ".join(f"batch{path}" for path in sorted(paths)) or "none"


def _say(kind: _Kind) -> str:
    name, dtype, shape = kind
    return name if dtype is None else f"{name} with rows of shape {shape} and dtype {dtype}"


def _restored(leaf: Leaf, home: torch.device | None) -> Leaf:
    if isinstance(leaf, Tensor):
        return leaf.to(home, copy=True)
    return leaf.copy() if isinstance(leaf, np.ndarray) else list(leaf)
