"""Processes that keep a record and are killed; run as a script by test_snapshots_kills.py.

A process of its own, so that it can fork children with Arrow loaded. What a record holds after a
number of steps is known, and its cursors carry that number, so that each restart shows whether
it found one whole snapshot. Prints one JSON object of counts; any broken promise is a failed
assertion and exit status 1.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import numpy.ma  # np.unique imports it at its first call: loaded once, before any fork

from adasel_stream.keys import ids_of_keys
from adasel_stream.record import LossRecord
from adasel_stream.record.pending import PendingLabels
from adasel_stream.record.snapshots.upkeep import compact
from tests.killed_savers import count_calls

IDS, TOUCHED = 400, 60
NEVER_S = 1e6


def touched(step: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The ids that a step updates."""
    return (np.arange(TOUCHED) + 37 * step) % IDS


def open_record(path: Path) -> LossRecord:
    """Open the record; its time is the number of steps."""
    record: LossRecord | None = None

    def clock() -> float:
        return float(0 if record is None else step_of(record))

    record = LossRecord.open(
        path,
        16 * IDS,
        save_every_s=NEVER_S,
        decay=0.0,  # an average is then the last loss, and their number does not matter
        clock=clock,
        engine="numpy",
        pending=PendingLabels(8 * IDS, np.subtract, ttl_s=None),
    )
    return record


def step_of(record: LossRecord) -> int:
    """How many steps the record has seen."""
    return record.cursors.get("steps", (0, 0))[0]


def take_step(record: LossRecord) -> int:
    """Update some ids with the number of the step, and join labels to the last predictions."""
    step = step_of(record) + 1
    record.cursors["steps"] = (step, 0)
    record.update(touched(step), np.full(TOUCHED, float(step)))
    record.join(IDS + touched(step - 1), np.zeros(TOUCHED, np.float32))
    record.expect(IDS + touched(step), np.full(TOUCHED, float(step)))
    return step


def checked_step(path: Path) -> int:
    """Restart, check that all rows are those of one step, and return the step."""
    record = open_record(path)
    step, losses = step_of(record), np.full(2 * IDS, np.nan)
    for past in range(max(1, step - IDS), step + 1):
        losses[touched(past)] = past
        losses[IDS + touched(past - 1)] = past - 1 or np.nan
    found = record.lookup(np.arange(2 * IDS))
    np.testing.assert_array_equal(found.known, ~np.isnan(losses))
    np.testing.assert_array_equal(found.losses[found.known], losses[found.known])
    np.testing.assert_array_equal(found.ema, found.losses)
    assert record.pending is not None
    waiting = record.pending.entries(0, record.pending.capacity)
    expected = IDS + touched(step) if step else touched(0)[:0]
    assert set(ids_of_keys(waiting.keys, 0).tolist()) == set(expected.tolist())
    assert (waiting.values["last"] == step).all()
    assert record.snapshots.damaged_files == 0
    record.close(save=False)
    return step


def save_for_ever(path: Path, report: int) -> None:
    """Take and save one step after the other: deltas, and now and then a new base."""
    record = open_record(path)
    while True:
        step = take_step(record)
        record.save()
        os.write(report, step.to_bytes(8, "little"))


def compact_for_ever(path: Path, report: int) -> None:
    """Save two steps, then fold them into a base with the record closed, again and again."""
    while True:
        record = open_record(path)
        for _ in range(2):
            step = take_step(record)
            record.save()
            os.write(report, step.to_bytes(8, "little"))
        record.close(save=False)
        compact(path)


JOBS = {"snapshot": save_for_ever, "compaction": compact_for_ever}


def last_reported(readable: int) -> int | None:
    """Read what a child wrote until its end."""
    reported = b""
    while block := os.read(readable, 1 << 16):
        reported += block
    os.close(readable)
    return int.from_bytes(reported[-8:], "little") if reported else None


def leftovers(path: Path) -> int:
    """Count files that the manifest does not name."""
    folder = path / "rank-00000-of-00001"
    if not folder.exists():
        return 0
    manifest = folder / "manifest.json"
    named = {"owner.lock", "manifest.json"}
    if manifest.exists():
        named |= {file["name"] for file in json.loads(manifest.read_bytes())["files"]}
    return len({file.name for file in folder.iterdir()} - named)


def round_s(job: str, path: Path) -> float:
    """Measure how long a child takes to save four steps."""
    readable, writable = os.pipe()
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        JOBS[job](path, writable)
    for _ in range(4):
        os.read(readable, 8)
    duration_s = time.perf_counter() - begin
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(readable)
    os.close(writable)
    return duration_s


def kill_at_random_moments(job: str, path: Path, kills: int) -> dict[str, int]:
    """Kill a child again and again: no save that returned is lost, no restart is refused."""
    rng = random.Random(0)
    round_s(job, path)  # what is slow once only must not set how long children live
    life_s = round_s(job, path)
    step = checked_step(path)
    killed_between = 0
    for _ in range(kills):
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            JOBS[job](path, writable)
        os.close(writable)
        time.sleep(rng.uniform(0.0, 2.0 * life_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reported = last_reported(readable)
        killed_between += leftovers(path) > 0
        step, before = checked_step(path), step
        assert leftovers(path) == 0, "files of killed owners pile up"
        assert (reported or before) <= step <= (reported or before) + 1, "a saved step is lost"
    return {"kills": kills, "steps": step, "killed_between": killed_between}


def kill_at_every_call(job: str, path: Path) -> dict[str, int]:
    """Kill a child before each call to the operating system that one round of its job makes."""
    for number in range(1, 2000):
        before = checked_step(path)
        child = os.fork()
        if child == 0:
            run_until_call(job, path, number)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert before <= checked_step(path) <= before + 2
        if status == 0:
            return {"calls": number - 1}
        assert status == -signal.SIGKILL
    raise AssertionError("the round never ended")


def run_until_call(job: str, path: Path, last: int) -> None:
    """Do one round and die by SIGKILL before the call of that number, or exit in peace."""

    def kill(number: int, _: str) -> None:
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)

    record = open_record(path)
    take_step(record)
    record.save(full=True)
    take_step(record)
    if job == "snapshot":
        count_calls(kill)
        record.save()
        record.save(full=True)
    else:
        record.save()
        record.close(save=False)
        count_calls(kill)
        compact(path)
    os._exit(0)


if __name__ == "__main__":
    _, job, how, folder = sys.argv
    if how == "calls":
        counts = kill_at_every_call(job, Path(folder))
    else:
        counts = kill_at_random_moments(job, Path(folder), int(how))
    print(json.dumps(counts))
