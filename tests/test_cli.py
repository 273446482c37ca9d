"""The command's arguments, and reports of run logs."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from adasel_stream.cli import main
from adasel_stream.metrics import Metrics
from adasel_stream.runlog import RunLog


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rate", "0"], "rate must be in (0, 1], got 0.0"),
        (["--rows", "0"], "rows must be at least 1, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--port", "70000"], "port must be in 0..65535, got 70000"),
        (["--save-every", "-1"], "save-every must be at least 0 seconds, got -1.0"),
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
    absent = tmp_path / "absent.jsonl"
    assert main(["report", str(absent)]) == 1
    assert capsys.readouterr().err == f"adasel-stream: there is no file '{absent}'\n"
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    assert main(["report", str(empty), "--out", str(tmp_path / "page.html")]) == 1
    assert "no records" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["import this\n", '{"steps_total": 1}\n', "[1]\n2\n"])
def test_report_of_something_else_says_so(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is no run log is refused by name, and no page is written."""
    path, page = tmp_path / "m.py", tmp_path / "page.html"
    path.write_text(content)
    assert main(["report", str(path), "--out", str(page)]) == 1
    assert f"'{path}' is no run log: expected one JSON object a line" in capsys.readouterr().err
    assert not page.exists()


def test_report_of_a_folder_is_told_without_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the system says comes with the path, and with no code of the system's."""
    assert main(["report", str(tmp_path)]) == 1
    told = f"adasel-stream: '{tmp_path}' cannot be used: Is a directory\n"
    assert capsys.readouterr().err == told


def test_help_of_the_demo_has_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody has to run it to learn where it writes, and on which port it is watched."""
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "four ways" in told
    for words in (
        *("folder for the results (default: demo-run)", "train on (default: 0.2)"),
        "0 takes a free one (default: 9400)",
    ):
        assert words in told


def test_looking_into_a_record_loads_no_torch() -> None:
    """Whoever is on call looks at a record from any machine, and at once."""
    code = (
        "import sys; from adasel_stream.cli import main; from adasel_stream import LossRecord; "
        "print(sorted({'torch', 'prometheus_client', 'numba'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
