"""Where rows are in what losses were made of: which dimension of each tensor of the graph.

Each loss belongs to a row. Going back from the losses, operations move that dimension: a transposed
matrix has its rows second, a sum over time in front of them had them second as well, and stacked
losses of two heads have them first again. Where two rows meet in one number, as in a comparison of
each row with all others, there is no such dimension behind.

Sizes cannot tell it: a sequence may have as many steps as a batch has rows.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from torch.autograd.graph import Node

__all__ = ["Edge", "place_behind"]

Edge: TypeAlias = tuple[Node, int]
"""An operation, and which of its outputs."""

_NEGATIVE: Final = 2**63
"""Dimensions that are counted from the end are saved as unsigned numbers."""

_NEW: Final = ("Stack", "Unsqueeze")
_VIEWS: Final = ("View", "UnsafeView", "Reshape")
_OTHER: Final = {"Mm": 1, "Mv": 1, "Addmm": 2, "Addmv": 2, "Cdist": 1}
"""Of products whose rows are those of one factor, the factor of which each row takes all rows."""


def place_behind(edge: Edge, way: int, place: int | None) -> int | None:
    """Say which dimension has the rows in an input of an operation, None where none has.

    Args:
        edge: the operation, and the output that is looked at.
        way: which input.
        place: dimension of the rows in the output, or None.

    >>> import torch
    >>> losses = torch.ones(3, 4, requires_grad=True).mean(0)
    >>> place_behind((losses.grad_fn, 0), 0, 0)
    1
    """
    node, output = edge
    behind, index = node.next_functions[way]
    if place is None or behind is None:
        return None
    after, before = _shape(node, output), _shape(behind, index)
    if after is None or before is None or place >= len(after):
        return None
    return _moved(node, way, place, after, before)


def _moved(
    node: Node, way: int, place: int, after: Sequence[int], before: Sequence[int]
) -> int | None:
    """Do as `place_behind`, from the shapes of the output and the input."""
    name = node.name().rstrip("0123456789").removesuffix("Backward")
    dims = [_counted(one, max(len(after), len(before))) for one in _dims(node)]
    if name == "T":
        return 1 - place if len(before) == 2 else None
    if name == "Transpose":
        one, other = dims
        return {one: other, other: one}.get(place, place)
    if name == "Permute":
        return dims[place]
    if name in _NEW:
        return None if place in dims else place - sum(one < place for one in dims)
    if name in _VIEWS or name == "Squeeze":
        return _viewed(place, after, before)
    if "BatchNorm" in name and getattr(node, "_saved_training", True):
        return None
    if name in _OTHER:
        return None if way == _OTHER[name] else place
    if dims and len(before) == len(after) + len(dims):
        for one in sorted(dims):
            place += one <= place
        return place
    if place in dims and len(before) == len(after) and name != "Slice":
        return None
    return _broadcast(place, after, before)


def _viewed(place: int, after: Sequence[int], before: Sequence[int]) -> int | None:
    """Find the dimension that has as many numbers in front of it, and as many rows."""
    if place == 0 and after[0] != 1:  # outermost, whatever is merged with it
        return next((one for one, size in enumerate(before) if size != 1), None)
    front = math.prod(after[:place])
    for one, size in enumerate(before):
        if size == after[place] and math.prod(before[:one]) == front:
            return one
    return None


def _broadcast(place: int, after: Sequence[int], before: Sequence[int]) -> int | None:
    """Keep the dimension where there are as many rows in it, counted from the end at need."""
    one = place - max(0, len(after) - len(before))
    return one if one >= 0 and before[one] == after[place] else None


def _dims(node: Node) -> list[int]:
    """Give the dimensions that an operation speaks of."""
    found = list[int]()
    for name in ("_saved_dim", "_saved_dims", "_saved_dim0", "_saved_dim1"):
        saved: Any = getattr(node, name, ())
        found += [saved] if isinstance(saved, int) else list(saved or ())
    return found


def _counted(dim: int, dims: int) -> int:
    """Count a dimension from the front."""
    dim = dim - 2 * _NEGATIVE if dim >= _NEGATIVE else dim
    return dim + dims if dim < 0 else dim


def _shape(node: Node, output: int) -> tuple[int, ...] | None:
    """Give the shape of an operation's output; of a leaf that of the leaf."""
    described: Any = getattr(node, "_input_metadata", ())
    return tuple(described[output].shape) if output < len(described) else None
