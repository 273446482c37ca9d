"""The loss record against its targets, a Python dict and the speed of memory.

Run `python benchmarks/record.py`. Every figure is a median of interleaved rounds, in CPU time of
one thread, so that neighbours on a shared machine disturb it less. Targets at 5 M ids in batches
of 65,536: 3 M upserts/s, 8 M lookups/s, 24 bytes a slot.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from adasel_stream.record import LossRecord

_BATCH = 65_536
_SMALL = 128
_SMALL_CALLS = 100
_SLACK = 1.25
_Ids = npt.NDArray[np.int64]


class DictRecord:
    """The same knowledge in a dict: id -> average, last loss, second, count."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[float, float, int, int]] = {}

    def update(self, ids: _Ids, losses: npt.NDArray[np.float32]) -> None:
        """Record losses, one row after the other."""
        rows, second = self._rows, int(time.time())
        for id_, loss in zip(ids.tolist(), losses.tolist(), strict=True):
            ema, _, _, count = rows.get(id_, (loss, loss, second, 0))
            rows[id_] = (loss + 0.9 * (ema - loss), loss, second, count + 1)

    def lookup(self, ids: _Ids) -> npt.NDArray[np.float32]:
        """Return last losses, 0 where unknown."""
        rows, unknown = self._rows, (0.0, 0.0, 0, 0)
        found = (rows.get(id_, unknown)[1] for id_ in ids.tolist())
        return np.fromiter(found, np.float32, len(ids))


def measure(
    works: dict[str, tuple[Callable[[], object], int]], rounds: int
) -> dict[str, list[float]]:
    """Return million rows/s of each work in each round; a work is a call and its rows."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (call, rows) in works.items():
            start_s = time.thread_time()
            call()
            rates[name].append(rows / (time.thread_time() - start_s) / 1e6)
    return rates


def build_works(n_ids: int, seed: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Fill a record and a dict with ids 0..n_ids-1, and return what to time on them."""
    random = np.random.default_rng(seed)
    record, plain = LossRecord(int(n_ids * _SLACK)), DictRecord()
    churning = LossRecord(int(n_ids * _SLACK))
    losses = random.random(_BATCH, dtype=np.float32)
    order = random.permutation(n_ids)
    for start in range(0, n_ids, _BATCH):
        chunk = order[start : start + _BATCH]
        for each in (record, churning, plain):
            each.update(chunk, losses[: len(chunk)])
    lines = np.ones((record.capacity // 8, 8), np.uint64)
    few = losses[:_SMALL]

    def known(rows: int = _BATCH) -> _Ids:
        return random.integers(0, n_ids, rows)

    def small(call: Callable[[_Ids], object]) -> Callable[[], None]:
        batches = [known(_SMALL) for _ in range(_SMALL_CALLS)]

        def repeat() -> None:
            for batch in batches:
                call(batch)

        return repeat

    names = [f"sample-{i:08d}" for i in known().tolist()]
    strings = LossRecord(int(n_ids * _SLACK))
    strings.update(names, losses)
    # drawn beforehand, so that no random number is timed
    ids = [known() for _ in range(32)]
    new = [random.integers(n_ids, 2**62, _BATCH) for _ in range(32)]
    places = [random.integers(0, len(lines), _BATCH) for _ in range(32)]
    turn = {"i": 0}

    def following(batches: list[_Ids]) -> _Ids:
        turn["i"] += 1
        return batches[turn["i"] % len(batches)]

    rows = _SMALL * _SMALL_CALLS
    return {
        "gather 64 B": (lambda: lines.take(following(places), axis=0), _BATCH),
        "upsert": (lambda: record.update(following(ids), losses), _BATCH),
        "lookup": (lambda: record.lookup(following(ids)), _BATCH),
        "upsert, all new": (lambda: churning.update(following(new), losses), _BATCH),
        "upsert strings": (lambda: strings.update(names, losses), _BATCH),
        "lookup strings": (lambda: strings.lookup(names), _BATCH),
        "dict upsert": (lambda: plain.update(following(ids), losses), _BATCH),
        "dict lookup": (lambda: plain.lookup(following(ids)), _BATCH),
        "upsert 128": (small(lambda batch: record.update(batch, few)), rows),
        "lookup 128": (small(record.lookup), rows),
        "dict upsert 128": (small(lambda batch: plain.update(batch, few)), rows),
        "dict lookup 128": (small(plain.lookup), rows),
    }


def main() -> None:
    """Print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=5_000_000, help="distinct ids")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved repeats")
    options = parser.parse_args()
    torch.set_num_threads(1)
    targets = {"upsert": 3.0, "lookup": 8.0}
    rates = measure(build_works(options.ids, seed=0), options.rounds)
    gather = rates["gather 64 B"]
    print(f"{options.ids:,} ids, batches of {_BATCH:,}, {options.rounds} rounds, one thread")
    print(f"{'':16} {'M rows/s':>9} {'of gather':>9} {'of dict':>8} {'target':>7}")
    for name, found in rates.items():
        of_gather = statistics.median(a / b for a, b in zip(found, gather, strict=True))
        line = f"{name:16} {statistics.median(found):9.2f} {of_gather:9.3f}"
        if (plain := rates.get(f"dict {name}")) is not None:
            line += f" {statistics.median(a / b for a, b in zip(found, plain, strict=True)):7.1f}x"
        else:
            line += " " * 9
        print(line + (f" {targets[name]:7.1f}" if name in targets else ""))
    for name in ("upsert 128", "lookup 128"):
        print(f"{name}: {_SMALL / statistics.median(rates[name]):.0f} us a batch")
    record = LossRecord(1_000_000)
    print(f"{record.record_bytes / record.capacity:.0f} bytes a slot (target 24)")


if __name__ == "__main__":
    main()
