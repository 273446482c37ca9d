"""One owner of a record's folder: others are refused, and a killed one frees it at once."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped] # pyarrow ships no types
import pytest

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord
from tests.kept_records import (
    content,
    files_of,
    kept,
    learn,
    rank_folder,
    saved_content,
)
from tests.record_model import Clock, floats, ints

OWNER = """
import sys, numpy as np
from adasel_stream.record import LossRecord
record = LossRecord.open(sys.argv[1], 100, save_every_s=1e6, engine='numpy')
record.update(np.array([1]), np.array([0.5]))
record.save()
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that owns the record in `tmp_path`."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_second_owner_is_refused_until_the_first_is_killed(
    owner: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    """Another process's record is refused by its number; killed with SIGKILL it is free at once."""
    with pytest.raises(RecordError, match=f"has an owner already, process {owner.pid} on"):
        LossRecord.open(tmp_path, 100)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert next(iter(saved_content(tmp_path).values()))[1] == 0.5


def test_a_second_owner_in_one_process_is_refused(tmp_path: Path) -> None:
    """Opening a record twice is refused as well, and does not take the lock from the first."""
    with kept(tmp_path) as record:
        for _ in range(2):
            with pytest.raises(RecordError, match="has an owner already"):
                LossRecord.open(tmp_path, 100)
        record.save()
    with kept(tmp_path):
        pass


def test_another_number_of_ranks_is_refused_while_one_trains(tmp_path: Path) -> None:
    """A trainer that splits the record otherwise cannot start beside one that is at work."""
    with kept(tmp_path) as record:
        record.save()
        with pytest.raises(RecordError, match="has an owner already"):
            LossRecord.open(tmp_path, 100, rank=0, world_size=2)
    with kept(tmp_path, rank=0, world_size=2), pytest.raises(RecordError, match="owner already"):
        LossRecord.open(tmp_path, 100)


def in_child(work: Callable[[], object]) -> int:
    """Fork, do some work in the child, and return its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def expect_refusal(record: LossRecord) -> None:
    """A child may look up and update, but not save; closing does nothing."""
    record.update(ints(5), floats(5))
    assert record.lookup(ints(5)).known.all()
    with pytest.raises(RecordError, match="a forked child"):
        record.save()
    record.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_record(tmp_path: Path) -> None:
    """A child uses its copy of the record and cannot save it; its exit leaves the parent's lock."""
    with kept(tmp_path, save_every_s=0.0005) as record:
        for _ in range(10):
            assert in_child(lambda: expect_refusal(record)) == 0
        with pytest.raises(RecordError, match="has an owner already"):
            LossRecord.open(tmp_path, 100)
        assert not record.lookup(ints(5)).known.any()
        record.save()


class Watched:
    """A lock that says when somebody asks for it."""

    def __init__(self, lock: Any) -> None:
        self.asked = threading.Semaphore(0)
        self._lock = lock

    def acquire(self) -> bool:
        """Say so, then wait for the lock."""
        self.asked.release()
        return bool(self._lock.acquire(timeout=20))

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_threads_that_fork_at_once_give_the_lock_back(tmp_path: Path) -> None:
    """Two threads are about to fork at the same time: both do, and training goes on."""
    with kept(tmp_path) as record:
        lock = record.lock
        watched = Watched(lock)
        record.lock = watched  # type: ignore[assignment] # looks on
        threads = [threading.Thread(target=in_child, args=[lambda: None]) for _ in range(2)]
        with lock:
            for thread in threads:
                thread.start()
                assert watched.asked.acquire(timeout=20)
        for thread in threads:
            thread.join()
        record.lock = lock
        assert lock.acquire(timeout=5)
        lock.release()


@pytest.mark.slow
def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    """A worker that was forked, or started, by a killed trainer does not keep the folder."""
    script = OWNER.replace(
        'print("open"',
        "import os, subprocess\n"
        "child = os.fork() or (sys.stdin.read(), os._exit(0))\n"
        "started = subprocess.Popen(['cat'], close_fds=False)\n"
        'print("open"',
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with kept(tmp_path) as record:  # both children still wait for the end of their input
            assert len(record) == 1


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """The kernel refuses to let a file grow over 64 KiB, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files_only")
def test_a_full_disk_leaves_the_snapshot_before(tmp_path: Path) -> None:
    """A snapshot that does not fit is counted and removed; the next that fits has everything."""
    rng = np.random.default_rng(0)
    clock = Clock()
    with kept(tmp_path, 40_000, clock=clock) as record:
        learn(record, rng, np.arange(500))
        record.save()
        before = content(record)
        clock.now_s += 5
        learn(record, rng, np.arange(10_000))
        with pytest.raises(RecordError, match="File too large; the one before is intact"):
            record.save()
        assert record.snapshots.failed == 1
        assert [file.name for file in files_of(tmp_path)] == ["base-000000000001.parquet"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, resource.RLIM_INFINITY))
        with pytest.raises(RecordError, match="has an owner already"):
            LossRecord.open(tmp_path, 100)
        record.save()
        expected = content(record)
    assert len(before) < len(expected)
    assert saved_content(tmp_path, capacity=40_000) == expected


@pytest.mark.parametrize("step", ["listdir", "open", "write", "fsync", "replace"])
def test_a_failure_of_any_call_leaves_old_or_new(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of that name that a snapshot makes fails once; afterwards the next one is whole."""
    rng = np.random.default_rng(0)
    with kept(tmp_path) as record:
        learn(record, rng, np.arange(100))
        record.save()
        for number in range(1, 100):
            learn(record, rng, np.arange(100))
            with monkeypatch.context() as patch:
                failed = fail_once(patch, step, number)
                with contextlib.suppress(RecordError):
                    record.save()
            if not failed:
                break
            assert (rank_folder(tmp_path) / "manifest.json").exists()
            if number % 2:
                record.save()
        record.save()
        expected = content(record)
    assert saved_content(tmp_path) == expected
    assert number > 1


def fail_once(patch: pytest.MonkeyPatch, step: str, number: int) -> list[str]:
    """Let one call fail, by its number; the list says whether it came to that."""
    failed: list[str] = []
    call = getattr(os, step)
    count = 0

    def failing(*args: object, **kwargs: object) -> object:
        nonlocal count
        count += 1
        if count == number:
            failed.append(step)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(*args, **kwargs)

    patch.setattr(os, step, failing)
    return failed


def test_a_copy_that_fails_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for a copy nothing is lost: the next snapshot has late losses as well."""
    clock = Clock()
    with kept(tmp_path, clock=clock) as record:
        clock.now_s += 100
        record.update(ints(1, 2, 3), floats(1, 2, 3))
        record.save()
        clock.now_s += 100
        record.update(ints(7), floats(7), age_s=150.0)
        with monkeypatch.context() as patch:
            patch.setattr(record, "entries", out_of_memory)
            with pytest.raises(RecordError, match="MemoryError; the one before is intact"):
                record.save()
        assert not record.copying
        record.save()
        expected = content(record)
    assert saved_content(tmp_path) == expected


def out_of_memory(start: int, stop: int, **which: object) -> None:
    """Fail as a machine does that has no memory."""
    raise MemoryError


def test_background_failures_are_counted_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that refuses everything is logged and counted, and the record stays usable."""
    with kept(tmp_path, save_every_s=0.001) as record:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            while record.snapshots.failed < 3:
                learn(record, np.random.default_rng(0), np.arange(10))
        record.save()
    assert "trying again in 0.001 s" in caplog.text
    assert len(saved_content(tmp_path)) == 10


@pytest.mark.parametrize("error", [pa.ArrowInvalid("a"), RuntimeError("b"), KeyError("c")])
def test_no_error_ends_the_background(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody thought of is counted, and the snapshots after it are written."""
    with kept(tmp_path, save_every_s=0.001) as record:
        with monkeypatch.context() as patch:
            patch.setattr("adasel_stream.record.snapshots.folder.write_rows", raising(error))
            learn(record, np.random.default_rng(0), np.arange(10))
            with pytest.raises(RecordError, match=f"{type(error).__name__}; the one before"):
                record.save()
            wait_until(lambda: record.snapshots.failed >= 3)
        saved = record.snapshots.saved
        wait_until(lambda: record.snapshots.saved > saved)
    assert len(saved_content(tmp_path)) == 10


def raising(error: Exception) -> Callable[..., None]:
    """Return a function that fails."""

    def fail(*_: object) -> None:
        raise error

    return fail


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does, or fail after 20 seconds."""
    never, deadline_s = threading.Event(), time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline_s
        never.wait(0.001)


def refuse(descriptor: int) -> None:
    """Fail as a disk does that has no room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
