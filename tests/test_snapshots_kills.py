"""A record's owner is killed with SIGKILL: a restart finds the last manifest, whole."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from benchmarks import record_faults
from tests import killed_records


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in memory where there is one: a busy disk would hide the moments."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


def run_module(module: str, *arguments: object) -> Any:
    """Run an experiment in a process of its own and return what it counted."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("job", record_faults.JOBS)
def test_a_kill_at_any_call_leaves_old_or_new(job: str, folder: Path) -> None:
    """An owner killed before each call that it makes leaves a record that restores exactly."""
    assert run_module(killed_records.__name__, job, folder)["calls"] > 20


def kill_owners(kills: int, folder: Path) -> dict[str, dict[str, int]]:
    """Kill owners at random moments and return what was counted for each job."""
    counts: dict[str, dict[str, int]] = run_module(
        record_faults.__name__, "--json", "--kills", kills, "--folder", folder
    )
    return counts


@pytest.mark.slow
def test_a_kill_at_a_random_moment_loses_no_snapshot(folder: Path) -> None:
    """Twenty owners of each kind killed at work: each restart finds the last whole snapshot."""
    assert all(count["steps"] > 0 for count in kill_owners(20, folder).values())


@pytest.mark.verify
def test_five_hundred_kills_lose_no_snapshot(folder: Path) -> None:
    """Five hundred owners of each kind killed, many of them between two files of a snapshot."""
    assert all(count["killed_between"] > 50 for count in kill_owners(500, folder).values())
