"""What a source asks of the reader of one shard."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from torch import Tensor

from adasel_connectors.damage import DamageError

__all__ = ["Piece", "Report", "ShardReader", "SkipShardError"]

Report: TypeAlias = Callable[[DamageError, str], None]
"""Takes what is wrong with one sample and where it is; returns when reading may go on."""


class SkipShardError(Exception):
    """Says that nothing more of a shard is to be read; counted already."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some neighbouring rows of one shard.

    Attributes:
        ids: shape (n,), int64.
        columns: a tensor or list of n rows for each name.
    """

    ids: Tensor
    columns: dict[str, Any]


class ShardReader(Protocol):
    """Reads one shard from front to back.

    Attributes:
        row: samples before the next one, unusable ones included.
        offset: byte where the next one begins, or 0.
    """

    row: int
    offset: int

    def close(self) -> None:
        """Let go of the file."""
        ...

    def take(self, rows: int) -> Piece | None:
        """Give the next 1 to `rows` rows, or None at the shard's end.

        Raises:
            DamageError: the shard cannot be read any further.
        """
        ...
