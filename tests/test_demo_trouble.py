"""The demo stopped, killed, and on a disk that takes no more: real processes and signals."""

import re
import resource
import shutil
import signal
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path

import pytest

from adasel_stream.demo.shards import Prepared
from adasel_stream.runlog import read_run_log
from tests.demo_command import ARMS, Command, Ended, demo, numbers, run_here

pytestmark = pytest.mark.slow

LEAST_SNAPSHOT_BYTES = 400_000
"""Snapshots are larger, everything else that a run writes is smaller."""


@pytest.fixture(scope="module")
def terminated(
    prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Path, str]:
    """Give a demo that was asked to stop after its first figures, and its page of metrics."""
    out = tmp_path_factory.mktemp("terminated")
    with Command(demo(prepared, out)) as command:
        address = command.until("live metrics").split()[-1]
        assert address.startswith("http://127.0.0.1:")
        command.until("loss so far")
        with urllib.request.urlopen(address) as answer:
            page = answer.read().decode()
        command.signal(signal.SIGTERM)
        return command.end(), out, page


def test_running_demo_serves_the_metrics_of_all_arms(terminated: tuple[Ended, Path, str]) -> None:
    """One page at 127.0.0.1 shows every arm under its name."""
    for arm in ARMS:
        seen = rf'^adasel_samples_seen_total{{.*run="{arm}".*}} \d'
        assert re.search(seen, terminated[2], re.MULTILINE)


def test_sigterm_leaves_a_snapshot_from_which_the_run_comes_to_the_same_numbers(
    prepared: Prepared,
    terminated: tuple[Ended, Path, str],
    undisturbed: tuple[Ended, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ends with 0, says how to go on, and going on is exact."""
    stopped, left, _ = terminated
    out = shutil.copytree(left, tmp_path / "copy")
    assert stopped.code == 0, stopped.told
    assert "Run the same command again" in stopped.told
    assert not (out / "report.html").exists()
    resumed = run_here(demo(prepared, out), capsys)
    assert resumed.code == 0, resumed.told
    assert "going on from" in resumed.told
    assert numbers(out) == numbers(undisturbed[1])


def test_snapshot_of_other_settings_is_refused_until_told_to_start_over(
    prepared: Prepared,
    terminated: tuple[Ended, Path, str],
    undisturbed: tuple[Ended, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The refusal says what differs; with --fresh the snapshot counts for nothing."""
    out = shutil.copytree(terminated[1], tmp_path / "copy")
    refused = run_here(demo(prepared, out, "--seed", "7"), capsys)
    assert (refused.code, "seed was 0 and is 7" in refused.told) == (1, True)
    fresh = run_here(demo(prepared, out, "--fresh"), capsys)
    assert (fresh.code, "going on" in fresh.told) == (0, False)
    assert numbers(out) == numbers(undisturbed[1])


def test_killed_demo_goes_on_and_comes_to_the_same_numbers(
    prepared: Prepared,
    undisturbed: tuple[Ended, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`kill -9` in the middle costs what came after the last snapshot, and nothing else."""
    with Command(demo(prepared, tmp_path, "--save-every", "0")) as command:
        command.until("loss so far")
        while not (tmp_path / "snapshot.ckpt").exists():
            time.sleep(0.01)
        command.signal(signal.SIGKILL)
        assert command.end().code == -signal.SIGKILL
    resumed = run_here(demo(prepared, tmp_path), capsys)
    assert resumed.code == 0, resumed.told
    assert "going on from" in resumed.told
    assert numbers(tmp_path) == numbers(undisturbed[1])


@pytest.fixture
def short_files() -> Generator[None]:
    """Make the system refuse snapshots to this process, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LEAST_SNAPSHOT_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("short_files")
def test_snapshots_that_cannot_be_written_are_told_and_counted_and_stop_nothing(
    prepared: Prepared,
    undisturbed: tuple[Ended, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run whose every snapshot fails comes to the same end, and none of its files is cut."""
    ended = run_here(demo(prepared, tmp_path, "--save-every", "0"), capsys)
    assert ended.code == 0, ended.told
    assert "no snapshot could be written: cannot write checkpoint" in ended.told
    assert "Training goes on; killed now, the same command starts over" in ended.told
    assert numbers(tmp_path) == numbers(undisturbed[1])
    log = read_run_log(tmp_path / "adaselection.jsonl")
    assert log.damaged == 0
    assert log.records[-1]["checkpoints_total"] == {"success": 0, "failure": len(log.records) - 1}


def test_stop_without_room_for_a_snapshot_says_so_and_keeps_the_one_before(
    prepared: Prepared, terminated: tuple[Ended, Path, str], tmp_path: Path
) -> None:
    """The exit code is not 0, and the old snapshot is there byte for byte."""
    out = shutil.copytree(terminated[1], tmp_path / "copy")
    snapshot = out / "snapshot.ckpt"
    before = snapshot.read_bytes()
    arguments = demo(prepared, out, "--save-every", "0")
    with Command(arguments, most_bytes=LEAST_SNAPSHOT_BYTES) as command:
        command.until("goes on from the snapshot before, which is intact")
        command.signal(signal.SIGTERM)
        ended = command.end()
    assert ended.code == 1
    assert "flights, and no snapshot could be written" in ended.told
    assert "Traceback" not in ended.told
    assert snapshot.read_bytes() == before
    assert not list(out.glob(".snapshot.ckpt.*"))
