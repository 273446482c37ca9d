"""The command, as a user runs it: real processes, signals, files and HTTP."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from adasel_stream.cli import main
from adasel_stream.demo.shards import prepare
from adasel_stream.metrics import Metrics
from adasel_stream.runlog import RunLog

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


def _run(*arguments: str) -> Ended:
    return Command(arguments).end()


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
    command = Command(demo(tmp_path))
    command.until("loss so far")
    command.signal(number)
    stopped = command.end()
    assert stopped.code == code, stopped.told
    assert "Run the same command again" in stopped.told
    assert not (tmp_path / "report.html").exists()
    other = _run(*demo(tmp_path, "--seed", "7"))
    assert (other.code, "seed was 0 and is 7" in other.told) == (1, True)
    resumed = _run(*demo(tmp_path))
    assert resumed.code == 0, resumed.told
    assert "going on from" in resumed.told
    assert _numbers(tmp_path) == _numbers(undisturbed[1])


@pytest.mark.slow
def test_fresh_demo_starts_over(
    demo: Callable[..., list[str]], undisturbed: tuple[Ended, Path], tmp_path: Path
) -> None:
    """With --fresh a snapshot counts for nothing, even one of other settings."""
    command = Command(demo(tmp_path, "--seed", "7"))
    command.until("loss so far")
    command.signal(signal.SIGINT)
    assert command.end().code == 130
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
def test_running_demo_serves_all_arms_and_keeps_others_out(
    demo: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Live metrics come from 127.0.0.1, and a second run in the same folder is refused."""
    command = Command(demo(tmp_path))
    address = command.until("live metrics").split()[-1]
    assert address.startswith("http://127.0.0.1:")
    command.until("loss so far")
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    for arm in ARMS:
        assert re.search(rf'^adasel_samples_seen_total{{.*run="{arm}".*}} \d', page, re.MULTILINE)
    second = _run(*demo(tmp_path))
    assert (second.code, "another run is under way" in second.told) == (1, True)
    command.signal(signal.SIGINT)
    assert command.end().code == 130


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


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rate", "0"], "rate must be in (0, 1], got 0.0"),
        (["--rows", "0"], "rows must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--port", "70000"], "port must be in 0..65535, got 70000"),
        (["--format", "csv"], "invalid choice: 'csv'"),
    ],
)
def test_wrong_argument_is_told_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what was expected and what came, before anything is done."""
    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the installed version."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == version("adasel-stream")


def test_report_draws_run_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`report` makes a page of logs, and says how many lines it left out."""
    metrics = Metrics(["uniform"], sampling_rate=0.5, batch_size=8, policy="paper")
    log = tmp_path / "mine.jsonl"
    with RunLog(log, every_s=0) as writer:
        for _ in range(3):
            metrics.samples_seen += 16
            metrics.samples_selected += 8
            metrics.observe_step(0.1)
            writer.write(metrics.snapshot())
    with open(log, "a") as file:
        file.write('{"steps_total": 4, "sam')
    page = tmp_path / "page.html"
    assert main(["report", str(log), "--out", str(page)]) == 0
    assert "mine trained on 24 of 48 samples (50.0%)." in page.read_text()
    assert "1 damaged lines were left out" in capsys.readouterr().out


def test_report_of_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing log and an empty one are told apart, each in a sentence."""
    assert main(["report", str(tmp_path / "absent.jsonl")]) == 1
    assert "absent.jsonl" in capsys.readouterr().err
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert main(["report", str(empty), "--out", str(tmp_path / "page.html")]) == 1
    assert "no records" in capsys.readouterr().err
