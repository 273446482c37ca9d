"""Chosen rows until they leave, in batches of the structure that they came in."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from adasel_stream import trees
from adasel_stream.buffer import Buffer
from adasel_stream.decoded import DecodedRows
from adasel_stream.decoding import Decoder
from adasel_stream.emitted import Emitted
from adasel_stream.rows import Leaves, place
from adasel_stream.types import Batch

__all__ = ["Outgoing"]


class Outgoing:
    """Rows that wait for a full batch, decoded on the way where candidates come raw.

    Args:
        batch_size: rows of an emitted batch, or None for those of the first candidate batch.
        device: where to emit, or None for where batches are.
        decoder: decodes chosen rows, or None where candidates come decoded.

    Attributes:
        template: the structure of candidate batches without their rows, None while nobody knows.

    Raises:
        ValueError: batch_size is less than 1.
        TypeError: batch_size is no whole number.
    """

    def __init__(
        self, batch_size: int | None, device: torch.device | None, decoder: Decoder | None
    ) -> None:
        self.template: Batch = None
        self._wanted = batch_size
        self._device = device
        self._decoder = decoder
        self._rows = None if batch_size is None else self._rows_of(batch_size)

    def __len__(self) -> int:
        """Count the rows that wait."""
        return 0 if self._rows is None else len(self._rows)

    @property
    def batch_size(self) -> int | None:
        """Rows of an emitted batch, or None while nobody knows."""
        return self._wanted if self._rows is None else self._rows.batch_size

    @property
    def full(self) -> bool:
        """Whether as many rows wait as a batch takes, and those that are decoded ahead."""
        return self._rows is not None and self._rows.full

    @property
    def knows_structure(self) -> bool:
        """Whether batches can be built; not after a resume while their types are the user's own."""
        return self.template is not None

    def learn_structure(self, batch: Batch) -> None:
        """Remember the structure of candidate batches, none of their rows."""
        batch, leaves = self.placed(batch, trees.flatten(batch))
        self._set_structure(trees.emptied(batch, leaves))

    def placed(self, batch: Batch, leaves: Leaves) -> tuple[Batch, Leaves]:
        """Bring a candidate batch and its leaves to the device; raw ones stay on the host."""
        if self._device is None or self._decoder is not None:
            return batch, leaves
        leaves = place(leaves, self._device)
        return trees.rebuild(batch, leaves), leaves

    def expect(self, batch: Batch, leaves: Leaves, rows: int) -> int:
        """Learn from the first batch how all are made, and refuse another make.

        Returns:
            rows of an emitted batch.

        Raises:
            BatchError: the leaves have other names, shapes or dtypes than those before.
        """
        first = self._rows is None or self.template is None
        if self._rows is None:
            self._rows = self._rows_of(rows)
        self._rows.check(leaves)
        if first:
            self._set_structure(trees.emptied(batch, leaves))
        return self._rows.batch_size

    def takes_whole(self, rows: int) -> bool:
        """Whether so many more rows would all come into the same batch."""
        size = self.batch_size
        return size is None or len(self) % size + rows <= size

    def push(
        self,
        leaves: Leaves,
        indices: Tensor,
        remembered: Leaves,
        void: Tensor | None,
        decoded: Leaves | None,
    ) -> None:
        """Copy chosen rows in; `expect` has seen the candidates.

        Args:
            leaves: candidates, b rows each, and what is remembered of them by names of `Emitted`.
            indices: which rows, in the order they are to leave, shape (n,), int64.
            remembered: what else is remembered of each of these rows, n rows each.
            void: slots that no row fills, shape (n,), bool, or None for none.
            decoded: the candidates decoded already, b rows each, or None.
        """
        assert self._rows is not None, "the first batch made it"
        if isinstance(self._rows, DecodedRows):
            self._rows.push(leaves, indices, remembered, void, decoded)
        else:
            self._rows.push(leaves, indices, remembered, void)

    def pop(self) -> tuple[Batch, Emitted] | None:
        """Take out the oldest whole batch and what is remembered of its rows, or None.

        Raises:
            BatchError, DecodeError: the chosen rows cannot be decoded or put together.
        """
        if not self.knows_structure or self._rows is None:
            return None
        if isinstance(self._rows, DecodedRows):
            return self._rows.pop()
        leaves = self._rows.pop()
        if leaves is None:
            return None
        taken = {name: leaves.pop(name) for name in Emitted._fields if name in leaves}
        return trees.rebuild(self.template, leaves), Emitted(**cast("dict[str, Any]", taken))

    def state_dict(self) -> dict[str, Any]:
        """Describe rows that wait and the structure of batches."""
        return {
            "rows": None if self._rows is None else self._rows.state_dict(),
            "structure": None if self.template is None else trees.describe(self.template),
        }

    def restored(self, state: Mapping[str, Any]) -> "Outgoing":
        """Make another one, with the rows of `state` instead of those that wait here.

        Raises:
            ValueError: the state is of another batch size.
        """
        other = Outgoing(self._wanted, self._device, self._decoder)
        if state["rows"] is not None:
            if other._rows is None:
                other._rows = other._rows_of(state["rows"]["batch_size"])
            if isinstance(other._rows, DecodedRows):
                other._rows.load_state_dict(state["rows"])
            else:
                other._rows.load_state_dict(state["rows"], self._device)
        if state["structure"] is not None:
            other._set_structure(trees.template_of(state["structure"]))
        return other

    def _rows_of(self, batch_size: int) -> Buffer | DecodedRows:
        if self._decoder is None:
            return Buffer(batch_size)
        return DecodedRows(batch_size, self._decoder)

    def _set_structure(self, template: Batch) -> None:
        self.template = template
        if isinstance(self._rows, DecodedRows):
            self._rows.begin(template)
