"""A training job that is killed at any moments ends as one that nobody disturbed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository; the harness needs a process of its own to fork from."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def kill(kills: int) -> dict[str, int]:
    """Kill jobs that often, and return the counts that the harness printed."""
    done = run("benchmarks/kill_resume.py", "--kills", str(kills))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = (line.split() for line in done.stdout.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}


def find(kills: int, *bugs: str) -> dict[str, bool]:
    """Say of each bug whether the harness found it within so many kills."""
    done = run("-m", "tests.seeded_bugs", str(kills), *bugs)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {bug: counts["mismatches"] + counts["unstartable"] > 0 for bug, counts in found.items()}


@pytest.mark.slow
def test_killed_jobs_end_as_undisturbed_ones() -> None:
    """After 25 kills: same ids, weights, method weights and model, no sample lost or repeated."""
    counts = kill(25)
    assert counts["kills"] == 25
    assert counts["completed"] >= 1
    assert counts["mismatches"] == counts["lost"] == counts["repeated"] == 0


@pytest.mark.verify
def test_a_thousand_kills_change_nothing() -> None:
    """The same after 1,000 kills."""
    counts = kill(1000)
    assert counts["kills"] == 1000
    assert counts["mismatches"] == counts["lost"] == counts["repeated"] == 0


@pytest.mark.slow
def test_the_harness_finds_seeded_bugs() -> None:
    """The harness can see: a forgotten buffer or generator and a position ahead are found."""
    bugs = ("position counted at read", "buffer forgotten", "generator forgotten")
    assert find(30, *bugs) == dict.fromkeys(bugs, True)


@pytest.mark.verify
def test_the_harness_finds_every_seeded_bug() -> None:
    """Each of 14 ways to resume wrongly is found within 60 kills."""
    found = find(60)
    assert found == dict.fromkeys(found, True)
    assert len(found) == 14
