"""Whatever happens while a file is replaced, the old or the new one is there afterwards."""

import contextlib
import errno
import fcntl
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from adasel_stream.atomic import replace_file
from adasel_stream.checkpoint import load_checkpoint, save_checkpoint
from adasel_stream.errors import CheckpointError
from tests import killed_savers

KILLED_SAVERS = Path(killed_savers.__file__)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder's only file: a checkpoint of step 1."""
    save_checkpoint(tmp_path / "run.ckpt", killed_savers.state_at(1))
    return tmp_path / "run.ckpt"


def run_killed_savers(job: str, path: Path) -> dict[str, int]:
    """Run the experiment in a process of its own and return what it counted."""
    done = subprocess.run(
        [sys.executable, KILLED_SAVERS, job, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@contextlib.contextmanager
def counted_calls(on_call: Callable[[int, str], None]) -> Iterator[None]:
    """Have the calls of a save announced to `on_call` inside the block only."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in killed_savers.CALLS:
            patch.setattr(module, name, getattr(module, name))  # to be put back at the end
        killed_savers.count_calls(on_call)
        yield


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_failure_of_any_call_leaves_old_or_new(path: Path, code: int) -> None:
    """Each call that a save makes fails once: the file is whole, and the error says why."""
    failed: list[str] = []
    for number in range(1, 1000):
        save_checkpoint(path, killed_savers.state_at(1))
        possible = {2}
        with counted_calls(fail_at(number, code, failed)):
            try:
                save_checkpoint(path, killed_savers.state_at(2))
            except CheckpointError as error:
                possible = {1, 2}
                cause = error.__cause__
        assert possible == {2} or (isinstance(cause, OSError) and cause.errno == code)
        assert killed_savers.checked_step(path) in possible
        assert os.listdir(path.parent) == [path.name]
        if len(failed) < number:
            break
    assert {"listdir", "open", "write", "fsync", "replace", "close"} <= set(failed)


def fail_at(last: int, code: int, failed: list[str]) -> Callable[[int, str], None]:
    """Make the call of that number fail with `code`, and note its name."""

    def fail(number: int, name: str) -> None:
        if number == last:
            failed.append(name)
            raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.slow
def test_a_kill_at_any_call_leaves_old_or_new(path: Path) -> None:
    """A process killed before each call that a save makes leaves a file that loads."""
    assert run_killed_savers("calls", path)["calls"] > 10


@pytest.mark.slow
def test_a_kill_at_a_random_moment_leaves_old_or_new(path: Path) -> None:
    """Twenty processes killed while they save: the file loads and no finished save is lost."""
    assert run_killed_savers("20", path)["saved"] > 0


@pytest.mark.verify
def test_a_thousand_kills_leave_old_or_new(path: Path) -> None:
    """A thousand processes killed while they save, many of them in the middle of it."""
    assert run_killed_savers("1000", path)["killed_while_writing"] > 100


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """The kernel refuses to let a file grow over 64 KiB, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files_only")
def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    """A write that the kernel cuts short raises, removes its rest and keeps the old file."""
    path = tmp_path / "c"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint '.*': File too large"):
        save_checkpoint(path, {"step": 2, "array": np.zeros(100_000)})
    assert load_checkpoint(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["c"]


def test_a_durable_save_flushes_before_and_after_the_rename(path: Path) -> None:
    """All content reaches the disk before the new name does, and the name before the return."""
    calls: list[str] = []
    with counted_calls(lambda _, name: calls.append(name)):
        save_checkpoint(path, killed_savers.state_at(2))
    order = [name for name in calls if name in ("write", "fsync", "replace")]
    assert order[-3:] == ["fsync", "replace", "fsync"]
    assert set(order[:-3]) == {"write"}


def test_a_save_that_need_not_be_durable_does_not_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `durable=False` no call waits for the disk."""
    monkeypatch.delattr(os, "fsync")
    save_checkpoint(path, {"step": 2}, durable=False)
    assert load_checkpoint(path) == {"step": 2}


def test_content_that_raises_leaves_the_old_file(path: Path) -> None:
    """An error or an interrupt while the content is made removes what was written of it."""

    def content() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(path, content())
    assert killed_savers.checked_step(path) == 1
    assert os.listdir(path.parent) == [path.name]


def test_only_the_temporaries_of_dead_writers_are_removed(path: Path) -> None:
    """A save removes what killed writers of its file left, and nothing else."""
    folder = path.parent
    dead, living = (folder / f".{path.name}.{digit * 16}.tmp" for digit in "0a")
    others = [".other.ckpt.0000000000000000.tmp", f".{path.name}.tmp", f".{path.name}.backup.tmp"]
    for name in (dead.name, living.name, *others):
        (folder / name).write_bytes(b"part")
    with open(living, "rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        save_checkpoint(path, {"step": 2})
    assert set(os.listdir(folder)) == {path.name, living.name, *others}


def test_only_the_owner_can_read_the_file(path: Path) -> None:
    """A checkpoint has mode 0600, as it may hold samples and weights."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """A folder that is not there is an error, not created in silence."""
    with pytest.raises(CheckpointError, match=r"none.c': No such file or directory"):
        save_checkpoint(tmp_path / "none" / "c", {})


def test_a_folder_in_the_place_is_left(tmp_path: Path) -> None:
    """A folder that has the file's name is neither replaced nor filled."""
    (tmp_path / "c").mkdir()
    with pytest.raises(CheckpointError, match="Is a directory"):
        save_checkpoint(tmp_path / "c", {})
    assert os.listdir(tmp_path) == ["c"]
    assert os.listdir(tmp_path / "c") == []
