"""A record's owner is killed with SIGKILL: a restart finds the last manifest, whole."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import killed_records


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory where there is one: a busy disk would hide the moments."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def run_killed_records(job: str, how: str, path: Path) -> dict[str, int]:
    """Run the experiment in a process of its own and return what it counted."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", killed_records.__name__, job, how, path],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("job", killed_records.JOBS)
def test_a_kill_at_any_call_leaves_old_or_new(job: str, folder: Path) -> None:
    """An owner killed before each call that it makes leaves a record that restores exactly."""
    assert run_killed_records(job, "calls", folder)["calls"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("job", killed_records.JOBS)
def test_a_kill_at_a_random_moment_loses_no_snapshot(job: str, folder: Path) -> None:
    """Twenty owners killed at work: each restart finds the last snapshot that was complete."""
    assert run_killed_records(job, "20", folder)["steps"] > 0


@pytest.mark.verify
@pytest.mark.parametrize("job", killed_records.JOBS)
def test_five_hundred_kills_lose_no_snapshot(job: str, folder: Path) -> None:
    """Five hundred owners killed, many of them between two files of a snapshot."""
    assert run_killed_records(job, "500", folder)["killed_between"] > 50
