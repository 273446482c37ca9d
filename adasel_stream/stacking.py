"""From samples to a batch: what must be alike, and how it is put together."""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from adasel_stream.errors import BatchError
from adasel_stream.rows import Leaf
from adasel_stream.types import Batch, Sample

__all__ = ["collated", "kind_of", "stacked", "told_of"]


def told_of(error: Exception) -> str:
    """Name an error and its place; its own words may show content.

    >>> told_of(KeyError("a name"))
    'KeyError'
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""
    return f"{type(error).__name__}{where}"


def kind_of(sample: Sample) -> str:
    """Describe what of a sample must be alike in a batch.

    >>> kind_of({"x": torch.zeros(2), "y": 3})
    "{'x': float32(2,), 'y': number}"
    """
    if isinstance(sample, Tensor | np.ndarray):
        return f"{sample.dtype}{tuple(sample.shape)}".removeprefix("torch.")
    if isinstance(sample, Mapping):
        items: Mapping[Any, Any] = sample
        return f"{{{', '.join(f'{key!r}: {kind_of(value)}' for key, value in items.items())}}}"
    if isinstance(sample, list | tuple):
        entries = cast("Sequence[Any]", sample)
        return f"({', '.join(map(kind_of, entries))})"
    return "number" if isinstance(sample, bool | int | float) else type(sample).__name__


def collated(samples: Any) -> Batch:
    """Stack samples as torch's `default_collate` does.

    Raises:
        BatchError: samples of a type that it does not know.

    >>> collated([{"x": 1}, {"x": 2}])
    {'x': tensor([1, 2])}
    """
    try:
        batch: Batch = default_collate(samples)
    except (TypeError, RuntimeError, KeyError, ValueError) as error:
        raise BatchError(
            "decoded samples cannot be stacked into a batch: decode must give every sample the "
            "same structure, shapes and dtypes, of tensors, arrays, numbers and strings"
        ) from error
    return batch


def stacked(leaf: Leaf) -> Leaf:
    """Make one tensor of a list of tensors that are alike; anything else stays.

    Raises:
        BatchError: tensors that are not alike.

    >>> stacked([torch.zeros(2), torch.ones(2)]).shape, stacked([b"a", b"b"])
    (torch.Size([2, 2]), [b'a', b'b'])
    """
    if isinstance(leaf, list) and leaf and isinstance(leaf[0], Tensor):
        tensors: list[Tensor] = leaf
        if len({(tensor.shape, tensor.dtype) for tensor in tensors}) == 1:
            return torch.stack(tensors)
        raise BatchError(
            "fetched rows have different shapes and cannot be stacked; pass decode= to bring them "
            "to one shape"
        )
    return leaf
