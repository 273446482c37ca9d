"""Names and labels of instances: where a batch holds them, and names as integers."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from adasel_stream import trees
from adasel_stream.errors import BatchError
from adasel_stream.keys import instance_ids
from adasel_stream.types import Batch, Ids

__all__ = ["as_ids", "find_ids", "find_labels"]


def find_ids(batch: Batch, where: Any, rows: int) -> npt.NDArray[np.int64]:
    """Take the instance ids out of a batch.

    Args:
        batch: the candidates.
        where: a key or an attribute, a tuple of them, or a function of the batch.
        rows: b.

    Raises:
        BatchError: there is nothing there, or not one id per row.

    >>> find_ids({"meta": {"id": [7, 8]}}, ("meta", "id"), 2)
    array([7, 8])
    """
    found = _found(batch, where, "ids")
    ids = as_ids(found)
    if ids.shape != (rows,):
        raise BatchError(f"ids={where!r} gives shape {ids.shape}, expected ({rows},): one per row")
    return ids


def find_labels(batch: Batch, where: Any, rows: int) -> npt.NDArray[Any]:
    """Take the labels out of a batch, on the host.

    Args:
        batch: the candidates, as they came.
        where: as in `find_ids`.
        rows: b.

    Raises:
        BatchError: there is nothing there, or not one label per row.

    >>> find_labels({"x": [0.5, 0.1], "y": [1, 0]}, "y", 2)
    array([1, 0])
    """
    found = _found(batch, where, "labels")
    labels: npt.NDArray[Any] = found.cpu().numpy() if isinstance(found, Tensor) else np.array(found)
    if labels.shape[:1] != (rows,):
        raise BatchError(
            f"labels={where!r} gives shape {labels.shape}, expected ({rows},): one per row"
        )
    return labels


def as_ids(ids: Ids | Tensor) -> npt.NDArray[np.int64]:
    """Convert ids to int64, strings by their hash.

    Args:
        ids: a tensor, an array, a list or a tuple of whole numbers or of strings.

    Raises:
        BatchError: ids that are neither whole numbers nor strings.

    >>> as_ids([3, 4]), len(as_ids(["a", "b"]))
    (array([3, 4]), 2)
    """
    values: Any = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else ids
    if isinstance(values, np.ndarray) and values.dtype.kind in "UO" and values.ndim == 1:
        values = values.tolist()
    if isinstance(values, list | tuple):
        names = cast("Sequence[Any]", values)
        if all(isinstance(name, str) for name in names):
            return instance_ids(names)
        _check_types(names)
    try:
        array: npt.NDArray[Any] = np.asarray(values)
    except ValueError as error:
        raise BatchError("ids have parts of different lengths, expected one id per row") from error
    if array.dtype.kind not in "iu":
        raise BatchError(
            f"ids have dtype {array.dtype}, expected whole numbers of 64 bits or strings; ids that "
            "travel as floats lose their last digits"
        )
    return array.view(np.int64) if array.dtype == np.uint64 else array.astype(np.int64, copy=False)


def _check_types(ids: Sequence[Any]) -> None:
    """Name the first row whose id cannot be recorded, by its type alone."""
    for row, one in enumerate(ids):
        if one is None:
            raise BatchError(
                f"row {row} of the batch has no id: expected a whole number or a string, got "
                "NoneType; give every row an id, or leave such rows out"
            )
        if isinstance(one, str) != isinstance(ids[0], str):
            raise BatchError(
                f"row {row} of the batch has an id of type {type(one).__name__}, row 0 one of type "
                f"{type(ids[0]).__name__}, expected whole numbers or strings for all rows"
            )


def _found(batch: Batch, where: Any, argument: str) -> Any:
    try:
        return where(batch) if callable(where) else _follow(batch, where)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise BatchError(
            f"{argument}={where!r} is not in the batch, whose leaves are "
            f"{', '.join('batch' + path for path in trees.flatten(batch)) or 'none'}; name a key "
            'such as "id", a tuple of keys, or a function of the batch'
        ) from error


def _follow(batch: Batch, where: Any) -> Any:
    node = batch
    path: tuple[Any, ...] = where if isinstance(where, tuple) else (where,)
    for key in path:
        try:
            node = node[key]
        except (TypeError, KeyError, IndexError):
            if not isinstance(key, str) or not hasattr(node, key):
                raise
            node = getattr(node, key)  # dataclasses and named tuples
    return node
