"""Rows, losses of theirs, and what a score captured of their gradients."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adasel_stream.last_layer import mean_gradient
from adasel_stream.types import Scored

__all__ = ["ROWS", "captured", "features", "of_classes"]

ROWS = 6


def features() -> Tensor:
    """Give rows of four features."""
    return torch.randn(ROWS, 4)


def of_classes(outputs: Tensor) -> Tensor:
    """Give losses (b,) of outputs (b, 3)."""
    return cross_entropy(outputs, torch.arange(len(outputs)) % 3, reduction="none")


def captured(scored: Scored) -> Tensor:
    """Give what each row's captured gradient is, shape (b, c, h+1)."""
    last = scored.last_layer
    assert last is not None
    return torch.stack([mean_gradient(last, one) for one in torch.eye(len(scored.losses))])
