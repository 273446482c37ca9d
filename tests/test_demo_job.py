"""The demo as a user runs it: real processes, signals, files, HTTP and a terminal."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from adasel_stream.demo.shards import prepare

ROWS = 8000
ARMS = ("adaselection", "uniform", "uniform_same_cost", "full")


class Ended(NamedTuple):
    """How a process ended, and what it told."""

    code: int
    out: str
    told: str


class Command:
    """One process of `adasel-stream` that is under way."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "adasel_stream", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "error"},
        )
        self._told: list[str] = []

    def until(self, wanted: str) -> str:
        """Read what it tells up to the line that holds `wanted`; give that line."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._told.append(line)
            if wanted in line:
                return line
        raise AssertionError(f"{wanted!r} was never told, only: {''.join(self._told)}")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def end(self) -> Ended:
        """Wait for it."""
        out, told = self._process.communicate(timeout=300)
        return Ended(self._process.returncode, out, "".join(self._told) + told)

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave no process behind, whatever the test came to."""
        self._process.kill()
        self._process.communicate()


def _run(*arguments: str) -> Ended:
    with Command(arguments) as command:
        return command.end()


def _stopped(arguments: Sequence[str], number: int) -> Ended:
    """Run until the first figures are shown, and stop by a signal."""
    with Command(arguments) as command:
        command.until("loss so far")
        command.signal(number)
        return command.end()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Give the arguments of a small demo; its data is prepared once."""
    data = tmp_path_factory.mktemp("data")
    prepare(data, ROWS, lambda _: None)

    def arguments(out: Path, *more: str) -> list[str]:
        common = ["demo", "--out", str(out), "--data", str(data), "--rows", str(ROWS)]
        return [*common, "--port", "0", *more]

    return arguments


@pytest.fixture(scope="module")
def undisturbed(
    demo: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ended, Path]:
    """Give a demo that ran to its end, and its folder."""
    out = tmp_path_factory.mktemp("undisturbed")
    return _run(*demo(out)), out


def _numbers(out: Path) -> dict[str, Any]:
    """Read a result without what depends on how fast the machine is."""
    result = json.loads((out / "summary.json").read_text())
    for arm in result["arms"].values():
        del arm["seconds"], arm["accounting_s"]
    del result["cost"], result["elapsed_s"]
    return dict(result)


@pytest.mark.slow
def test_demo_runs_to_a_report_that_needs_no_network(undisturbed: tuple[Ended, Path]) -> None:
    """It ends with a table, a verdict and one HTML file without links to elsewhere."""
    ended, out = undisturbed
    assert ended.code == 0, ended.told
    for arm in ARMS:
        assert re.search(rf"^{arm} +0\.\d{{4}} ", ended.out, re.MULTILINE)
    verdict = json.loads((out / "summary.json").read_text())["verdict"]
    assert verdict in ended.out
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert not re.search(r"(src|href)=|@import|url\(", page)
    assert str(out / "report.html") in ended.out
    assert not (out / "snapshot.ckpt").exists()


@pytest.mark.slow
def test_demo_logs_every_arm(undisturbed: tuple[Ended, Path]) -> None:
    """The last record of each arm's log has seen the whole stream."""
    _, out = undisturbed
    for arm in ARMS:
        last = json.loads((out / f"{arm}.jsonl").read_text().splitlines()[-1])
        assert (last["run"], last["samples_seen_total"]) == (arm, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_demo_goes_on_and_comes_to_the_same_numbers(
    demo: Callable[..., list[str]],
    undisturbed: tuple[Ended, Path],
    tmp_path: Path,
    number: int,
    code: int,
) -> None:
    """A signal leaves a snapshot; the same command goes on from it, exactly."""
    stopped = _stopped(demo(tmp_path), number)
    assert stopped.code == code, stopped.told
    assert "Run the same command again" in stopped.told
    assert not (tmp_path / "report.html").exists()
    resumed = _run(*demo(tmp_path))
    assert resumed.code == 0, resumed.told
    assert "going on from" in resumed.told
    assert _numbers(tmp_path) == _numbers(undisturbed[1])


@pytest.mark.slow
def test_snapshot_of_other_settings_is_refused_until_told_to_start_over(
    demo: Callable[..., list[str]], undisturbed: tuple[Ended, Path], tmp_path: Path
) -> None:
    """The refusal says what differs; with --fresh the snapshot counts for nothing."""
    assert _stopped(demo(tmp_path, "--seed", "7"), signal.SIGINT).code == 130
    refused = _run(*demo(tmp_path))
    assert (refused.code, "seed was 7 and is 0" in refused.told) == (1, True)
    fresh = _run(*demo(tmp_path, "--fresh"))
    assert (fresh.code, "going on" in fresh.told) == (0, False)
    assert _numbers(tmp_path) == _numbers(undisturbed[1])


@pytest.mark.slow
def test_tar_shards_lead_to_the_same_numbers(
    demo: Callable[..., list[str]], undisturbed: tuple[Ended, Path], tmp_path: Path
) -> None:
    """The kind of shard changes nothing but the speed."""
    ended = _run(*demo(tmp_path, "--format", "tar"))
    assert ended.code == 0, ended.told
    ours, theirs = _numbers(tmp_path), _numbers(undisturbed[1])
    del ours["settings"]["format"], theirs["settings"]["format"]
    assert ours == theirs


@pytest.mark.slow
def test_running_demo_serves_the_metrics_of_all_arms(
    demo: Callable[..., list[str]], tmp_path: Path
) -> None:
    """One page at 127.0.0.1 shows every arm under its name."""
    with Command(demo(tmp_path)) as command:
        address = command.until("live metrics").split()[-1]
        assert address.startswith("http://127.0.0.1:")
        command.until("loss so far")
        with urllib.request.urlopen(address) as answer:
            page = answer.read().decode()
    for arm in ARMS:
        assert re.search(rf'^adasel_samples_seen_total{{.*run="{arm}".*}} \d', page, re.MULTILINE)


@pytest.mark.slow
def test_folder_of_a_run_that_is_under_way_is_refused(
    demo: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Two runs never write to one folder."""
    with open(tmp_path / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = _run(*demo(tmp_path))
    assert (second.code, "another run is under way" in second.told) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_altered_shard_is_named_with_what_to_do(tmp_path: Path, kind: str) -> None:
    """One flipped byte stops the demo with a sentence, no traceback."""
    folder = prepare(tmp_path / "data", 700, lambda _: None).folder
    shard = folder / kind / f"flights-00000.{kind}"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    ended = _run(
        *("demo", "--out", str(tmp_path), "--rows", "700", "--port", "0", "--format", kind)
    )
    assert ended.code == 1
    assert f"flights-00000.{kind}" in ended.told
    assert f"Remove {folder} and run again" in ended.told
    assert "Traceback" not in ended.told


@pytest.mark.slow
def test_terminal_shows_a_bar_and_running_figures(
    demo: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Where standard error is a terminal, the figures of all arms are redrawn in place."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "adasel_stream", *demo(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    # reading a terminal whose other end is closed fails on Linux and is empty on macOS
    with contextlib.suppress(OSError):
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "8000/8000" in text
    assert "\x1b[1A" in text  # the cursor goes up to redraw
    for arm in ARMS:
        assert re.search(rf"{arm} +0\.\d{{4}}", text)
