"""What it costs to hand losses from a serving process to the trainer.

    python benchmarks/serving.py

The serving side: the latency of `LossWriter.write` beside a copy of the same bytes by numpy, while
the publishing thread works and while its disk hangs. The trainer's side: reading and checking a
segment, and draining segments into a loss record, beside `LossRecord.update` alone. Medians of
interleaved rounds; targets stand beside. Latencies are wall-clock, so that waiting shows; calls in
which the machine ran something else instead, against the thread's will, are counted and left out.
Everything else is CPU time of one thread.
"""

import argparse
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from adasel_stream import LossRecord
from adasel_stream.serving import LossFeed, LossWriter
from adasel_stream.serving.segment import LOSS, ROW, read_segment, write_segment

ROWS = 256
SEGMENT_ROWS = 65_536
WRITER = "00c0ffee00c0ffee"


def latencies_us(call: Callable[[], object], calls: int, gap_s: float) -> np.ndarray[Any, Any]:
    """Time calls, one every `gap_s` seconds, in microseconds; NaN where it was interrupted."""
    times_s = np.empty(calls)
    switches = involuntary_switches()
    for number in range(calls):
        begin_s = time.perf_counter()
        call()
        times_s[number] = time.perf_counter() - begin_s
        if switches != involuntary_switches():
            times_s[number] = np.nan
        while time.perf_counter() < begin_s + gap_s:  # as busy as a server can be
            pass
        switches = involuntary_switches()
    return times_s * 1e6


def involuntary_switches() -> int:
    """Count how often this thread was interrupted."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


@contextmanager
def hanging_disk() -> Iterator[None]:
    """Let every write to disk hang until the block ends."""
    released, write = threading.Event(), os.writev

    def hang(descriptor: int, parts: Any) -> int:
        released.wait()
        return write(descriptor, parts)

    os.writev = hang
    try:
        yield
    finally:
        os.writev = write
        released.set()


def show_latencies(folder: Path, calls: int, gap_s: float) -> None:
    """Print what one call of 256 rows takes."""
    ids, losses = np.arange(ROWS), np.full(ROWS, 0.5, np.float32)
    source, target = np.zeros(ROWS, ROW), np.zeros(ROWS, ROW)
    copy = latencies_us(lambda: np.copyto(target.view("u1"), source.view("u1")), calls, gap_s)
    with LossWriter(folder / "working") as writer:
        working = latencies_us(lambda: writer.write(ids, losses), calls, gap_s)
        counts = writer.counts
    with LossWriter(folder / "hanging") as hanging, hanging_disk():
        hung = latencies_us(lambda: hanging.write(ids, losses), calls, gap_s)
    names = [f"sample-{number:08d}" for number in range(ROWS)]
    with LossWriter(folder / "strings") as strings:
        hashed = latencies_us(lambda: strings.write(names, losses), calls, gap_s)
    print(f"one call of {ROWS} rows every {gap_s * 1e6:.0f} us, {calls:,} calls, us")
    print(f"{'':24} {'p50':>8} {'p99':>8} {'p99.9':>8} {'max':>8} {'of copy':>8} {'left out':>9}")
    for name, found in (
        *(("numpy copy", copy), ("write", working)),
        *(("write, disk hangs", hung), ("write, ids are strings", hashed)),
    ):
        whole = found[~np.isnan(found)]
        quantiles = " ".join(f"{value:8.1f}" for value in np.quantile(whole, [0.5, 0.99, 0.999]))
        of_copy = np.median(whole) / np.nanmedian(copy)
        left_out = len(found) - len(whole)
        print(f"{name:24} {quantiles} {whole.max():8.0f} {of_copy:7.1f}x {left_out:9}")
    print("target: p99.9 of write under 1000, disk or no disk")
    rate = ROWS / max(gap_s, float(np.nanmedian(working)) / 1e6)
    print(
        f"offered {rate / 1e6:.1f} M rows/s; {counts['rows_dropped']:,} of "
        f"{counts['rows_written'] + counts['rows_dropped']:,} rows dropped"
    )


def fill(folder: Path, segments: int, n_ids: int, random: np.random.Generator) -> None:
    """Publish segments of random ids."""
    rows = np.zeros(SEGMENT_ROWS, ROW)
    rows["second"], rows["kind"] = int(time.time()), LOSS
    for sequence in range(segments):
        rows["id"] = random.integers(0, n_ids, SEGMENT_ROWS)
        rows["value"] = random.random(SEGMENT_ROWS)
        write_segment(folder, WRITER, sequence, rows.view("u1").data)


def timed_ms(call: Callable[[], object]) -> float:
    """Time one call, CPU milliseconds of this thread."""
    begin_s = time.thread_time()
    call()
    return (time.thread_time() - begin_s) * 1e3


def drain(folder: Path, record: LossRecord, segments: int) -> None:
    """Apply all segments, 16,384 rows a poll."""
    feed = LossFeed(folder, poll_every_s=0.0)
    while feed.counts["segments_applied"] < segments:
        feed.poll(record)


def time_round(folder: Path, record: LossRecord, n_ids: int, seed: int) -> dict[str, float]:
    """Time each work on a segment once, on ids that no other work has just touched."""
    random = np.random.default_rng(seed)
    segments = 4
    fill(folder, segments, n_ids, random)
    content = read_segment(folder, WRITER, 0).view("u1").data
    ids, losses = random.integers(0, n_ids, SEGMENT_ROWS), random.random(SEGMENT_ROWS, "f4")
    versions, ages_s = np.zeros(SEGMENT_ROWS, np.uint16), np.zeros(SEGMENT_ROWS)
    record.cursors.clear()
    return {
        "update alone": timed_ms(
            lambda: record.update(ids, losses, version=versions, age_s=ages_s)
        ),
        "read and check": timed_ms(lambda: read_segment(folder, WRITER, 1)),
        "drain": timed_ms(lambda: drain(folder, record, segments)) / segments,
        "write": timed_ms(lambda: write_segment(folder, WRITER, segments, content)),
    }


def show_drain(folder: Path, rounds: int, n_ids: int, engine: str) -> None:
    """Print what a segment costs a trainer."""
    record = LossRecord(int(n_ids * 1.25), engine=engine)
    found: list[dict[str, float]] = []
    for number in range(rounds + 1):
        (one := folder / str(number)).mkdir()
        found.append(time_round(one, record, n_ids, number))
    del found[0]  # numba compiles
    print(f"\na segment of {SEGMENT_ROWS:,} rows, {n_ids:,} ids, engine {record.engine}, CPU ms")
    for name in found[0]:
        median = statistics.median(times[name] for times in found)
        target = "  target: at most 2 ms" if name == "read and check" else ""
        print(f"{name:24} {median:8.2f} {SEGMENT_ROWS / median / 1e3:8.1f} M rows/s{target}")
    ratio = statistics.median(times["drain"] / times["update alone"] for times in found)
    beside = statistics.median(times["drain"] - times["update alone"] for times in found)
    print(f"drain is {ratio:.2f}x update alone, {beside:.2f} ms beside it")


def show_idle(folder: Path) -> None:
    """Print what a poll costs that finds nothing to do."""
    feed, record = LossFeed(folder / "idle", poll_every_s=1e6), LossRecord(100, engine="numpy")
    feed.poll(record)
    polls = 20_000
    times = [
        timed_ms(lambda: [feed.poll(record) for _ in range(polls)]) * 1e3 / polls for _ in range(9)
    ]
    print(f"\na poll with nothing to do: {statistics.median(times):.2f} us (target at most 2)")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20_000, help="calls of write, default 20000")
    parser.add_argument("--gap-us", type=float, default=100.0, help="between calls, default 100")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved repeats, default 15")
    parser.add_argument("--ids", type=int, default=5_000_000, help="distinct ids, default 5 M")
    parser.add_argument("--engine", default="auto", help="the record's engine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        show_latencies(Path(folder), options.calls, options.gap_us / 1e6)
        show_drain(Path(folder), options.rounds, options.ids, options.engine)
        show_idle(Path(folder))


if __name__ == "__main__":
    main()
