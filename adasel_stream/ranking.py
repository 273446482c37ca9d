"""Order statistics that methods and draws share: orders, average ranks and a stable top-k.

On a CPU the sorting is numpy's, which is about three times as fast as torch's there; on an
accelerator all shapes are static, so that nothing waits for the device.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["ascending", "average_ranks", "top_k"]


def ascending(values: Tensor, *, near: Tensor | None = None) -> Tensor:
    """Order rows by value, smallest first; equal values in any order.

    Args:
        values: shape (b,), floating point, without NaN.
        near: an order, shape (b,), in which the values rise and fall in few long runs, if one
            is known; sorting then takes a fraction of the time on a CPU.

    Returns:
        row indices, shape (b,), int64.

    >>> ascending(torch.tensor([0.3, 0.1, 0.2]))
    tensor([1, 2, 0])
    """
    if values.device.type != "cpu":
        return torch.argsort(values)
    array = values.detach().numpy()
    if near is None:
        return torch.from_numpy(np.argsort(array))
    rows = near.numpy()
    return torch.from_numpy(rows[np.argsort(array[rows], kind="stable")])  # finds the runs


def average_ranks(values: Tensor, order: Tensor | None = None) -> Tensor:
    """Rank values from 0 for the smallest; equal values share their mean rank.

    Args:
        values: shape (b,), floating point, without NaN.
        order: their ascending order, if it is known already.

    Returns:
        ranks in [0, b-1], shape (b,), dtype and device of `values`.

    >>> average_ranks(torch.tensor([0.1, 3.0, 0.1, 2.0]))
    tensor([0.5000, 3.0000, 0.5000, 2.0000])
    """
    order = ascending(values) if order is None else order
    if values.device.type == "cpu":
        return torch.from_numpy(_ranks_on_host(values.detach().numpy(), order.numpy()))
    return _ranks_static(values, order)


def top_k(values: Tensor, k: int) -> Tensor:
    """Find the k largest values along the last dimension; the lower index wins ties.

    Args:
        values: shape (..., b), without NaN (`torch.topk` would leave ties to chance).
        k: how many, in [0, b].

    Returns:
        indices, largest value first, shape (..., k), int64.

    >>> top_k(torch.tensor([1.0, 2.0, 2.0, 0.0]), 2)
    tensor([1, 2])
    """
    if values.device.type == "cpu":
        return torch.from_numpy(_top_on_host(values.detach().numpy(), k))
    return torch.sort(values, dim=-1, descending=True, stable=True).indices[..., :k]


def _top_on_host(values: npt.NDArray[Any], k: int) -> npt.NDArray[Any]:
    order = np.argsort(-values, axis=-1)[..., : k + 1]
    largest = values.take(order) if values.ndim == 1 else np.take_along_axis(values, order, -1)
    if (largest[..., 1:] == largest[..., :-1]).any():  # ties: a stable sort is slower
        order = np.argsort(-values, axis=-1, kind="stable")
    return order[..., :k]


def _ranks_on_host(values: npt.NDArray[Any], order: npt.NDArray[Any]) -> npt.NDArray[Any]:
    sorted_values = values.take(order)
    changed = sorted_values[1:] != sorted_values[:-1]
    ranks = np.empty_like(values)
    if changed.all():
        ranks[order] = np.arange(values.size, dtype=values.dtype)
        return ranks
    starts = np.append(0, np.flatnonzero(changed) + 1)
    counts = np.diff(starts, append=values.size)
    ranks[order] = np.repeat(starts + (counts - 1) / 2, counts)
    return ranks


def _ranks_static(values: Tensor, order: Tensor) -> Tensor:
    count = values.shape[0]
    sorted_values = values[order]
    position = torch.arange(count, device=values.device)
    changed = sorted_values[1:] != sorted_values[:-1]
    # a run of equal values reaches from its first position to its last
    first = torch.zeros_like(position)
    first[1:] = torch.where(changed, position[1:], 0)
    last = torch.full_like(position, count - 1)
    last[:-1] = torch.where(changed, position[:-1], count - 1)
    first = torch.cummax(first, dim=0).values
    last = torch.cummin(last.flip(0), dim=0).values.flip(0)
    return torch.empty_like(values).scatter_(0, order, ((first + last) / 2).to(values.dtype))
