"""Batches in every shape that streams bring them in, and their rows as plain values."""

import dataclasses
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ROWS = 6


class Pair(NamedTuple):
    """A named tuple of two leaves."""

    x: Any
    y: Any


Untyped = namedtuple("Untyped", ["x", "y"])


@dataclasses.dataclass
class Sample:
    """A batch as a dataclass; anything may be missing."""

    x: Any
    y: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    """A batch that cannot be changed."""

    x: Any
    y: Any


class Encoding(UserDict[str, Any]):
    """A mapping with attributes of its own and access by dot, as tokenizers return."""

    def __init__(self, data: dict[str, Any], kind: str) -> None:
        super().__init__(data)
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        """Look a key up."""
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None


def x(rows: int = ROWS) -> Tensor:
    """Distinct features, shape (rows, 2)."""
    return torch.arange(2.0 * rows).reshape(rows, 2)


def y(rows: int = ROWS) -> Tensor:
    """Distinct labels, shape (rows,), int64."""
    return torch.arange(rows) + 100


def names(rows: int = ROWS) -> list[str]:
    """Distinct strings of different lengths."""
    return ["n" * (i + 1) for i in range(rows)]


NESTINGS: dict[str, Any] = {
    "bare tensor": x(),
    "bare list": names(),
    "bare array": np.arange(ROWS),
    "dict": {"x": x(), "y": y()},
    "int keys": {0: x(), 1: y()},
    "ordered dict": OrderedDict(y=y(), x=x()),
    "default dict": defaultdict(list, x=x(), y=y()),
    "tokenizer output": Encoding({"x": x(), "t": names()}, "kind"),
    "tuple": (x(), y()),
    "list": [x(), y()],
    "named tuple": Pair(x(), y()),
    "untyped named tuple": Untyped(x(), names()),
    "dataclass": Sample(x(), y()),
    "dataclass without one": Sample(x()),
    "frozen dataclass": Frozen(x(), names()),
    "nothing beside": {"x": x(), "none": None, "deep": [None, (y(), None)]},
    "strings and bytes": {"s": names(), "b": [n.encode() for n in names()]},
    "tuple of strings": (x(), tuple(names())),
    "arrays": {"f": np.linspace(0, 1, ROWS), "m": np.arange(2 * ROWS).reshape(ROWS, 2)},
    "array of strings": {"s": np.array(names())},
    "array of objects": {"o": np.array([{"a": i} for i in range(ROWS)], dtype=object)},
    "lists of tokens": {"t": [[1] * (i + 1) for i in range(ROWS)], "y": y()},
    "dicts of metadata": {"m": [{"url": n, "tags": [n]} for n in names()], "y": y()},
    "missing values": {"t": [None, "a", "b", None, "c", "d"], "y": y()},
    "numbers": {"i": list(range(ROWS)), "f": [0.5 * i for i in range(ROWS)], "y": y()},
    "unsigned": {"u": y().to(torch.uint16), "w": y().to(torch.uint32)},
    "bits": {"b": y() % 2 == 0, "h": x().half(), "c": x().to(torch.complex64)},
    "deep": {"a": [Pair({"b": (x(), [Sample(names(), y())])}, None)], "c": np.arange(ROWS)},
}
"""Batches of six rows."""


def rows_of(batch: Any) -> list[list[str]]:
    """Every row of a batch as the text of its values, leaf by leaf."""
    columns = _columns(batch)
    return [[column[i] for column in columns] for i in range(len(columns[0]))]


def _columns(node: Any) -> list[list[str]]:
    if isinstance(node, Tensor | np.ndarray):
        return [[str(row) for row in node.tolist()]]
    if isinstance(node, Mapping):
        if isinstance(node, OrderedDict | defaultdict | UserDict) or type(node) is dict:
            return [column for value in node.values() for column in _columns(value)]
        raise TypeError(f"a batch became a {type(node).__name__}")
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return [c for f in dataclasses.fields(node) for c in _columns(getattr(node, f.name))]
    if node is None:
        return []
    if any(isinstance(v, Tensor | np.ndarray | tuple | Sample) for v in node) or not _plain(node):
        return [column for value in node for column in _columns(value)]
    return [[str(row) for row in node]]


def _plain(node: Any) -> bool:
    return not hasattr(node, "_fields")


def same_types(one: Any, other: Any) -> bool:
    """Say whether two batches have the same containers, leaf types and dtypes all through."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return bool(one.dtype == other.dtype) and one.shape[1:] == other.shape[1:]
    if isinstance(one, np.ndarray):
        return bool(one.dtype.kind == other.dtype.kind) and one.shape[1:] == other.shape[1:]
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same_types(one[k], other[k]) for k in one)
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        fields = [f.name for f in dataclasses.fields(one)]
        return all(same_types(getattr(one, f), getattr(other, f)) for f in fields)
    if isinstance(one, list | tuple) and any(isinstance(v, Tensor | tuple | Sample) for v in one):
        return len(one) == len(other) and all(map(same_types, one, other))
    return True
