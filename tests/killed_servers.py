"""Serving processes and their trainer, killed again and again; run as a script by a test.

A process of its own, so that it can fork children with everything loaded while it has no threads.
Prints one JSON object of counts; any broken promise is a failed assertion and exit status 1.

Two processes write rows whose ids tell which process wrote them and as which of its rows. A third
drains them into a record that is kept on disk. Whoever is killed is started again. At the end
every row that was published must have been applied, once: a record counts the losses of each id.

With the name of a bug as a third argument the feed has that bug, which must be found.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adasel_stream.record import LossRecord
from adasel_stream.serving import LossFeed, LossWriter, feed, taking
from adasel_stream.serving.names import writer_and_sequence
from adasel_stream.serving.segment import read_segment

KILLS_PER_STAGE = 25  # then everything is drained, checked, and begun anew
SERVERS = 2
ROWS_PER_SERVER = 2**24  # more than any of them writes
CAPACITY = 2**20  # so many slots that no bucket of eight overflows
WORD = 8


def fork(work: Callable[[], None]) -> int:
    """Do some work in a child; give its process id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def open_record(folder: Path, save_every_s: float) -> LossRecord:
    """Open the record, as it was last saved."""
    return LossRecord.open(
        folder / "record", CAPACITY, save_every_s=save_every_s, engine="numpy", decay=0.5
    )


def train(folder: Path, seed: int, report: int) -> None:
    """Drain and save as long as the experiment runs; report when that begins."""
    experiment = os.getppid()
    rng = random.Random(seed)
    record = open_record(folder, save_every_s=0.005)
    feed = LossFeed(folder / "serving", poll_every_s=0.001)
    os.write(report, b"!")
    while os.getppid() == experiment:
        if not feed.poll(record, rng.randint(1, 40)):
            time.sleep(0.0005)


def serve(folder: Path, number: int, report: int) -> None:
    """Write as long as the experiment runs, and report how many rows are certainly published."""
    experiment = os.getppid()
    rng = random.Random(number)
    writer = LossWriter(folder / "serving", segment_rows=128, publish_every_s=0.002)
    written = 0
    while os.getppid() == experiment:
        # fewer than one buffer holds, so that none is dropped however long a disk may take
        for _ in range(rng.randint(1, 20)):
            ids = np.arange(written, written + rng.randint(1, 5)) + number * ROWS_PER_SERVER
            writer.write(ids, np.full(len(ids), 0.5, np.float32))
            written += len(ids)
            time.sleep(0.0005)
        assert writer.publish()
        assert writer.counts["rows_dropped"] == 0
        os.write(report, written.to_bytes(WORD, "little"))


class Stage:
    """Servers and a trainer in a folder of their own.

    Attributes:
        counts: what happened.
        reported: by server, rows that it said were published.
        seen: ids that were seen in segments after their server had been killed.
    """

    def __init__(self, folder: Path, seed: int, counts: Counter[str]) -> None:
        self.counts = counts
        self.reported: dict[int, int] = {}
        self.seen: set[int] = set()
        self._folder = folder
        self._rng = random.Random(seed)
        self._started = 0
        self._reports: dict[int, tuple[int, int]] = {}
        (folder / "serving").mkdir(parents=True)
        self._trainer = self._start_trainer()
        self._servers = [self._start_server() for _ in range(SERVERS)]

    def kill_one(self) -> None:
        """Kill the trainer or a server after a while, and start another in its place."""
        of_trainer = self._rng.random() < 0.5
        if of_trainer:
            assert os.read(self._began, 1) == b"!"  # restoring takes longer than it lives then
            os.close(self._began)
        time.sleep(self._rng.uniform(0.0, 0.15))
        if of_trainer:
            self._kill(self._trainer)
            self.counts["trainers_killed"] += 1
            self.counts["segments_left"] += len(self._segments())
            self._trainer = self._start_trainer()
        else:
            turn = self._rng.randrange(SERVERS)
            self._kill_server(self._servers[turn])
            self._servers[turn] = self._start_server()

    def end(self) -> None:
        """Kill all, drain what they left, and check it."""
        for server in self._servers:
            self._kill_server(server)
        self._kill(self._trainer)
        _, status = os.waitpid(fork(self._check), 0)
        assert status == 0
        self.counts["rows_published"] += sum(self.reported.values())

    def _check(self) -> None:
        record = open_record(self._folder, save_every_s=1e6)
        feed = LossFeed(self._folder / "serving", poll_every_s=0.0)
        while self._segments():
            if not feed.poll(record) and not feed.backlog_segments:
                record.save()
        feed.poll(record)
        assert feed.counts["segments_missing"] == 0
        assert feed.counts["segments_damaged"] == 0
        left = [name for name in os.listdir(self._folder / "serving") if "seg" in name]
        assert left == [], left
        record.close()
        kept = open_record(self._folder, save_every_s=1e6)
        items = kept.items()
        assert kept.counts["evicted"] == 0, "the record is too small for this test"
        twice = items.ids[items.counts != 1]
        assert len(twice) == 0, f"applied twice: {twice[:5]}"
        for server, rows in self.reported.items():
            first = server * ROWS_PER_SERVER
            mine = items.ids[items.ids // ROWS_PER_SERVER == server]
            holes = sorted(set(range(first, int(mine.max(initial=first)))) - set(mine.tolist()))
            assert not holes, f"{len(holes)} rows of server {server} lost, {holes[0]} first"
            assert len(mine) >= rows, "the end is lost"
        assert self.seen <= set(items.ids.tolist()), "a published segment is lost"

    def _kill(self, process: int) -> None:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WIFSIGNALED(status), "it ended before it was killed"

    def _kill_server(self, process: int) -> None:
        self._kill(process)
        self.counts["servers_killed"] += 1
        number, report = self._reports.pop(process)
        with open(report, "rb") as pipe:
            reports = pipe.read()
        self.reported[number] = int.from_bytes(reports[-WORD:], "little")
        self.counts["killed_while_writing"] += any(
            name.endswith(".tmp") for name in os.listdir(self._folder / "serving")
        )
        for writer, sequence in self._segments():
            with contextlib.suppress(FileNotFoundError):
                rows = read_segment(self._folder / "serving", writer, sequence)
                ids = rows["id"][rows["id"] // ROWS_PER_SERVER == number]
                self.seen.update(ids.tolist())

    def _segments(self) -> list[tuple[str, int]]:
        names = map(writer_and_sequence, os.listdir(self._folder / "serving"))
        return [name for name in names if name]

    def _start_trainer(self) -> int:
        seed = self._rng.randrange(2**32)
        self._began, report = os.pipe()
        process = fork(lambda: train(self._folder, seed, report))
        os.close(report)
        return process

    def _start_server(self) -> int:
        self._started += 1
        number = self._started
        readable, writable = os.pipe()
        process = fork(lambda: serve(self._folder, number, writable))
        os.close(writable)
        self._reports[process] = (number, readable)
        return process


def remove_too_early() -> None:
    """Remove segments when they were applied, not when a snapshot covers them."""
    setattr(LossRecord, "saved_cursors", None)  # noqa: B010 - mypy forbids the assignment


def apply_while_copying() -> None:
    """Apply rows while a snapshot is copied, whose cursors were taken before."""
    setattr(LossRecord, "copying", property(lambda _: False, lambda _, __: None))  # noqa: B010


def forget_rows() -> None:
    """Begin again with a segment of which a part was applied."""

    def take_all(*given: Any) -> taking.Taken:
        taken = taking.take(*given)
        taken.moves = {writer: (sequence, 0) for writer, (sequence, _) in taken.moves.items()}
        return taken

    setattr(feed, "take", take_all)  # noqa: B010


BUGS = {bug.__name__: bug for bug in (remove_too_early, apply_while_copying, forget_rows)}
"""Faults that are put into the feed on purpose."""


def main(folder: Path, kills: int) -> dict[str, int]:
    """Kill so many processes, and return what happened."""
    counts: Counter[str] = Counter()
    for stage in range(-(-kills // KILLS_PER_STAGE)):
        running = Stage(folder / str(stage), stage, counts)
        for _ in range(min(KILLS_PER_STAGE, kills - stage * KILLS_PER_STAGE)):
            running.kill_one()
        running.end()
    return dict(counts)


if __name__ == "__main__":
    for name in sys.argv[3:]:
        BUGS[name]()
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
