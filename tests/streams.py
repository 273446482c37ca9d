"""Streams for the loader's tests: batches of numbered rows, and a source that can be resumed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from adasel_stream import SelectingLoader

Rows: TypeAlias = dict[str, Any]

SIZES = (8, 5, 1, 16, 3, 8, 8, 2)
"""Candidate batches of all kinds: one row, short ones, one longer than the first."""


def rows(start: int, count: int) -> Rows:
    """Make rows `start` and following: an id, four features and a loss that follow from it."""
    number = torch.arange(start, start + count)
    x = torch.stack([(number * factor % 17).float() / 17 for factor in (3, 5, 7, 11)], 1)
    return {"id": number, "x": x, "loss": (number * 37 % 101).float() / 10}


def batches(sizes: Sequence[int] = SIZES) -> list[Rows]:
    """Make candidate batches of these sizes, rows numbered through."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [rows(start, count) for start, count in zip(starts, sizes, strict=True)]


def loss(batch: Rows) -> Tensor:
    """Score a batch by the loss that it carries, shape (b,)."""
    losses: Tensor = batch["loss"]
    return losses


class Counted:
    """A score that notes how many rows it was given, and which."""

    def __init__(self, score: Callable[[Rows], Tensor] = loss) -> None:
        self.score = score
        self.ids: list[int] = []

    def __call__(self, batch: Rows) -> Tensor:
        """Score, and take note."""
        self.ids += batch["id"].tolist()
        return self.score(batch)


class Stream:
    """Candidate batches that can be gone on with; pass `n` has other rows than pass `n-1`."""

    def __init__(self, sizes: Sequence[int] = SIZES) -> None:
        self.sizes = tuple(sizes)
        self.number = 0
        self.taken = 0
        self.goes_on = False

    def __iter__(self) -> Iterator[Rows]:
        """Begin a pass, or go on where a loaded state says."""
        if not self.goes_on:
            self.taken = 0
        self.goes_on = False
        while self.taken < len(self.sizes):
            start = self.number * sum(self.sizes) + sum(self.sizes[: self.taken])
            self.taken += 1
            yield rows(start, self.sizes[self.taken - 1])
        self.number, self.taken = self.number + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Describe the position after the last batch given out."""
        return {"number": self.number, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after it."""
        self.number, self.taken, self.goes_on = state["number"], state["taken"], True


def loader_over(sizes: tuple[int, ...] = SIZES, **options: Any) -> SelectingLoader:
    """Select half of a stream of numbered rows."""
    options = {"score": loss, "sampling_rate": 0.5, **options}
    return SelectingLoader(Stream(sizes), **options)


def labelled(rows: int = 16) -> tuple[Tensor, Tensor]:
    """Features and labels."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, 4, generator=generator)
    return x, torch.randint(0, 3, (rows,), generator=generator)
