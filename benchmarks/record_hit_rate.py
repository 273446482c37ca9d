"""How often the record still knows what comes back, beside an exact LRU of the same size.

Traffic as in published cache studies, but with ids that come back late, as labels make them:

- window: ids that are touched three times, at exponential delays;
- zipf+window: half of that, half Zipf(0.9) over many ids;
- scan: 30% ids that are touched once, the rest as zipf+window.

A touch looks an id up and records a loss of it, at once or ("delayed") when its label comes,
after an exponential delay of a tenth of the mean time between touches. Sizes are in D, the number
of distinct ids in three mean delays. A hit rate is the share of the hits of a table without limit,
over the second half of the accesses. Target: at 1.25 D within 5 points of the LRU.

Run `python -m benchmarks.record_hit_rate`; `--full` takes ten times as many of everything.
"""

import argparse
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from adasel_stream.record import LossRecord

_ACCESSES = 1_000_000
_BATCH = 1_024
_SIZES = (1.0, 1.25, 1.75)
_TARGET_POINTS = 5.0
_Ids = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]


class Batch(NamedTuple):
    """What happens in one second: ids looked up, then ids whose losses come, with their ages."""

    looked_up: _Ids
    recorded: _Ids
    ages_s: npt.NDArray[np.float64]


class Table(Protocol):
    """What is compared."""

    def play(self, batch: Batch) -> _Flags:
        """Return which lookups hit, and record."""
        ...


class Unlimited:
    """A table that forgets nothing."""

    def __init__(self) -> None:
        self._ids: set[int] = set()

    def play(self, batch: Batch) -> _Flags:
        """Return which lookups hit, and record."""
        hits = np.array([id_ in self._ids for id_ in batch.looked_up.tolist()], np.bool_)
        self._ids.update(batch.recorded.tolist())
        return hits


class FullLru:
    """A table that forgets the id recorded least recently of all, exactly."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ids: OrderedDict[int, None] = OrderedDict()

    def play(self, batch: Batch) -> _Flags:
        """Return which lookups hit, and record."""
        ids = self._ids
        hits = np.array([id_ in ids for id_ in batch.looked_up.tolist()], np.bool_)
        for id_ in batch.recorded.tolist():
            ids[id_] = None
            ids.move_to_end(id_)
        while len(ids) > self._capacity:
            ids.popitem(last=False)
        return hits


class Recorded:
    """The loss record, a second a batch."""

    def __init__(self, capacity: int) -> None:
        self._now_s = 0.0
        self._record = LossRecord(capacity, clock=lambda: self._now_s)

    def play(self, batch: Batch) -> _Flags:
        """Return which lookups hit, and record."""
        self._now_s += 1
        hits = self._record.lookup(batch.looked_up).known
        losses = np.ones(len(batch.recorded), np.float32)
        self._record.update(batch.recorded, losses, age_s=batch.ages_s)
        return hits


def window(random: np.random.Generator, accesses: int, mean_delay: float) -> _Ids:
    """Return ids in the order of their touches, three of each, at exponential delays."""
    born = random.uniform(-6 * mean_delay, accesses, int((accesses + 6 * mean_delay) / 3))
    delays = random.exponential(mean_delay, (2, len(born))).cumsum(axis=0)
    times = np.concatenate([born, *(born + delays)])
    ids = np.tile(np.arange(len(born)), 3)
    inside = (times >= 0) & (times < accesses)
    touches: _Ids = ids[inside][np.argsort(times[inside])]
    return touches[:accesses]


def zipf(random: np.random.Generator, accesses: int, n_ids: int) -> _Ids:
    """Return ids below 0 with Zipf(0.9) popularity."""
    shares = np.arange(1, n_ids + 1) ** -0.9
    return -1 - np.searchsorted(shares.cumsum() / shares.sum(), random.random(accesses))


def traffic(pattern: str, accesses: int, seed: int) -> tuple[_Ids, float]:
    """Return ids in the order of their accesses, and the mean delay in accesses."""
    random, mean_delay = np.random.default_rng(seed), accesses / 20
    shares = {"window": (1.0, 0.0), "zipf+window": (0.5, 0.5), "scan": (0.35, 0.35)}[pattern]
    kind = random.choice(3, accesses, p=[*shares, 1 - sum(shares)])
    touched = window(random, int(accesses * shares[0] * 1.1), mean_delay * shares[0])
    ids = np.empty(accesses, np.int64)
    ids[kind == 0] = touched[: np.count_nonzero(kind == 0)]
    ids[kind == 1] = zipf(random, int(np.count_nonzero(kind == 1)), accesses // 5)
    ids[kind == 2] = 2**40 + np.arange(np.count_nonzero(kind == 2))
    return ids, mean_delay


def batches(ids: _Ids, mean_label_delay: float, seed: int) -> Iterator[Batch]:
    """Cut accesses into seconds, and let losses come when their labels do."""
    delays = np.random.default_rng(seed).exponential(mean_label_delay, len(ids))
    come = np.arange(len(ids)) + delays
    order = come.argsort(kind="stable")
    seconds = (come[order] // _BATCH).astype(np.int64)
    for second in range(len(ids) // _BATCH):
        begin, end = np.searchsorted(seconds, (second, second + 1))
        arrived = order[begin:end]
        yield Batch(
            ids[second * _BATCH : (second + 1) * _BATCH],
            ids[arrived],
            second - (arrived // _BATCH).astype(np.float64),
        )


def hits_of(table: Table, played: list[Batch]) -> int:
    """Play all and return the hits of the second half."""
    hits = [int(np.count_nonzero(table.play(batch))) for batch in played]
    return sum(hits[len(hits) // 2 :])


def distinct(ids: _Ids, accesses: int) -> int:
    """Return how many distinct ids the last accesses have."""
    return len(np.unique(ids[-accesses:]))


def main() -> None:
    """Print a line for each pattern and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accesses", type=int, default=_ACCESSES)
    parser.add_argument("--full", action="store_true", help="10 million accesses, as published")
    options = parser.parse_args()
    accesses = 10 * _ACCESSES if options.full else options.accesses
    start_s = time.monotonic()
    print(f"{accesses:,} accesses; share of an unlimited table's hits")
    print(f"{'traffic':22} {'slots':>10} {'record':>7} {'full LRU':>9} {'points':>7} {'target':>7}")
    for pattern in ("window", "zipf+window", "scan"):
        ids, mean_delay = traffic(pattern, accesses, seed=0)
        d = distinct(ids, int(3 * mean_delay))
        for name, label_delay in ((pattern, 0.0), (f"{pattern}, delayed", mean_delay / 10)):
            played = list(batches(ids, label_delay, seed=1))
            all_hits = hits_of(Unlimited(), played)
            for size in _SIZES:
                slots = int(size * d)
                mine = hits_of(Recorded(slots), played) / all_hits
                lru = hits_of(FullLru(slots), played) / all_hits
                line = f"{name:22} {slots:10,} {mine:7.3f} {lru:9.3f} {100 * (lru - mine):7.1f}"
                print(line + (f" {_TARGET_POINTS:7.1f}" if size == 1.25 else ""), flush=True)
    print(f"{time.monotonic() - start_s:.0f} s")


if __name__ == "__main__":
    main()
