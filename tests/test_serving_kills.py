"""Whoever is killed, no published segment is lost and none is applied twice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import killed_servers

KILLED_SERVERS = Path(killed_servers.__file__)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the experiment in a process of its own."""
    command = [sys.executable, str(KILLED_SERVERS), str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def kill_servers_and_trainers(folder: Path, kills: int) -> dict[str, int]:
    """Return what the experiment counted, if no promise was broken."""
    done = run(folder, str(kills))
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return counts


@pytest.mark.slow
def test_kills_lose_no_segment_and_repeat_none(tmp_path: Path) -> None:
    """Twenty kills of two servers and a trainer whose record is kept on disk."""
    counts = kill_servers_and_trainers(tmp_path, 20)
    assert counts["rows_published"] > 0
    assert counts["segments_left"] > 0


@pytest.mark.verify
def test_twelve_hundred_kills_lose_no_segment_and_repeat_none(tmp_path: Path) -> None:
    """Half of them of the trainer, many of them in the middle of something."""
    counts = kill_servers_and_trainers(tmp_path, 1_200)
    assert counts["trainers_killed"] >= 500
    assert counts["servers_killed"] >= 500
    assert counts["killed_while_writing"] > 0
    assert counts["segments_left"] > 1_000


@pytest.mark.verify
@pytest.mark.parametrize("bug", killed_servers.BUGS)
def test_the_experiment_finds_bugs(tmp_path: Path, bug: str) -> None:
    """Each fault that is put into the feed on purpose breaks a promise."""
    done = run(tmp_path, "100", bug)
    assert done.returncode != 0
    assert "AssertionError" in done.stderr
