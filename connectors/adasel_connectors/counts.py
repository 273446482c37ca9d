"""Counters that DataLoader workers and the trainer share.

A worker's own attributes die with it, and what it counted with them. These live in shared
memory that has no name, so nothing outlives the processes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

__all__ = ["Counts"]

_ROWS = 257


class Counts:
    """Counters with fixed names, in one row for the trainer and one for each worker.

    >>> counts = Counts(["samples", "cut"])
    >>> counts.add("samples", 5)
    >>> counts.totals()
    {'samples': 5, 'cut': 0}
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Start all at zero."""
        self._columns = {name: i for i, name in enumerate(names)}
        # Workers write to rows of their own: adding to a shared cell could lose counts.
        self._table = torch.zeros(_ROWS, len(names), dtype=torch.int64)
        self._table.share_memory_()  # type: ignore[no-untyped-call]  # torch has no type for it

    def add(self, name: str, count: int = 1) -> None:
        """Count in this process."""
        self.row()[self._columns[name]] += count

    def add_all(self, counts: Mapping[str, int]) -> None:
        """Count several things in this process."""
        row = self.row()
        for name, count in counts.items():
            row[self._columns[name]] += count

    def totals(self) -> dict[str, int]:
        """Sum up the trainer and all workers."""
        return dict(zip(self._columns, self._table.sum(0).tolist(), strict=True))

    def row(self) -> npt.NDArray[np.int64]:
        """Give this process's counters as an array, shape (names,), to be counted in."""
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id % (_ROWS - 1)
        counters: npt.NDArray[np.int64] = self._table.numpy()[row]
        return counters

    def named(self, row: Sequence[int]) -> dict[str, int]:
        """Name the entries of a copied row."""
        return dict(zip(self._columns, row, strict=True))

    def restore(self, named: Mapping[str, int]) -> None:
        """Set this process's counters; names that are not known any more are dropped."""
        self.row()[:] = [named.get(name, 0) for name in self._columns]
