"""What travels between the parts: frozen values and the protocols they meet.

Letters in shapes: b candidates, k selected, M methods.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["Batch", "Ids", "Scored", "Source", "Stateful"]

Batch: TypeAlias = Any
"""Dicts, tuples, lists, named tuples and dataclasses, nested; every leaf is a tensor, an array
or a list with b rows."""

Ids: TypeAlias = npt.NDArray[np.int64] | list[str]
"""Stable names of instances, one a row: int64, shape (b,), or b strings."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Losses of a candidate batch with what its last layer knows about them.

    Attributes:
        losses: per-instance losses, shape (b,), floating point.
        residuals: gradients of each loss with respect to the last layer's output,
            shape (b, c), or None.
        features: the last layer's input, shape (b, h), or None.
    """

    losses: Tensor
    residuals: Tensor | None = None
    features: Tensor | None = None


@runtime_checkable
class Stateful(Protocol):
    """Anything that can say where it stands and go back there."""

    def state_dict(self) -> dict[str, Any]:
        """Describe the position after the last item that was returned."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next iteration continue from `state`."""
        ...


@runtime_checkable
class Source(Protocol):
    """An iterable of candidate batches; what connectors implement, with `Stateful`."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield candidate batches."""
        ...
