"""Batches of any nesting: flatten to leaves with one row per instance, and build again.

A leaf is a tensor, a numpy array, or a list or tuple of scalars, strings or bytes. Dicts and
other mappings, lists, tuples, named tuples and dataclasses of leaves nest to any depth; None
stays as it is.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor

from adasel_stream.errors import BatchError
from adasel_stream.types import Batch

__all__ = ["Leaf", "Leaves", "flatten", "place", "rebuild", "row_count", "slots_for", "take_rows"]

Leaf: TypeAlias = Tensor | np.ndarray | list[Any]
"""One row per instance along the first dimension."""

Leaves: TypeAlias = dict[str, Leaf]
"""Leaves by their path in the batch, such as `['x'][0]`."""


def flatten(batch: Batch) -> Leaves:
    """Find the leaves of a batch, by path.

    Raises:
        BatchError: a leaf is neither tensor, array nor list.

    >>> list(flatten({"x": torch.zeros(2, 3), "meta": (["a", "b"], None)}))
    ["['x']", "['meta'][0]"]
    """
    leaves: Leaves = {}
    _visit(batch, "", leaves)
    return leaves


def rebuild(batch: Batch, leaves: Mapping[str, Leaf]) -> Batch:
    """Build a batch of the same structure with other leaves.

    >>> rebuild((torch.zeros(2), ["a", "b"]), {"[0]": torch.ones(1), "[1]": ["c"]})
    (tensor([1.]), ['c'])
    """
    return _replace(batch, "", leaves)


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
        if isinstance(leaf, Tensor | np.ndarray) and leaf.ndim == 0:
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
                "one row per instance (a list of tensors or lists counts as a list of leaves)"
            )
    return rows


def place(leaves: Leaves, device: torch.device | None) -> Leaves:
    """Move tensors and numeric arrays to a device, without waiting; lists stay on the host."""
    if device is None:
        return leaves
    return {path: _place(leaf, device) for path, leaf in leaves.items()}


def slots_for(leaf: Leaf, rows: int) -> Leaf:
    """Make room for `rows` rows like those of `leaf`, on the same device."""
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
    """
    stop = start + indices.shape[0]
    if isinstance(leaf, Tensor) and isinstance(slots, Tensor):
        torch.index_select(leaf.detach(), 0, indices, out=slots[start:stop])
    elif isinstance(leaf, np.ndarray) and isinstance(slots, np.ndarray):
        slots[start:stop] = leaf[indices.numpy()]
    else:
        cast("list[Any]", slots)[start:stop] = [leaf[i] for i in indices.tolist()]


def _visit(node: Any, path: str, leaves: Leaves) -> None:
    if isinstance(node, Tensor | np.ndarray):
        leaves[path] = node
    elif node is not None and not _is_container(node):
        leaves[path] = _as_column(node, path)
    else:
        for key, child in _children(node):
            _visit(child, path + key, leaves)


def _as_column(node: Any, path: str) -> list[Any]:
    if isinstance(node, list | tuple):
        return list(cast("Sequence[Any]", node))
    raise BatchError(
        f"leaf batch{path} is a {type(node).__name__}, expected a tensor, an array or a list with "
        "one entry per instance"
    )


def _children(node: Any) -> list[tuple[str, Any]]:
    if node is None:
        return []
    if isinstance(node, Mapping):
        return [(f"[{key!r}]", value) for key, value in cast("Mapping[Any, Any]", node).items()]
    if _is_dataclass(node):
        return [(f".{f.name}", getattr(node, f.name)) for f in dataclasses.fields(node)]
    return [(f"[{i}]", value) for i, value in enumerate(node)]


def _is_container(node: Any) -> bool:
    if isinstance(node, Mapping) or _is_dataclass(node):
        return True
    if not isinstance(node, list | tuple):
        return False
    entries = cast("Sequence[Any]", node)
    return any(
        isinstance(e, Tensor | np.ndarray | Mapping | list | tuple) or _is_dataclass(e)
        for e in entries
    )


def _is_dataclass(node: Any) -> TypeGuard[Any]:
    return dataclasses.is_dataclass(node) and not isinstance(node, type)


def _replace(node: Any, path: str, leaves: Mapping[str, Leaf]) -> Any:
    if path in leaves:
        leaf = leaves[path]
        return tuple(leaf) if isinstance(node, tuple) and isinstance(leaf, list) else leaf
    children = [(key, _replace(child, path + key, leaves)) for key, child in _children(node)]
    values = [child for _, child in children]
    if isinstance(node, Mapping):
        return _like_mapping(cast("Mapping[Any, Any]", node), values)
    if _is_dataclass(node):
        names = [f.name for f in dataclasses.fields(node)]
        return _like_dataclass(node, dict(zip(names, values, strict=True)))
    if isinstance(node, tuple):
        make: Callable[..., Any] | None = getattr(type(node), "_make", None)
        return make(values) if make is not None else tuple(values)
    return values if isinstance(node, list) else node


def _like_mapping(node: Mapping[Any, Any], values: list[Any]) -> Mapping[Any, Any]:
    filled = dict(zip(node, values, strict=True))
    if type(node) is dict:
        return filled
    same = copy.copy(node)  # keeps the type: OrderedDict, UserDict, tokenizer outputs
    if not hasattr(same, "update"):
        return filled
    cast("dict[Any, Any]", same).update(filled)
    return same


def _like_dataclass(node: Any, values: dict[str, Any]) -> Any:
    same = copy.copy(node)
    for name, value in values.items():
        object.__setattr__(same, name, value)  # a frozen batch stays frozen
    return same


def _place(leaf: Leaf, device: torch.device) -> Leaf:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
        leaf = torch.from_numpy(np.ascontiguousarray(leaf))
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.to(device, non_blocking=True)
