"""Rows of leaves: columns with one row per instance, as tensors, arrays or lists."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream.errors import BatchError

__all__ = [
    "Leaf",
    "Leaves",
    "bytes_of",
    "chosen_rows",
    "clear_rows",
    "copy_rows",
    "joined_rows",
    "place",
    "put_rows",
    "row_count",
    "slots_for",
    "take_rows",
    "usable",
]

Leaf: TypeAlias = Tensor | npt.NDArray[Any] | list[Any]
"""One row per instance along the first dimension; texts and objects always as a list."""

Leaves: TypeAlias = dict[str, Leaf]
"""Leaves by their path in the batch, such as `['x'][0]`."""

_UNSIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def row_count(leaves: Leaves) -> int:
    """Count the rows that all leaves share.

    Raises:
        BatchError: there are no leaves, a leaf has no rows, or two leaves differ.

    >>> row_count({"['x']": torch.zeros(2, 3), "['y']": ["a", "b"]})
    2
    """
    if not leaves:
        raise BatchError("the batch has no tensor, array or list, so there is nothing to select")
    counts: dict[str, int] = {}
    for path, leaf in leaves.items():
        if not isinstance(leaf, list) and leaf.ndim == 0:
            raise BatchError(
                f"leaf batch{path} is a scalar, expected one row per instance; repeat it for each "
                "row or keep it outside the batch"
            )
        counts[path] = len(leaf)
    (first, rows), *others = counts.items()
    for path, count in others:
        if count != rows:
            raise BatchError(
                f"leaf batch{path} has {count} rows, batch{first} has {rows}; every leaf must have "
                "one row per instance (a list of tensors, arrays or tuples counts as a list of "
                "leaves: stack them, or pass them as an array of objects)"
            )
    return rows


def place(leaves: Leaves, device: torch.device) -> Leaves:
    """Move tensors and numeric arrays to a device, without waiting; lists stay on the host."""
    return {path: _place(leaf, device) for path, leaf in leaves.items()}


def slots_for(leaf: Leaf, rows: int) -> Leaf:
    """Make room for `rows` rows like those of `leaf`, on the same device.

    >>> slots_for(["a", "b"], 3)
    [None, None, None]
    """
    if isinstance(leaf, Tensor):
        return leaf.new_empty((rows, *leaf.shape[1:]), requires_grad=False)
    if isinstance(leaf, np.ndarray):
        return np.empty((rows, *leaf.shape[1:]), dtype=leaf.dtype)
    return [None] * rows


def take_rows(leaf: Leaf, indices: Tensor, slots: Leaf, start: int) -> None:
    """Copy the rows of `leaf` named by `indices` into `slots`, from row `start` on.

    Args:
        leaf: b rows.
        indices: shape (n,), int64; for a leaf on the host it must be on the host.
        slots: made by `slots_for`; written in place.
        start: first row to write.

    >>> slots = slots_for(["a", "b", "c"], 2)
    >>> take_rows(["a", "b", "c"], torch.tensor([2]), slots, 1)
    >>> slots
    [None, 'c']
    """
    stop = start + indices.shape[0]
    if isinstance(leaf, Tensor) and isinstance(slots, Tensor):
        rows = _signed(slots)[start:stop]
        torch.index_select(_signed(leaf.detach()), 0, indices, out=rows)
    elif isinstance(leaf, np.ndarray) and isinstance(slots, np.ndarray):
        slots[start:stop] = leaf[indices.numpy()]
    else:
        cast("list[Any]", slots)[start:stop] = [leaf[i] for i in indices.tolist()]


def bytes_of(leaf: Leaf) -> int:
    """Sum up what the entries of a leaf take, of a list its text and bytes.

    >>> bytes_of(torch.zeros(2, 3)), bytes_of([b"abc", "de", None])
    (24, 5)
    """
    if isinstance(leaf, list):
        return sum(len(entry) for entry in leaf if isinstance(entry, bytes | str))
    return leaf.nbytes


def chosen_rows(leaves: Leaves, indices: Tensor) -> Leaves:
    """Copy the rows that `indices` names, shape (n,), int64, on the host, out of every leaf.

    >>> chosen_rows({"['t']": ["a", "b", "c"]}, torch.tensor([2, 0]))
    {"['t']": ['c', 'a']}
    """
    taken: Leaves = {}
    for path, leaf in leaves.items():
        where = indices
        if isinstance(leaf, Tensor):
            where = indices.to(leaf.device, non_blocking=True)
        taken[path] = slots_for(leaf, indices.shape[0])
        take_rows(leaf, where, taken[path], 0)
    return taken


def joined_rows(parts: Sequence[Leaves]) -> Leaves:
    """Put rows of the same leaves one after the other.

    >>> joined_rows([{"['t']": ["a"]}, {"['t']": ["b", "c"]}])
    {"['t']": ['a', 'b', 'c']}
    """
    if len(parts) == 1:
        return parts[0]
    return {path: _joined([part[path] for part in parts]) for path in parts[0]}


def put_rows(leaf: Leaf, slots: Leaf, start: int) -> None:
    """Copy all rows of `leaf` into `slots`, from row `start` on.

    >>> slots = slots_for(torch.zeros(1), 3).zero_()
    >>> put_rows(torch.tensor([4.0, 5.0]), slots, 1)
    >>> slots
    tensor([0., 4., 5.])
    """
    slots[start : start + len(leaf)] = leaf  # type: ignore[assignment] # both of one kind


def clear_rows(slots: Leaf, start: int, void: Tensor) -> None:
    """Fill the rows from `start` on that `void` marks, shape (n,), bool, with zeros.

    Leaves that are not tensors on the device of `void` keep what they have.
    """
    if isinstance(slots, Tensor) and slots.device == void.device:
        rows = _signed(slots)[start : start + void.shape[0]]
        rows.masked_fill_(void.reshape(-1, *[1] * (rows.ndim - 1)), 0)


def copy_rows(leaf: Leaf, stop: int) -> Leaf:
    """Copy the first `stop` rows.

    >>> copy_rows(["a", "b", "c"], 2)
    ['a', 'b']
    """
    rows = leaf[:stop]
    if isinstance(rows, Tensor):
        return rows.clone()
    return rows.copy()


def usable(device: torch.device | str) -> torch.device:
    """Name a device, and make sure that this machine has it.

    Raises:
        ValueError: it has not.

    >>> usable("cpu")
    device(type='cpu')
    """
    try:
        named = torch.device(device)
        torch.empty(0, device=named)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(
            f"device={device!r} cannot be used here, where torch has {_devices()}; name one of "
            "these, or None to leave batches where they are"
        ) from error
    return named


def _devices() -> str:
    """Name the kinds of devices that are there."""
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "'cpu' alone" if there is None else f"'cpu' and {there.type!r}"


def _joined(pieces: list[Any]) -> Leaf:
    if isinstance(pieces[0], Tensor):
        return torch.cat(pieces)
    if isinstance(pieces[0], np.ndarray):
        array: npt.NDArray[Any] = np.concatenate(pieces)
        return array
    return list(chain.from_iterable(pieces))


def _place(leaf: Leaf, device: torch.device) -> Leaf:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        # torch takes no read-only memory and no foreign byte order
        native = np.require(leaf, leaf.dtype.newbyteorder("="), ["C", "W"])
        leaf = torch.from_numpy(native)
    return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf


def _signed(tensor: Tensor) -> Tensor:
    # torch moves rows of the wider unsigned types only as the signed ones of the same width
    signed = _UNSIGNED.get(tensor.dtype)
    return tensor if signed is None else tensor.view(signed)
