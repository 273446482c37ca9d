"""The loss record against its targets, other stores and the speed of memory.

Run `python -m benchmarks.record`. Every figure is a median of interleaved rounds, in CPU time of
one thread, so that neighbours on a shared machine disturb it less. Rates are also given as a
share of random 64-byte lines a second, copied out of a table as large as the record by numpy's
`take` or by a compiled loop that asks for lines ahead, whichever was faster in that round: a
known id takes two lines, so 0.5 is what memory allows out of cache.

LMDB, SQLite and a dict hold fewer ids by default, which flatters them: filling them with 20
million takes minutes and, for the dict, 4 GB.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import numba
import numpy as np
import numpy.typing as npt

from adasel_stream.record import LossRecord
from adasel_stream.record.kernels.search import prefetch
from benchmarks.record_stores import DictStore, LmdbStore, SqliteStore

_BATCH = 65_536
_STORE_BATCH = 8_192
_SMALL = 128
_SLACK = 1.25
_AHEAD = 16
_WORDS = 8
_BATCHES = 32
_Ids = npt.NDArray[np.int64]
_Work = tuple[Callable[[_Ids], object], list[_Ids]]
_TARGETS = {
    "numpy upsert": 0.07,
    "numpy lookup": 0.30,
    "numba upsert": 0.30,
    "numba lookup": 0.40,
}
_TARGETS_US = {
    "numpy upsert 128": 120.0,
    "numpy lookup 128": 30.0,
    "numba upsert 128": 10.0,
    "numba lookup 128": 6.0,
}


class Store(Protocol):
    """What is compared."""

    def update(self, ids: _Ids, losses: npt.NDArray[np.float32]) -> None:
        """Record losses."""
        ...

    def lookup(self, ids: _Ids) -> object:
        """Return losses."""
        ...


@numba.njit  # type: ignore[untyped-decorator, unused-ignore]  # typed in part only
def _gather(words: Any, lines: Any, out: Any) -> None:
    """Copy lines of 64 bytes, each asked for some lines ahead."""
    for row in range(len(lines)):
        prefetch(words, lines[min(row + _AHEAD, len(lines) - 1)] * _WORDS)
        for word in range(_WORDS):
            out[row, word] = words[lines[row] * _WORDS + word]


def fill(store: Store, n_ids: int, batch: int) -> None:
    """Record a loss of each of the ids 0..n_ids-1, in their order."""
    losses = np.linspace(0, 1, batch, dtype=np.float32)
    for start in range(0, n_ids, batch):
        ids = np.arange(start, min(start + batch, n_ids))
        store.update(ids, losses[: len(ids)])


def updating(store: Store, rows: int = _BATCH) -> Callable[[_Ids], object]:
    """Return what records losses of as many ids."""
    losses = np.linspace(0, 1, rows, dtype=np.float32)
    return lambda ids: store.update(ids, losses)


def works_of(
    name: str, store: Store, draw: Callable[[int], list[_Ids]], batch: int
) -> dict[str, _Work]:
    """Return what to time on one store."""
    return {
        f"{name} upsert": (updating(store, batch), draw(batch)),
        f"{name} lookup": (store.lookup, draw(batch)),
        f"{name} upsert 128": (updating(store, _SMALL), draw(_SMALL)),
        f"{name} lookup 128": (store.lookup, draw(_SMALL)),
    }


def build_works(n_ids: int, store_ids: int, folder: Path, seed: int) -> dict[str, _Work]:
    """Fill all stores, and return what to time."""
    random = np.random.default_rng(seed)

    def drawing(low: int, high: int) -> Callable[[int], list[_Ids]]:
        # drawn beforehand, so that no random number is timed
        return lambda rows: [random.integers(low, high, rows) for _ in range(_BATCHES)]

    lines = np.ones((int(n_ids * _SLACK) * 24 // 64, _WORDS), np.uint64)
    out = np.empty((_BATCH, _WORDS), np.uint64)
    places = drawing(0, len(lines))(_BATCH)
    _gather(lines.reshape(-1), places[0], out)
    works: dict[str, _Work] = {
        "numpy lines": (lambda at: lines.take(at, axis=0), places),
        "numba lines": (lambda at: _gather(lines.reshape(-1), at, out), places),
    }
    for engine in ("numpy", "numba"):
        record = LossRecord(int(n_ids * _SLACK), engine=engine)
        fill(record, n_ids, _BATCH)
        works |= works_of(engine, record, drawing(0, n_ids), _BATCH)
        full = LossRecord(n_ids // 8, engine=engine)
        fill(full, n_ids // 4, _BATCH)
        works[f"{engine} upsert new"] = (updating(full), drawing(n_ids, 2**62)(_BATCH))
    stores: dict[str, Store] = {
        "dict": DictStore(),
        "LMDB": LmdbStore(folder / "lmdb"),
        "SQLite": SqliteStore(folder / "sqlite"),
    }
    for name, store in stores.items():
        fill(store, store_ids, _BATCH)
        works |= works_of(name, store, drawing(0, store_ids), _STORE_BATCH)
    return works


def measure(works: dict[str, _Work], rounds: int) -> dict[str, list[float]]:
    """Return million rows/s of each work in each round; small batches are repeated."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    batches = {name: cycle(given) for name, (_, given) in works.items()}
    for _ in range(rounds):
        for name, (call, _) in works.items():
            calls = 100 if name.endswith("128") and name.startswith("num") else 1
            given = [next(batches[name]) for _ in range(calls)]
            start_s = time.thread_time()
            for ids in given:
                call(ids)
            taken_s = time.thread_time() - start_s
            rates[name].append(sum(map(len, given)) / taken_s / 1e6)
    return rates


def show(rates: dict[str, list[float]]) -> None:
    """Print one line a figure, its target beside."""
    lines = [max(pair) for pair in zip(rates["numpy lines"], rates["numba lines"], strict=True)]
    print(f"{'':18} {'M rows/s':>9} {'of lines':>9} {'target':>7} {'us/batch':>9} {'target':>7}")
    for name, found in rates.items():
        share = statistics.median(a / b for a, b in zip(found, lines, strict=True))
        line = f"{name:18} {statistics.median(found):9.2f} {share:9.3f}"
        line += f" {_TARGETS[name]:7.2f}" if name in _TARGETS else " " * 8
        if name.endswith("128"):
            line += f" {_SMALL / statistics.median(found):9.1f}"
            line += f" {_TARGETS_US[name]:7.0f}" if name in _TARGETS_US else ""
        print(line)


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=20_000_000, help="ids in the record")
    parser.add_argument("--store-ids", type=int, default=1_000_000, help="ids in other stores")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved repeats")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        works = build_works(options.ids, options.store_ids, Path(folder), seed=0)
        rates = measure(works, options.rounds)
    print(
        f"{options.ids:,} ids in the record, {options.store_ids:,} in other stores; batches of "
        f"{_BATCH:,}, {_STORE_BATCH:,} for those; {options.rounds} rounds, one thread"
    )
    show(rates)
    record = LossRecord(1_000_000)
    print(f"{record.record_bytes / record.capacity:.0f} bytes a slot (target 24)")


if __name__ == "__main__":
    main()
