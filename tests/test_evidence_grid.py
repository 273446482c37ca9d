"""The evidence's grid: which cells there are, and that a kill loses nothing that was done."""

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.evidence.__main__ import main
from benchmarks.evidence.contestants import CONTESTANTS
from benchmarks.evidence.grid import Grid, cells_of, revision_of
from benchmarks.evidence.store import Cell, Results, ResultsError
from benchmarks.evidence.tasks import TASKS

ROOT = Path(__file__).parents[1]


def test_full_training_runs_once_a_seed() -> None:
    """Full training does not depend on the rate, and is not repeated at each."""
    cells = cells_of(Grid(["line"], ["full", "uniform"], [0.1, 0.2], seeds=2))
    assert [cell for cell in cells if cell.contestant == "full"] == [
        Cell("line", "full", 1.0, seed, "updates") for seed in (0, 1)
    ]
    assert len(cells) == len(set(cells)) == 2 * (1 + 2)


def test_cells_at_equal_time_come_last_and_only_over_epochs() -> None:
    """They need the times of others; a stream that is read once has no more updates to give."""
    grid = Grid(["click", "line"], ["full", "uniform", "auto"], [0.2], 2, ["auto"], [0.2])
    timed = [cell.budget == "time" for cell in cells_of(grid)]
    assert timed == sorted(timed)
    assert {cell.task for cell in cells_of(grid) if cell.budget == "time"} == {"line"}


def test_everyone_takes_part_somewhere() -> None:
    """No contestant and no task falls out of the grid."""
    cells = cells_of(Grid(list(TASKS), list(CONTESTANTS), [0.2], 1))
    assert {cell.contestant for cell in cells} == set(CONTESTANTS)
    assert {cell.task for cell in cells} == set(TASKS)


def command(folder: Path, *more: str) -> list[str]:
    """Give the command of a small grid on one task that needs no data."""
    return [
        *(sys.executable, "-m", "benchmarks.evidence", "--jobs", "1", "--seeds", "2"),
        *("--tasks", "line", "--contestants", "full", "uniform", "auto", "--rates", "0.2"),
        *("--results", str(folder / "r.parquet"), "--docs", str(folder / "docs"), *more),
    ]


def run(folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """Run it to its end."""
    return subprocess.run(
        command(folder, *more), cwd=ROOT, capture_output=True, text=True, check=False
    )


def wait_for(process: "subprocess.Popen[bytes]", path: Path) -> None:
    """Wait until the process has made a file."""
    while not path.exists():
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise AssertionError(f"it ended with {process.wait(0.01)} before there was a result")


def children_of(process: int) -> list[int]:
    """List a process's children."""
    return [
        int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def alive(process: int) -> bool:
    """Say whether a process still runs."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_a_grid_that_was_killed_goes_on(tmp_path: Path) -> None:
    """After SIGKILL finished cells are kept as they were, the rest is run, and no worker stays."""
    path = tmp_path / "r.parquet"
    with subprocess.Popen(
        command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait_for(process, path)
        workers = children_of(process.pid)
        process.kill()
    before = Results(path).rows
    cells = set(
        cells_of(Grid(["line"], ["full", "uniform", "auto"], [0.2], 2, ["uniform", "auto"], [0.2]))
    )
    assert 0 < len(before) < len(cells)
    deadline_s = time.monotonic() + 30
    while any(map(alive, workers)):
        assert time.monotonic() < deadline_s, "a worker outlived the main process"
        os.sched_yield()

    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    after = Results(path).rows
    assert set(after) == cells
    assert {cell: after[cell] for cell in before} == before  # with their times: not run again
    assert "`auto` not worse than uniform" in (tmp_path / "docs/results.md").read_text()

    kept = path.read_bytes()
    assert run(tmp_path, "--render").returncode == 0
    assert path.read_bytes() == kept


@pytest.mark.slow
def test_a_grid_that_is_asked_to_end_saves_first(tmp_path: Path) -> None:
    """SIGTERM loses no cell that was done, and the last line says how to go on."""
    path = tmp_path / "r.parquet"
    with subprocess.Popen(
        command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        wait_for(process, path)
        process.terminate()
        _, told = process.communicate()
    assert process.returncode == 130
    assert b"has what was done, run again to go on" in told
    assert Results(path).rows


@pytest.mark.slow
def test_nothing_to_show_is_said_and_no_page_overwritten(tmp_path: Path) -> None:
    """A name of a file that is not there is a slip, not an empty page."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/results.md").write_text("what was there")
    done = run(tmp_path, "--render")
    assert done.returncode == 2
    assert "r.parquet is missing, so there is nothing to show; name a file" in done.stderr
    assert (tmp_path / "docs/results.md").read_text() == "what was there"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rates", "20"], "a rate must be in (0, 1], got 20"),
        (["--seeds", "0"], "it must be 1 or more, got 0"),
        (["--jobs", "-1"], "it must be 1 or more, got -1"),
        (["--tasks", "lines"], "invalid choice: 'lines'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is run."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Cells that were computed would be lost."""
    assert main(["--tasks", "line", "--results", "/dev/null/r.parquet"]) == 2
    assert "/dev/null/r.parquet cannot be written: " in capsys.readouterr().err


def test_a_page_without_full_training_is_written(tmp_path: Path) -> None:
    """Contestants may be chosen; there is then nothing that times are a share of."""
    path = tmp_path / "r.parquet"
    chosen = ["--tasks", "line", "--contestants", "uniform", "--rates", "0.1", "--seeds", "1"]
    assert main([*chosen, "--timed-rates", "--jobs", "1", "--results", str(path)]) == 0
    assert "| uniform |" in (tmp_path / "r-docs" / "results.md").read_text()


def test_results_of_other_code_are_not_gone_on_with(tmp_path: Path) -> None:
    """Both revisions are named, and what to do."""
    results = Results(tmp_path / "r.parquet")
    results.check("abc", [0.2])
    cell = Cell("line", "auto", 0.2, 0, "updates")
    results.rows[cell] = {**cell._asdict(), "revision": "abc"}
    results.check("abc", [0.2])
    results.check("def", [0.1])
    with pytest.raises(ResultsError, match=r"of revision abc at .*the code is now at def; .*new"):
        results.check("def", [0.1, 0.2])


def test_a_revision_is_that_of_the_code_that_decides(tmp_path: Path) -> None:
    """Pages and other files may change between two runs; the package and the tasks may not."""

    def git(*command: str) -> None:
        told = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *told, *command], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "adasel_stream").mkdir()
    code = tmp_path / "adasel_stream/a.py"
    code.write_text("1\n")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "code")
    first = revision_of(tmp_path)
    assert re.fullmatch("[0-9a-f]{7}", first)
    (tmp_path / "page.md").write_text("page")
    git("add", "-A")
    git("commit", "-qm", "page")
    assert revision_of(tmp_path) == first
    changed = set()
    for text in ("2\n", "3\n"):
        code.write_text(text)
        changed.add(revision_of(tmp_path))
    assert len(changed) == 2
    assert all(one.startswith(f"{first}+") for one in changed)


@pytest.mark.slow
def test_missing_data_ends_with_its_name(tmp_path: Path) -> None:
    """A data set that is not there is named; what was done before stays."""
    done = run(tmp_path, "--tasks", "line", "bike-daily", "--data", str(tmp_path), "--seeds", "1")
    assert done.returncode == 2
    assert "day.csv is missing" in done.stderr
    assert "Traceback" not in done.stderr
    assert {cell.task for cell in Results(tmp_path / "r.parquet").rows} == {"line"}


@pytest.mark.slow
def test_damaged_results_end_with_their_name(tmp_path: Path) -> None:
    """A damaged file of results is named and neither used nor replaced."""
    path = tmp_path / "r.parquet"
    path.write_bytes(b"PAR1 no more")
    done = run(tmp_path)
    assert done.returncode == 2
    assert "r.parquet is damaged" in done.stderr
    assert path.read_bytes() == b"PAR1 no more"
    assert not (tmp_path / "docs").exists()
