"""A writer takes losses in a moment, and publishes what the disk takes."""

import fcntl
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adasel_stream.keys import instance_ids
from adasel_stream.serving import LossWriter
from adasel_stream.serving.names import writer_and_sequence
from adasel_stream.serving.segment import ROW, read_segment, segment_bytes
from tests.served_records import listed, small_files_only

NEVER_S = 1e6  # long enough for no test to meet it


def published(folder: Path) -> npt.NDArray[Any]:
    """Read all segments in a folder, by writer and number."""
    names = [writer_and_sequence(name) for name in listed(folder, ".seg")]
    return np.concatenate(
        [np.empty(0, ROW), *(read_segment(folder, *name) for name in names if name)]
    )


def losses(n: int, value: float = 0.5) -> npt.NDArray[np.float32]:
    """Make losses."""
    return np.full(n, value, np.float32)


def wait_for_segments(writer: LossWriter, n: int) -> None:
    """Wait until the thread of a writer says that it has published so many segments."""
    changed = writer._publisher.buffers.changed
    with changed:
        assert changed.wait_for(lambda: writer.counts["segments_published"] >= n, timeout=60)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LossWriter]:
    """Make a writer of segments of 8 rows that publishes when it is told to."""
    with LossWriter(
        tmp_path, segment_rows=8, publish_every_s=NEVER_S, clock=lambda: 1234.75
    ) as made:
        yield made


def test_rows_say_what_was_written(tmp_path: Path, writer: LossWriter) -> None:
    """Id, loss, second, version and kind of each row reach the file, in order."""
    writer.version = 65_536 + 7
    writer.write(np.array([-(2**63), 2**63 - 1]), np.array([0.5, -1.0]))
    writer.write_predictions(["a", "b"], losses(2), version=9)
    assert writer.publish()
    rows = published(tmp_path)
    assert rows["id"].tolist() == [-(2**63), 2**63 - 1, *instance_ids(["a", "b"]).tolist()]
    assert rows["value"].tolist() == [0.5, -1.0, 0.5, 0.5]
    assert rows["version"].tolist() == [7, 7, 9, 9]
    assert rows["kind"].tolist() == [0, 0, 1, 1]
    assert set(rows["second"].tolist()) == {1234}
    assert set(rows["zero"].tolist()) == {0}


def test_full_segments_are_published_at_once(tmp_path: Path, writer: LossWriter) -> None:
    """Rows beyond a segment begin the next, and only a full one is published before its time."""
    writer.write(np.arange(11), losses(11))
    wait_for_segments(writer, 1)
    assert published(tmp_path)["id"].tolist() == list(range(8))
    writer.publish()
    assert published(tmp_path)["id"].tolist() == list(range(11))


def test_rows_are_published_when_their_time_has_come(tmp_path: Path) -> None:
    """A few rows do not wait for more."""
    with LossWriter(tmp_path, publish_every_s=0.001) as writer:
        writer.write(np.array([1]), losses(1))
        wait_for_segments(writer, 1)
        assert published(tmp_path)["id"].tolist() == [1]


def test_losses_that_are_not_finite_are_rejected(tmp_path: Path, writer: LossWriter) -> None:
    """NaN, infinities and what float32 cannot hold are counted and not written."""
    writer.write(np.arange(5), np.array([np.nan, np.inf, -np.inf, 1e300, 1.0]))
    writer.publish()
    assert published(tmp_path)["id"].tolist() == [4]
    assert writer.counts["rows_rejected"] == 4
    assert writer.counts["rows_written"] == 1


def test_wrong_arguments_are_named(writer: LossWriter) -> None:
    """What cannot be an id or a loss is refused before anything is written."""
    with pytest.raises(TypeError, match=r"array of float64, shape \(2,\)"):
        writer.write(np.zeros(2), losses(2))
    with pytest.raises(TypeError, match=r"ids must be .* got a list with \['int'\]"):
        writer.write([1], losses(1))
    with pytest.raises(TypeError, match=r"ids must be .* got str"):
        writer.write("ab", losses(2))
    with pytest.raises(TypeError, match=r"losses must be .* got int64"):
        writer.write(np.arange(2), np.arange(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"predictions must be .* got list"):
        writer.write_predictions(["a"], [0.5])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"losses have shape \(3,\), expected \(2,\)"):
        writer.write(np.arange(2), losses(3))
    with pytest.raises(ValueError, match=r"predictions have shape \(3,\), expected \(2,\)"):
        writer.write_predictions(np.arange(2), losses(3))
    with pytest.raises(TypeError, match="version must be an integer, got float"):
        writer.write(np.arange(2), losses(2), version=1.5)  # type: ignore[arg-type]
    assert writer.counts["rows_written"] == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"segment_rows": 0}, "segment_rows must be in"),
        ({"segment_rows": 2**21}, "segment_rows must be in"),
        ({"publish_every_s": 0.0}, "publish_every_s must be a positive"),
        ({"publish_every_s": 1e300}, "publish_every_s must be a positive"),
        ({"max_bytes": 1_000_000}, "max_bytes must be at least 1572916"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    """Each setting out of its range is refused with its range."""
    with pytest.raises(ValueError, match=message):
        LossWriter(tmp_path, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"version": 1.5}, "version must be an integer, got float"),
        ({"segment_rows": 1.5}, "segment_rows must be an integer, got float"),
        ({"publish_every_s": "1"}, "publish_every_s must be a number, got str"),
        ({"max_bytes": "1"}, "max_bytes must be an integer, got str"),
        ({"clock": 0}, "clock must return seconds when called, got int"),
    ],
)
def test_settings_of_a_wrong_type_are_named(
    tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    """Each is refused by its name, before a folder is made."""
    with pytest.raises(TypeError, match=message):
        LossWriter(tmp_path / "folder", **wrong)
    assert not (tmp_path / "folder").exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """A path that is taken is refused by its name, with what to pass."""
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"/file' is no folder, .*: pass the folder"):
        LossWriter(tmp_path / "file")


def test_rows_that_find_no_room_are_dropped_and_counted(tmp_path: Path) -> None:
    """More than the buffers hold at once is counted, and the rest is published."""
    with LossWriter(tmp_path, segment_rows=8, publish_every_s=NEVER_S) as writer:
        writer.write(np.arange(100), losses(100))
        assert writer.counts["rows_written"] == 32
        assert writer.counts["rows_dropped"] == 68
    assert published(tmp_path)["id"].tolist() == list(range(32))


def test_segments_that_nobody_drains_give_way(tmp_path: Path) -> None:
    """The newest stay within the allowed bytes, and the rows of removed ones are counted."""
    with LossWriter(tmp_path, segment_rows=8, max_bytes=3 * 16_384) as writer:
        for first in range(0, 80, 8):
            writer.write(np.arange(first, first + 8), losses(8))
            writer.publish()
        assert published(tmp_path)["id"].tolist() == list(range(56, 80))
        assert writer.counts["rows_dropped"] == 56
        assert writer.counts["segments_published"] == 10


def test_a_server_that_starts_again_and_again_does_not_fill_the_disk(tmp_path: Path) -> None:
    """What dead writers left gives way to a new one's segments, the oldest first."""
    ended = [LossWriter(tmp_path) for _ in range(4)]
    for number, writer in enumerate(ended):
        writer.write(np.array([number]), losses(1))
        writer.publish()
        os.utime(tmp_path / segment_of(tmp_path, number), (number, number))
    alive, *dead = ended
    for writer in dead:
        writer.close()
    with LossWriter(tmp_path, segment_rows=8, max_bytes=3 * 16_384) as newest:
        for number in range(4, 6):
            newest.write(np.array([number]), losses(1))
            newest.publish()
        assert sorted(published(tmp_path)["id"].tolist()) == [0, 3, 4, 5]
        assert newest.counts["rows_dropped"] == 2
    alive.close()


def segment_of(folder: Path, id_: int) -> str:
    """Find the segment that holds an id first."""
    for name in listed(folder, ".seg"):
        writer, sequence = writer_and_sequence(name) or ("", 0)
        if read_segment(folder, writer, sequence)["id"][0] == id_:
            return name
    raise AssertionError(f"no segment of {id_}")


def test_drained_segments_count_no_more(tmp_path: Path) -> None:
    """Segments that a trainer removed are not counted as dropped, however many there were."""
    with LossWriter(tmp_path, segment_rows=8, max_bytes=2 * 16_384) as writer:
        for _ in range(10):
            writer.write(np.arange(8), losses(8))
            writer.publish()
            os.unlink(tmp_path / listed(tmp_path, ".seg")[0])
        assert writer.counts["rows_dropped"] == 0


def test_a_full_disk_is_counted_and_passes(tmp_path: Path, writer: LossWriter) -> None:
    """While nothing can be written, the newest rows are kept; later they are published."""
    with small_files_only(0):
        for first in range(0, 80, 8):
            writer.write(np.arange(first, first + 8), losses(8))
            writer.publish()
        assert writer.counts["failures"] >= 10
        assert listed(tmp_path, ".seg") == []
        assert listed(tmp_path, ".tmp") == []
    assert writer.publish()
    rows = published(tmp_path)["id"].tolist()
    assert rows == list(range(80 - len(rows), 80))
    assert len(rows) >= 16
    assert writer.counts["rows_dropped"] == 80 - len(rows)


def test_a_write_cut_short_publishes_nothing(tmp_path: Path, writer: LossWriter) -> None:
    """A segment of which the disk takes only a part does not appear."""
    writer.write(np.arange(7), losses(7))
    with small_files_only(segment_bytes(7) - 1):
        assert not writer.publish()
        assert listed(tmp_path, ".seg") == []
    assert writer.publish()
    assert published(tmp_path)["id"].tolist() == list(range(7))


def test_a_removed_folder_is_counted_and_may_come_back(tmp_path: Path) -> None:
    """A server goes on without its folder, and publishes when there is one again."""
    folder = tmp_path / "folder"
    with LossWriter(folder, publish_every_s=NEVER_S) as writer:
        writer.write(np.array([1]), losses(1))
        writer.publish()
        shutil.rmtree(folder)
        writer.write(np.array([2]), losses(1))
        assert not writer.publish()
        assert writer.counts["failures"] > 0
        folder.mkdir()
        assert writer.publish()
        assert published(folder)["id"].tolist() == [2]
        assert len(listed(folder, ".lock")) == 1


def test_a_server_whose_disk_stalls_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a write to disk hangs, requests are as quick as ever and surplus rows are counted."""
    released, stalled = threading.Event(), threading.Event()
    write = os.writev

    def stall(descriptor: int, parts: Any) -> int:
        stalled.set()
        released.wait()
        return write(descriptor, parts)

    monkeypatch.setattr(os, "writev", stall)
    with LossWriter(tmp_path, segment_rows=1024, publish_every_s=NEVER_S) as writer:
        writer.write(np.arange(1024), losses(1024))
        stalled.wait()
        ids, values = np.arange(256), losses(256)
        slowest_s = min(slowest(lambda: writer.write(ids, values)) for _ in range(5))
        assert writer.counts["rows_dropped"] == 5 * 1_000 * 256 - 3 * 1024
        released.set()
    assert slowest_s < 0.001
    assert len(published(tmp_path)) == 4 * 1024


def slowest(call: Callable[[], None]) -> float:
    """Time 1,000 calls and return the longest but one in 1,000, in seconds.

    Calls in which a busy machine gave the processor to someone else do not count: a thread that
    waits gives it up of its own accord.
    """
    times_s, switches = [], involuntary_switches()
    for _ in range(1_000):
        begin_s = time.perf_counter()
        call()
        elapsed_s = time.perf_counter() - begin_s
        if switches == (switches := involuntary_switches()):
            times_s.append(elapsed_s)
    return float(np.quantile(times_s, 0.999))


def involuntary_switches() -> int:
    """Count how often this thread was interrupted."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def test_closing_on_a_stalled_disk_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server can end although its last rows cannot be written; they are counted as dropped."""
    released = threading.Event()

    def stall(descriptor: int, parts: Any) -> int:
        released.wait()
        return 0

    monkeypatch.setattr(os, "writev", stall)
    writer = LossWriter(tmp_path)
    writer.write(np.arange(3), losses(3))
    writer.close(timeout_s=0.01)
    assert writer.counts["rows_dropped"] == 3
    released.set()


def test_many_threads_write_each_row_once(tmp_path: Path) -> None:
    """Rows of eight threads are all there, none twice, each thread's in its order."""
    with LossWriter(tmp_path, segment_rows=10_000) as writer:

        def serve(thread: int) -> None:
            for first in range(0, 4_000, 10):
                writer.write(np.arange(first, first + 10) + thread * 10_000, losses(10))

        threads = [threading.Thread(target=serve, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ids = published(tmp_path)["id"]
    assert len(ids) == len(np.unique(ids)) == 32_000
    for number in range(8):
        mine = ids[ids // 10_000 == number]
        assert (np.diff(mine) == 1).all()


def test_rows_after_the_end_are_dropped_and_counted(tmp_path: Path) -> None:
    """A late request neither raises nor is published."""
    writer = LossWriter(tmp_path)
    writer.write(np.arange(2), losses(2))
    writer.close()
    writer.write(np.arange(3), losses(3))
    assert writer.publish()
    writer.close()
    assert writer.counts["rows_dropped"] == 3
    assert len(published(tmp_path)) == 2
    assert listed(tmp_path, ".lock") == []


def test_a_living_writer_holds_its_lock(tmp_path: Path, writer: LossWriter) -> None:
    """The lock file is locked from the first segment to the end, and private like all files."""
    writer.write(np.arange(1), losses(1))
    writer.publish()
    lock = tmp_path / listed(tmp_path, ".lock")[0]
    with open(lock, "rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for name in os.listdir(tmp_path):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_a_forked_child_writes_under_a_name_of_its_own(tmp_path: Path, writer: LossWriter) -> None:
    """Rows from before the fork are published once, by the parent; both go on apart."""
    writer.write(np.arange(3), losses(3))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            writer.write(np.arange(100, 102), losses(2))
            status = not writer.publish() or writer.counts["rows_written"] != 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    writer.write(np.array([3]), losses(1))
    assert writer.publish()
    assert sorted(published(tmp_path)["id"].tolist()) == [0, 1, 2, 3, 100, 101]
    assert len({name.split(".")[0] for name in listed(tmp_path, ".seg")}) == 2


def test_a_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    """When the parent has ended, its writer looks dead although a forked child lives on."""
    with LossWriter(tmp_path) as writer:
        writer.write(np.arange(1), losses(1))
        writer.publish()
        lock = os.open(tmp_path / listed(tmp_path, ".lock")[0], os.O_RDONLY)
        ready, say_ready = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(say_ready, b"!")
            signal.pause()
        assert os.read(ready, 1) == b"!"
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(lock)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_that_ends_in_peace_publishes_the_rest(tmp_path: Path) -> None:
    """Whoever forgets to close loses nothing when the interpreter ends."""
    code = """
import sys, numpy as np
from adasel_stream.serving import LossWriter
LossWriter(sys.argv[1], publish_every_s=1000).write(np.arange(5), np.ones(5))
writer = LossWriter(sys.argv[1], publish_every_s=1000)
writer.write(np.arange(5), np.ones(5))
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, timeout=60)
    assert sorted(published(tmp_path)["id"].tolist()) == sorted([*range(5), *range(5)])
    assert listed(tmp_path, ".lock") == []


FORKING = """
import multiprocessing, sys, numpy as np
from adasel_stream.serving import LossWriter

def serve(inherited):
    inherited.write(np.arange(5), np.ones(5))
    LossWriter(sys.argv[1], publish_every_s=1000).write(np.arange(5, 8), np.ones(3))

if __name__ == "__main__":
    writer = LossWriter(sys.argv[1], publish_every_s=1000)
    child = multiprocessing.get_context("fork").Process(target=serve, args=(writer,))
    child.start()
    child.join()
    writer.write(np.arange(8, 10), np.ones(2))
    sys.exit(child.exitcode)
"""


def test_a_child_of_multiprocessing_that_ends_in_peace_publishes_the_rest(tmp_path: Path) -> None:
    """It ends without what an interpreter does at its end, and loses nothing all the same."""
    subprocess.run([sys.executable, "-c", FORKING, tmp_path], check=True, timeout=60)
    assert sorted(published(tmp_path)["id"].tolist()) == list(range(10))
    assert len(listed(tmp_path, ".seg")) == 3
    assert listed(tmp_path, ".lock") == []


def test_a_server_needs_neither_torch_nor_arrow(tmp_path: Path) -> None:
    """A serving process that writes losses loads numpy and nothing else that is large."""
    code = """
import sys, numpy as np
from adasel_stream.serving import LossWriter
with LossWriter(sys.argv[1]) as writer:
    writer.write(np.arange(5), np.ones(5))
large = {"torch", "pyarrow", "numba", "pandas", "prometheus_client"}
print(sorted(large & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
    assert len(published(tmp_path)) == 5
