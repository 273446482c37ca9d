"""Order statistics that methods and draws share: average ranks and a stable top-k."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["average_ranks", "top_k"]


def average_ranks(values: Tensor) -> Tensor:
    """Rank values from 0 for the smallest; equal values share their mean rank.

    Args:
        values: shape (b,), floating point, without NaN.

    Returns:
        ranks in [0, b-1], shape (b,), dtype and device of `values`.

    >>> average_ranks(torch.tensor([0.1, 3.0, 0.1, 2.0]))
    tensor([0.5000, 3.0000, 0.5000, 2.0000])
    """
    if values.device.type == "cpu":  # numpy sorts a batch on a CPU about three times as fast
        return torch.from_numpy(_average_ranks_numpy(values.detach().numpy()))
    return _average_ranks_static(values)


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
    return torch.sort(values, dim=-1, descending=True, stable=True).indices[..., :k]


def _average_ranks_numpy(values: np.ndarray) -> np.ndarray:
    order = np.argsort(values)
    ascending = values[order]
    starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))[: values.size]
    ranks = np.empty_like(values)
    if starts.size == values.size:
        ranks[order] = np.arange(values.size)
    else:
        counts = np.diff(starts, append=values.size)
        ranks[order] = np.repeat(starts + (counts - 1) / 2, counts)
    return ranks


def _average_ranks_static(values: Tensor) -> Tensor:
    """Compute the same with shapes that do not depend on the data, for accelerators."""
    count = values.shape[0]
    ascending, order = torch.sort(values)
    position = torch.arange(count, device=values.device)
    changed = ascending[1:] != ascending[:-1]
    # a run of equal values reaches from its first position to its last
    first = torch.zeros_like(position)
    first[1:] = torch.where(changed, position[1:], 0)
    last = torch.full_like(position, count - 1)
    last[:-1] = torch.where(changed, position[:-1], count - 1)
    first = torch.cummax(first, dim=0).values
    last = torch.cummin(last.flip(0), dim=0).values.flip(0)
    return torch.empty_like(values).scatter_(0, order, ((first + last) / 2).to(values.dtype))
