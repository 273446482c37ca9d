"""Kill owners of loss records with SIGKILL, and damage files of snapshots: what is noticed.

    python benchmarks/record_faults.py --kills 500 --damages 1000000

Owners save one step after the other, or fold the deltas of a closed record into a new base, until
they are killed. What a record holds after a number of steps is known, and its cursors carry that
number, so that each restart shows whether it found one whole snapshot, and no older one than the
last that was complete. While a snapshot is taken another thread joins labels: each prediction
waits or has become one loss, never both nor neither. Then the bytes of a manifest and of a file
of rows are flipped, cut, zeroed and repeated at random, as often as asked. Target: nothing is
lost, and no damage is accepted.
"""

import argparse
import hashlib
import io
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.ma  # np.unique imports it at its first call: loaded once, before any fork
import numpy.typing as npt

from adasel_stream.errors import DamagedSnapshotError
from adasel_stream.keys import ids_of_keys
from adasel_stream.record import LossRecord
from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.pending import PendingLabels
from adasel_stream.record.snapshots import manifest as manifests
from adasel_stream.record.snapshots.columns import encode_groups
from adasel_stream.record.snapshots.files import checked_rows
from adasel_stream.record.snapshots.manifest import FileEntry, Manifest
from adasel_stream.record.snapshots.upkeep import compact

IDS, TOUCHED = 400, 60
LABELLED, BLOCKS = 20, 8
NEVER_S = 1e6


def touched(step: int) -> npt.NDArray[np.int64]:
    """The ids that a step updates."""
    return (np.arange(TOUCHED) + 37 * step) % IDS


def predicted(step: int) -> npt.NDArray[np.int64]:
    """The ids whose predictions of a step meet their labels while snapshots are taken."""
    return 2 * IDS + LABELLED * ((step - 1) % BLOCKS) + np.arange(LABELLED)


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
    record.join(predicted(step), np.zeros(LABELLED, np.float32))  # those still left
    record.expect(predicted(step), np.full(LABELLED, float(step)))
    return step


def save(record: LossRecord, *, full: bool = False) -> None:
    """Save, while another thread joins labels."""
    thread = threading.Thread(target=join_labels, args=[record])
    thread.start()
    record.save(full=full)
    thread.join()


def join_labels(record: LossRecord) -> None:
    """Join labels to half the predictions of each of the last two steps, one by one."""
    step = step_of(record)
    for pair in zip(predicted(step)[::2], predicted(step - 1)[1::2], strict=True):
        for id_ in pair:
            record.join(np.array([id_]), np.zeros(1, np.float32))


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
    rows = record.pending.entries(0, record.pending.capacity)
    waiting = dict(zip(ids_of_keys(rows.keys, 0).tolist(), rows.values["last"], strict=True))
    expected = set((IDS + touched(step)).tolist()) if step else set[int]()
    assert {id_ for id_ in waiting if id_ < 2 * IDS} == expected
    assert all(waiting[id_] == step for id_ in expected)
    items = record.items()
    counts = dict(zip(items.ids.tolist(), items.counts.tolist(), strict=True))
    for block in range(BLOCKS):
        times = (step + BLOCKS - 1 - block) // BLOCKS
        for id_ in predicted(block + 1).tolist():
            assert counts.get(id_, 0) + (id_ in waiting) == times, "a label counts twice or not"
    assert record.snapshots.damaged_files == 0
    record.close(save=False)
    return step


def save_for_ever(path: Path, report: int) -> None:
    """Take and save one step after the other: deltas, and now and then a new base."""
    record = open_record(path)
    while True:
        step = take_step(record)
        save(record)
        os.write(report, step.to_bytes(8, "little"))


def compact_for_ever(path: Path, report: int) -> None:
    """Save two steps, then fold them into a base with the record closed, again and again."""
    while True:
        record = open_record(path)
        for _ in range(2):
            step = take_step(record)
            save(record)
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


def sound_file(rows: int) -> tuple[bytes, FileEntry]:
    """Return a file of rows, and what a manifest says of it."""
    rng = np.random.default_rng(0)
    values = np.ones(rows, VALUE)
    values["ema"], values["last"] = rng.random((2, rows))
    keys = np.sort(rng.integers(0, 2**64, rows, np.uint64))
    file = b"".join(encode_groups([Entries(keys, values)], seed=0))
    digest = hashlib.sha256(file).hexdigest()
    return file, FileEntry("base-000000000001.parquet", "base", rows, len(file), digest, 1, 1)


def sound_manifest(entry: FileEntry) -> bytes:
    """Return a manifest of one file."""
    manifest = Manifest(
        generation=1,
        layout=1,
        rank=0,
        world_size=1,
        created_s=1.5,
        capacity=104,
        seed=0,
        decay=0.9,
        tick=1,
        position={"cursors": {"w": [1, 2]}, "ticks": {"read_s": 9.0, "elapsed_s": 1.0}},
        files=(entry,),
    )
    return manifests.encode(manifest)


def random_damage(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, zero a stretch, or repeat one; always to something else."""
    at, end = sorted((rng.randrange(len(content)), rng.randrange(1, len(content) + 1)))
    match rng.randrange(6):
        case 0:
            damaged = content[:at]
        case 1:
            damaged = content[:at] + bytes(end - at) + content[end:]
        case 2:
            damaged = content[:end] + content[at:end] + content[end:]
        case _:
            flipped = bytearray(content)
            for _ in range(rng.choice([1, 1, 2, 4])):
                bit = rng.randrange(8 * len(content))
                flipped[bit // 8] ^= 1 << bit % 8
            damaged = bytes(flipped)
    return random_damage(content, rng) if damaged == content else damaged


def refused(read: Callable[[bytes], object], damaged: bytes) -> bool:
    """Return whether reading something damaged says that it is."""
    try:
        read(damaged)
    except DamagedSnapshotError:
        return True
    return False


def count_accepted(damages: int, rows: int = 60) -> int:
    """Damage a file and a manifest in turn, and count what is accepted."""
    file, entry = sound_file(rows)
    manifest = sound_manifest(entry)
    rng = random.Random(damages)
    accepted = 0

    def read_file(content: bytes) -> object:
        return checked_rows(io.BytesIO(content), entry, "file")

    def read_manifest(content: bytes) -> object:
        return manifests.decode(content, "manifest")

    for _ in range(damages // 2):
        accepted += not refused(read_file, random_damage(file, rng))
        accepted += not refused(read_manifest, random_damage(manifest, rng))
    return accepted


def main() -> None:
    """Kill, damage, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each kind, default 50")
    parser.add_argument("--damages", type=int, default=50_000, help="default 50,000")
    parser.add_argument("--folder", default=None, help="where to work, a temporary by default")
    parser.add_argument("--json", action="store_true", help="print counts of kills as JSON")
    options = parser.parse_args()
    counts = {}
    for job in JOBS:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            counts[job] = kill_at_random_moments(job, Path(folder), options.kills)
    if options.json:
        print(json.dumps(counts))
        return
    for job, count in counts.items():
        print(
            f"{job}: {count['kills']} kills, {count['killed_between']} of them between two files; "
            f"{count['steps']} steps saved, each restart exact (target: all)"
        )
    begin_s = time.perf_counter()
    accepted = count_accepted(options.damages)
    rate = options.damages / (time.perf_counter() - begin_s)
    print(f"{options.damages:,} damages, {rate:,.0f}/s: {accepted} accepted (target 0)")


if __name__ == "__main__":
    main()
