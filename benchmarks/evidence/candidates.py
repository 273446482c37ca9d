"""Rows as they are offered, and those who choose among them without this package's loader."""

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from benchmarks.evidence.clock import Clock
from benchmarks.evidence.problem import Examples, Task, generator
from benchmarks.evidence.rules import Rule

__all__ = ["Candidates", "by_rule", "even_share"]


class Candidates:
    """Offer rows in seeded order: a stream once, shuffled epochs without end.

    Args:
        task: says which of the two, and how many rows come together.
        rows: of training.
        seed: of the order.
        clock: counts what this takes as "data".

    Attributes:
        offered: rows so far.
        position: the first row of a stream that was not offered yet.
    """

    def __init__(self, task: Task, rows: Examples, seed: int, clock: Clock) -> None:
        self._rows, self._size, self._seed, self._clock = rows, task.batch_size, seed, clock
        self._once = task.kind == "stream"
        self.offered = 0
        self.position = 0

    def __iter__(self) -> Iterator[Examples]:
        """Give batches of all columns and `id`."""
        count = len(self._rows["x"])
        random = generator(self._seed + 2)
        while True:
            everyone = torch.arange(count)
            order = everyone if self._once else torch.randperm(count, generator=random)
            for start in range(0, count - self._size + 1, self._size):
                with self._clock.phase("data"):
                    batch = self._batch(order, start)
                yield batch
            if self._once:
                return

    def _batch(self, order: Tensor, start: int) -> Examples:
        self.position = start + self._size
        self.offered += self._size
        ids = order[start : self.position]
        where = slice(start, self.position) if self._once else ids
        return {**{name: column[where] for name, column in self._rows.items()}, "id": ids}


class Pool:
    """Rows that wait until there are enough for a batch."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: list[Examples] = []

    def add(self, rows: Examples) -> Iterator[Examples]:
        """Put rows in, and take out every batch that is full."""
        self._waiting.append(rows)
        while sum(len(one["id"]) for one in self._waiting) >= self._size:
            pool = joined(self._waiting)
            self._waiting = [{name: column[self._size :] for name, column in pool.items()}]
            yield {name: column[: self._size] for name, column in pool.items()}


def joined(parts: list[Examples]) -> Examples:
    """Put parts together, column by column."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def even_share(source: Iterable[Examples], rate: float, size: int, seed: int) -> Iterator[Examples]:
    """Take an even share at the least cost: the first rows of shuffled windows.

    Args:
        source: batches of `size` rows.
        rate: share, in (0, 1].
        size: rows of a batch.
        seed: of the shuffling.
    """
    random = generator(seed + 3)
    pool, offers = Pool(size), iter(source)
    window, due = max(1, round(1 / rate)), 0.0
    while some := list(itertools.islice(offers, window)):
        due += rate * size * len(some)
        take, due = int(due), due - int(due)
        order = torch.randperm(size * len(some), generator=random)[:take]
        yield from pool.add({name: column[order] for name, column in joined(some).items()})


def by_rule(
    source: Iterable[Examples],
    rule: Rule,
    score: Callable[[Examples], Tensor],
    size: int,
    progress: Callable[[], float],
) -> Iterator[Examples]:
    """Let a rule choose; its weights come as the column `weights`.

    Args:
        source: batches of candidates.
        rule: whose losses are fresh ones, unless it keeps its own.
        score: gives fresh losses of a batch, shape (b,).
        size: rows of a batch to train on.
        progress: says which share of the updates is made.
    """
    pool = Pool(size)
    for batch in source:
        losses = None if rule.keeps_losses else score(batch)
        kept, weights = rule.choose(batch["id"], losses, progress())
        chosen = {name: column[kept] for name, column in batch.items()}
        yield from pool.add({**chosen, "weights": weights})
