"""Batches of any nesting: flatten to leaves with one row per instance, and build again.

A leaf is a tensor, a numpy array, or a list or tuple of scalars, strings or bytes. Mappings,
lists, tuples, named tuples and dataclasses of leaves nest to any depth; None stays as it is.
Under a key, a list of lists or of mappings without a tensor or an array in it is a leaf too,
as tokens and metadata come from Hugging Face data sets; elsewhere it is a list of leaves.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adasel_stream.errors import BatchError
from adasel_stream.rows import Leaf, Leaves, slots_for
from adasel_stream.types import Batch

__all__ = ["describe", "emptied", "flatten", "rebuild", "template_of"]

_NESTING = (Tensor, np.ndarray, Mapping, list, tuple)


def flatten(batch: Batch) -> Leaves:
    """Find the leaves of a batch, by path.

    Raises:
        BatchError: a leaf is neither tensor, array nor list.

    >>> list(flatten({"x": torch.zeros(2, 3), "meta": (["a", "b"], None)}))
    ["['x']", "['meta'][0]"]
    """
    leaves: Leaves = {}
    _visit(batch, "", False, leaves)
    return leaves


def rebuild(batch: Batch, leaves: Mapping[str, Leaf]) -> Batch:
    """Build a batch of the same structure and types with other leaves.

    >>> rebuild((torch.zeros(2), ["a", "b"]), {"[0]": torch.ones(1), "[1]": ["c"]})
    (tensor([1.]), ['c'])
    """
    return _replace(batch, "", leaves)


def emptied(batch: Batch, leaves: Leaves) -> Batch:
    """Build a batch of the same structure whose leaves have no rows, so that it holds no data.

    >>> batch = {"x": torch.ones(2, 3), "t": ("a", "b")}
    >>> emptied(batch, flatten(batch))
    {'x': tensor([], size=(0, 3)), 't': ()}
    """
    return _replace(batch, "", {path: slots_for(leaf, 0) for path, leaf in leaves.items()})


def describe(template: Batch) -> Any:
    """Describe an emptied batch in plain data, or None if a type of its own is part of it.

    >>> describe({"x": torch.empty(0), "pair": ([], None)})
    {'dict': [['x', 'tensor'], ['pair', {'tuple': ['list', 'none']}]]}
    """
    try:
        return _describe(template)
    except TypeError:
        return None


def template_of(description: Any) -> Batch:
    """Build the emptied batch that `describe` described, for `rebuild`.

    >>> template_of({"dict": [["pair", {"tuple": ["list", "none"]}]]})
    {'pair': ([], None)}
    """
    if isinstance(description, str):
        kind, _, dtype = description.partition(" ")
        return None if kind == "none" else _EMPTY[kind](dtype)
    ((kind, children),) = cast("dict[str, list[Any]]", description).items()
    if kind == "dict":
        return {key: template_of(child) for key, child in children}
    nodes = [template_of(child) for child in children]
    return tuple(nodes) if kind == "tuple" else nodes


def _visit(node: Any, path: str, named: bool, leaves: Leaves) -> None:
    if isinstance(node, Tensor | np.ndarray):
        leaves[path] = list(node) if _is_text(node) else node
    elif isinstance(node, list | tuple) and _is_column(cast("list[Any]", node), named):
        leaves[path] = list(cast("list[Any]", node))
    elif node is None or isinstance(node, Mapping | list | tuple) or _is_dataclass(node):
        keyed = not isinstance(node, list | tuple) or hasattr(node, "_fields")
        for key, child in _children(node):
            _visit(child, path + key, keyed, leaves)
    else:
        raise BatchError(
            f"leaf batch{path} has type {type(node).__name__}, expected a tensor, an array or a "
            "list with one entry per instance"
        )


def _is_column(node: list[Any] | tuple[Any, ...], named: bool) -> bool:
    if hasattr(node, "_fields"):
        return False
    if not _some_nest(node):
        return True
    return named and isinstance(node, list) and not any(map(_holds_leaves, node))


def _some_nest(entries: list[Any] | tuple[Any, ...]) -> bool:
    # by type, not by entry: a column of b strings has one type
    kinds = set(map(type, entries))
    return any(issubclass(kind, _NESTING) or dataclasses.is_dataclass(kind) for kind in kinds)


def _holds_leaves(entry: Any) -> bool:
    if isinstance(entry, Mapping):
        mapping: Mapping[Any, Any] = entry
        return any(map(_holds_leaves, mapping.values()))
    if isinstance(entry, list):
        entries: list[Any] = entry
        return _some_nest(entries) and any(map(_holds_leaves, entries))
    return isinstance(entry, _NESTING) or _is_dataclass(entry)


def _is_dataclass(node: Any) -> TypeGuard[Any]:
    return dataclasses.is_dataclass(node) and not isinstance(node, type)


def _is_text(node: Tensor | npt.NDArray[Any]) -> TypeGuard[npt.NDArray[Any]]:
    # their dtype may differ from batch to batch, and no checkpoint holds objects as an array
    return isinstance(node, np.ndarray) and node.ndim == 1 and node.dtype.kind in "OSU"


def _children(node: Any) -> list[tuple[str, Any]]:
    if node is None:
        return []
    if isinstance(node, Mapping):
        mapping: Mapping[Any, Any] = node
        return [(f"[{key!r}]", value) for key, value in mapping.items()]
    if _is_dataclass(node):
        return [(f".{f.name}", getattr(node, f.name)) for f in dataclasses.fields(node)]
    return [(f"[{i}]", value) for i, value in enumerate(node)]


def _replace(node: Any, path: str, leaves: Mapping[str, Leaf]) -> Any:
    if path in leaves:
        return _like_leaf(node, leaves[path])
    values = [_replace(child, path + key, leaves) for key, child in _children(node)]
    if node is None:
        return None
    if isinstance(node, Mapping):
        mapping: Mapping[Any, Any] = node
        return _like_mapping(mapping, values)
    if _is_dataclass(node):
        return _like_dataclass(node, values)
    if isinstance(node, tuple):
        make: Callable[..., Any] | None = getattr(type(node), "_make", None)
        return make(values) if make is not None else tuple(values)
    return values


def _like_leaf(node: Any, leaf: Leaf) -> Any:
    if isinstance(leaf, list):
        if isinstance(node, tuple):
            return tuple(leaf)
        if isinstance(node, np.ndarray):
            return _text_array(leaf, cast("npt.NDArray[Any]", node).dtype)
    return leaf


def _text_array(rows: list[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype.kind != "O":
        return np.array(rows, dtype=dtype.kind)  # as wide as these rows need
    objects = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):  # at once, numpy would make a matrix of rows that are sequences
        objects[i] = row
    return objects


def _like_mapping(node: Mapping[Any, Any], values: list[Any]) -> Mapping[Any, Any]:
    filled = dict(zip(node, values, strict=True))
    if type(node) is dict or not hasattr(node, "__setitem__"):
        return filled
    same = cast("dict[Any, Any]", copy.copy(node))  # OrderedDict, UserDict, tokenizer outputs
    for key, value in filled.items():
        same[key] = value
    return same


def _like_dataclass(node: Any, values: list[Any]) -> Any:
    same = copy.copy(node)
    for field, value in zip(dataclasses.fields(node), values, strict=True):
        object.__setattr__(same, field.name, value)  # a frozen batch stays frozen
    return same


def _describe(node: Any) -> Any:
    if node is None:
        return "none"
    if isinstance(node, Tensor):
        return "tensor"
    if isinstance(node, np.ndarray):
        array = cast("npt.NDArray[Any]", node)
        return f"array {array.dtype.kind}" if _is_text(array) else "array f"
    if type(node) is dict:
        children: dict[Any, Any] = node
        if all(type(key) in (str, int) for key in children):
            return {"dict": [[key, _describe(child)] for key, child in children.items()]}
    if type(node) not in (list, tuple):
        raise TypeError(f"{type(node).__name__} is not plain")
    name = type(node).__name__
    return name if not node else {name: [_describe(child) for child in node]}


_EMPTY: dict[str, Callable[[str], Any]] = {
    "tensor": lambda _: torch.empty(0),
    "array": lambda dtype: np.empty(0, dtype),
    "list": lambda _: [],
    "tuple": lambda _: (),
}
