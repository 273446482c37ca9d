"""Snapshots of a large loss record: how long they take, and what training feels of them.

Run `python benchmarks/record_snapshot.py`. A record of 5 M rows is saved and restored; then
snapshots are taken beside a simulated training loop, whose steps look 1,024 ids up, compute for
some milliseconds and record their losses, in turns with the same loop left alone. Targets: at most
0.7 s for a snapshot with nothing beside it, at least 3 M rows/s restored, and no step delayed by
more than 20 ms. Beside training a snapshot takes longer, since it waits for the steps' use of the
record and of the interpreter; nothing waits for it, so that there is no target.

Neighbours on a shared machine delay steps as well: compare with the loop left alone. The plain
write is of as many bytes to the same disk.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from adasel_stream.record import LossRecord

_BATCH = 65_536
_STEP_IDS = 1_024
_SLACK = 1.3
_NEVER_S = 1e6


class Steps(NamedTuple):
    """Seconds that each step of a loop took, and of these the seconds inside the record."""

    whole: list[float]
    in_record: list[float]


def fill(record: LossRecord, rows: int) -> None:
    """Record random losses of ids 0, 1, ... until there are so many rows."""
    random = np.random.default_rng(0)
    start = 0
    while len(record) < rows:
        ids = np.arange(start, start + min(_BATCH, rows - len(record)))
        record.update(ids, random.exponential(1.0, len(ids)).astype(np.float32))
        start += len(ids)


def timed_s(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Time one call."""
    begin = clock()
    work()
    return clock() - begin


def write_plainly(folder: Path, size: int) -> None:
    """Write and flush as many bytes as a snapshot has."""
    block = os.urandom(2**20)
    with open(folder / "plain", "wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
        file.flush()
        os.fsync(file.fileno())
    os.unlink(folder / "plain")


def hash_files(path: Path) -> None:
    """Read and hash what a restore reads."""
    for file in path.glob("rank-*/*.parquet"):
        hashlib.sha256(file.read_bytes()).digest()


def train(record: LossRecord, ids: int, step_s: float, stop: threading.Event) -> Steps:
    """Take steps until told to stop."""
    random = np.random.default_rng(1)
    weights = torch.rand(192, 192)
    steps = Steps([], [])
    while not stop.is_set():
        batch = random.integers(0, ids, _STEP_IDS)
        losses = random.random(_STEP_IDS, dtype=np.float32)
        begin = time.perf_counter()
        record.lookup(batch)
        looked_up = time.perf_counter()
        while time.perf_counter() < looked_up + step_s:
            weights @ weights
        computed = time.perf_counter()
        record.update(batch, losses)
        end = time.perf_counter()
        steps.whole.append(end - begin)
        steps.in_record.append(looked_up - begin + end - computed)
    return steps


def train_beside(work: Callable[[], object], record: LossRecord, ids: int, step_s: float) -> Steps:
    """Train for as long as some work in another thread takes."""
    stop = threading.Event()

    def run() -> None:
        try:
            work()
        finally:
            stop.set()

    thread = threading.Thread(target=run)
    thread.start()
    steps = train(record, ids, step_s, stop)
    thread.join()
    return steps


def in_ms(seconds: list[float]) -> str:
    """Print a median and the slow end."""
    median, late, longest = np.percentile(np.array(seconds) * 1e3, [50, 99, 100])
    return f"{median:6.2f} {late:7.2f} {longest:7.2f}"


def measure_alone(record: LossRecord, folder: Path, rounds: int) -> None:
    """Print how long a full snapshot takes, beside a plain write of its bytes."""
    saves, cpu, plain = [], [], []

    def save() -> None:
        saves.append(timed_s(lambda: record.save(full=True)))

    for _ in range(rounds):
        cpu.append(timed_s(save, time.process_time))
        plain.append(timed_s(lambda: write_plainly(folder, record.snapshots.written_bytes)))
    ratio = statistics.median(a / b for a, b in zip(saves, plain, strict=True))
    size = record.snapshots.written_bytes
    print(
        f"full snapshot of {len(record):,} rows, nothing beside it: "
        f"{statistics.median(saves):.2f} s (target 0.7), "
        f"fastest {min(saves):.2f}, {statistics.median(cpu):.2f} of CPU; "
        f"{ratio:.1f}x a plain write of its {size / 2**20:.0f} MiB; "
        f"{size / len(record):.1f} bytes a row"
    )


def measure_training(record: LossRecord, ids: int, step_s: float, rounds: int) -> None:
    """Print how long steps take beside snapshots, and left alone."""
    alone, full, delta = (Steps([], []) for _ in range(3))
    durations: list[float] = []
    for _ in range(rounds):
        for into, work in (
            (alone, lambda: time.sleep(1.0)),
            (full, lambda: record.save(full=True)),
            (delta, record.save),
        ):
            steps = train_beside(work, record, ids, step_s)
            into.whole.extend(steps.whole)
            into.in_record.extend(steps.in_record)
            if into is full:
                durations.append(record.snapshots.duration_s)
    print(
        f"the same beside training: {statistics.median(durations):.2f} s, "
        f"fastest {min(durations):.2f} (no target)"
    )
    print(f"{'ms a step':22} {'median':>6} {'p99':>7} {'longest':>7}   in the record")
    for name, steps in (
        ("left alone", alone),
        ("beside a full snapshot", full),
        ("beside a delta", delta),
    ):
        print(f"{name:22} {in_ms(steps.whole)}   {in_ms(steps.in_record)}")
    delay_s = max(full.whole) - statistics.median(alone.whole)
    alone_s = max(alone.whole) - statistics.median(alone.whole)
    print(
        f"longest delay of a step: {delay_s * 1e3:.1f} ms (target 20), "
        f"{alone_s * 1e3:.1f} ms when left alone"
    )


def measure_restore(path: Path, capacity: int, rounds: int) -> None:
    """Print how fast a record is restored, beside hashing its bytes."""
    rates, cpu_rates, ratios = [], [], []
    for _ in range(rounds):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        record = LossRecord.open(path, capacity, save_every_s=_NEVER_S)
        restore_s, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
        rates.append(len(record) / restore_s / 1e6)
        cpu_rates.append(len(record) / cpu_s / 1e6)
        record.close(save=False)
        ratios.append(restore_s / timed_s(lambda: hash_files(path)))
    print(
        f"restore: {statistics.median(rates):.1f} M rows/s (target 3), "
        f"{statistics.median(cpu_rates):.1f} M a second of CPU; "
        f"{statistics.median(ratios):.1f}x reading and hashing the files alone"
    )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows of the record")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repeats")
    parser.add_argument("--step-ms", type=float, default=2.0, help="length of a training step")
    parser.add_argument("--folder", default=None, help="where to write, a temporary by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    capacity = int(options.rows * _SLACK)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, "record")
        record = LossRecord.open(path, capacity, save_every_s=_NEVER_S)
        fill(record, options.rows)
        record.save()
        print(f"{options.rounds} rounds, {record.engine} engine, {os.cpu_count()} cores")
        measure_alone(record, Path(folder), options.rounds)
        measure_training(record, options.rows, options.step_ms / 1e3, options.rounds)
        record.close(save=False)
        measure_restore(path, capacity, options.rounds)


if __name__ == "__main__":
    main()
