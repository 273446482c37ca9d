"""What travels between the parts: frozen values and the protocols they meet.

Letters in shapes: b candidates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from adasel_stream.keys import Ids
from adasel_stream.last_layer import LastLayer, gradient_norms

__all__ = [
    "Batch",
    "Fetching",
    "Ids",
    "Sample",
    "Scored",
    "Source",
    "Stateful",
]

Batch: TypeAlias = Any
"""Dicts, tuples, lists, named tuples and dataclasses, nested; every leaf is a tensor, an array
or a list with b rows."""

Sample: TypeAlias = Any
"""One row of a batch: the batch's structure with one row's value in place of each leaf."""


@dataclass(frozen=True)
class Scored:
    """Losses of a candidate batch with what its last layer knows about them.

    Attributes:
        losses: per-instance losses, shape (b,), floating point.
        residuals: gradients of each loss with respect to the last layer's output, shape (b, c),
            or None; (b, t, c) of sequences of t tokens, whose gradients add up.
        features: the last layer's input, shape (b, h) or (b, t, h), or None.
    """

    losses: Tensor
    residuals: Tensor | None = None
    features: Tensor | None = None

    @property
    def last_layer(self) -> LastLayer | None:
        """Residuals and features together, or None where one of them is missing."""
        if self.residuals is None or self.features is None:
            return None
        return LastLayer(self.residuals, self.features)

    @cached_property
    def gradient_norms(self) -> Tensor | None:
        """Norms of the rows' last-layer gradients, shape (b,), or None without a last layer."""
        last = self.last_layer
        return None if last is None else gradient_norms(last)


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


@runtime_checkable
class Fetching(Protocol):
    """A source that hands over references to some columns, and reads what they point to later.

    Attributes:
        deferred: names of the columns that hold references instead of content.
    """

    deferred: tuple[str, ...]

    def fetch(self, references: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
        """Read what references point to; called from several threads at once.

        Args:
            references: for each deferred column the references of n rows, int64, shape (n, ...),
                as they stood in a batch.

        Returns:
            for each deferred column the content of n rows; an exception object, not raised, in
            place of content that cannot be had.
        """
        ...
