"""The demo as a user runs it: a real process, files and a terminal."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adasel_stream.demo.shards import Prepared
from tests.demo_command import ARMS, Ended, demo, numbers, run_here

pytestmark = pytest.mark.slow


def test_demo_runs_to_a_report_that_needs_no_network(undisturbed: tuple[Ended, Path]) -> None:
    """It ends with a table, a verdict and one HTML file without links to elsewhere."""
    ended, out = undisturbed
    assert ended.code == 0, ended.told
    for label in ARMS.values():
        assert re.search(rf"^{label} +0\.\d{{4}} ", ended.out, re.MULTILINE)
    verdict = json.loads((out / "summary.json").read_text())["verdict"]
    assert verdict in ended.out
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r"(src|href)=|@import|url\(", page)
    assert str(out / "report.html") in ended.out
    assert not (out / "snapshot.ckpt").exists()


def test_report_names_runs_as_people_do(undisturbed: tuple[Ended, Path]) -> None:
    """Names of files and metrics are not shown in the page."""
    page = (undisturbed[1] / "report.html").read_text()
    assert all(label in page for label in ARMS.values())
    assert "uniform_same_cost" not in page


def test_demo_logs_every_arm(undisturbed: tuple[Ended, Path], prepared: Prepared) -> None:
    """The last record of each arm's log has seen the whole stream."""
    _, out = undisturbed
    for arm in ARMS:
        last = json.loads((out / f"{arm}.jsonl").read_text().splitlines()[-1])
        assert (last["run"], last["samples_seen_total"]) == (arm, prepared.rows)


def test_tar_shards_lead_to_the_same_numbers(
    prepared: Prepared,
    undisturbed: tuple[Ended, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The kind of shard changes nothing but the speed."""
    ended = run_here(demo(prepared, tmp_path, "--format", "tar"), capsys)
    assert ended.code == 0, ended.told
    ours, theirs = numbers(tmp_path), numbers(undisturbed[1])
    del ours["settings"]["format"], theirs["settings"]["format"]
    assert ours == theirs


def test_folder_of_a_run_that_is_under_way_is_refused(
    prepared: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs never write to one folder."""
    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = run_here(demo(prepared, tmp_path), capsys)
    assert (second.code, "another run is under way" in second.told) == (1, True)


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_altered_shard_is_named_with_what_to_do(
    prepared: Prepared, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One flipped byte stops the demo with a sentence, no traceback."""
    folder = tmp_path / "data" / prepared.folder.name
    shutil.copytree(prepared.folder, folder)
    shard = folder / kind / f"flights-00000.{kind}"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    harmed = Prepared(folder, prepared.rows, prepared.sizes, prepared.facts, written=False)
    ended = run_here(demo(harmed, tmp_path, "--format", kind), capsys)
    assert ended.code == 1
    assert f"flights-00000.{kind}" in ended.told
    assert f"Remove {folder} and run again" in ended.told


def test_terminal_shows_a_bar_and_running_figures_until_ctrl_c(
    prepared: Prepared, tmp_path: Path
) -> None:
    """Figures of all runs are redrawn in place; Ctrl-C leaves a snapshot and gives 130."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "adasel_stream", *demo(prepared, tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    # reading a terminal whose other end is closed fails on Linux and is empty on macOS
    with contextlib.suppress(OSError):
        while part := os.read(ours, 65536):
            if b"/4000" in part and b"/4000" not in shown:
                process.send_signal(signal.SIGINT)
            shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 130
    assert (tmp_path / "snapshot.ckpt").exists()
    text = shown.decode()
    assert re.search(r"\d/4000", text)
    assert "\x1b[1A" in text  # the cursor goes up to redraw
    for label in ARMS.values():
        assert re.search(rf"{label} +0\.\d{{4}}", text)
