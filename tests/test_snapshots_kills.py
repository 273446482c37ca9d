"""A record's owner is killed with SIGKILL: a restart finds the last manifest, whole."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import killed_records


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
def test_a_kill_at_any_call_leaves_old_or_new(job: str, tmp_path: Path) -> None:
    """An owner killed before each call that it makes leaves a record that restores exactly."""
    assert run_killed_records(job, "calls", tmp_path)["calls"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("job", killed_records.JOBS)
def test_a_kill_at_a_random_moment_loses_no_snapshot(job: str, tmp_path: Path) -> None:
    """Twenty owners killed at work: each restart finds the last snapshot that was complete."""
    assert run_killed_records(job, "20", tmp_path)["steps"] > 0


@pytest.mark.verify
@pytest.mark.parametrize("job", killed_records.JOBS)
def test_five_hundred_kills_lose_no_snapshot(job: str, tmp_path: Path) -> None:
    """Five hundred owners killed, many of them between two files of a snapshot."""
    assert run_killed_records(job, "500", tmp_path)["killed_between"] > 50
