import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream.metrics import Metrics
from adasel_stream.runlog import RunLog, effective_records, read_run_log


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    """Records come back in order with text, numbers and nesting as they were."""
    records: list[dict[str, Any]] = [
        {"step": 1, "name": "żółć\n", "nested": {"a": [1, 2.5, None, True]}},
        {"step": 2},
    ]
    with RunLog(tmp_path / "run.jsonl", every_s=0) as log:
        for record in records:
            log.write(record)

    assert read_run_log(tmp_path / "run.jsonl") == (records, 0)
    assert (tmp_path / "run.jsonl").read_bytes().count(b"\n") == 2


def test_a_record_is_written_only_when_one_is_due(tmp_path: Path) -> None:
    """Between two records lie `every_s` seconds unless one is forced, which restarts them."""
    now = 0.0
    with RunLog(tmp_path / "run.jsonl", every_s=10.0, clock=lambda: now) as log:
        for moment, force in [(0, False), (9, False), (10, False), (15, True), (21, False)]:
            now = float(moment)
            assert log.is_due() == (moment in (0, 10))
            log.write({"at": moment}, force=force)
        now = 25.0
        log.write({"at": 25})

    assert [record["at"] for record in read_run_log(log.path).records] == [0, 10, 15, 25]


def test_numpy_numbers_and_non_finite_ones_are_written(tmp_path: Path) -> None:
    """Arrays become lists, numpy numbers plain ones, and NaN null, so that any parser reads it."""
    with RunLog(tmp_path / "run.jsonl") as log:
        log.write(
            {
                "array": np.array([1.0, math.nan], dtype=np.float32),
                "count": np.int64(3),
                "ratio": np.float32(0.5),
                "infinite": [math.inf, -math.inf],
            }
        )

    assert read_run_log(log.path).records == [
        {"array": [1.0, None], "count": 3, "ratio": 0.5, "infinite": [None, None]}
    ]


def test_a_snapshot_of_metrics_goes_through(tmp_path: Path) -> None:
    """The log holds what a live page shows."""
    metrics = Metrics(["uniform"], sampling_rate=0.5, batch_size=8, policy="paper")
    metrics.observe_step(0.25)
    with RunLog(tmp_path / "run.jsonl") as log:
        log.write(metrics.snapshot())

    record = read_run_log(log.path).records[0]
    assert record["steps_total"] == 1
    assert record["step_seconds"]["sum"] == 0.25


WRITER = """
import sys
from adasel_stream.runlog import RunLog
log = RunLog(sys.argv[1], every_s=0)
print("ready", flush=True)
for step in range(10**9):
    log.write({"steps_total": step, "filler": "x" * 2000})
"""


@pytest.mark.slow
def test_a_log_survives_kill_9_and_goes_on(tmp_path: Path) -> None:
    """Every record written before the kill is whole, and a new writer adds to the same file."""
    path = tmp_path / "run.jsonl"
    path.touch()
    for _ in range(2):
        grown = path.stat().st_size + 300_000
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        while path.stat().st_size < grown:
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        process.stdout.close()
        records, damaged = read_run_log(path)
        assert damaged <= 1
        assert len(records) > 100
    with RunLog(path) as log:
        log.write({"steps_total": -1})

    records, damaged = read_run_log(path)
    steps = [record["steps_total"] for record in records]
    start = steps.index(0, 1)  # where the second writer began
    assert steps[:start] == list(range(start))
    assert steps[start:-1] == list(range(len(steps) - start - 1))
    assert steps[-1] == -1


@given(st.integers(0, 120))
def test_a_cut_at_any_byte_loses_at_most_the_last_line(cut: int) -> None:
    """Whole lines before the cut are read, the rest is counted, and the next line is whole."""
    lines = [json.dumps({"steps_total": step, "name": "é" * step}) for step in range(4)]
    content = ("\n".join(lines) + "\n").encode()[:cut]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.jsonl"
        path.write_bytes(content)
        before = read_run_log(path)
        with RunLog(path) as log:
            log.write({"steps_total": 99})
        after = read_run_log(path)

    whole = content.count(b"\n")
    assert len(before.records) in (whole, whole + 1)  # one more where only the newline is lost
    assert [record["steps_total"] for record in after.records] == [
        *range(len(before.records)),
        99,
    ]
    assert after.damaged == before.damaged <= 1


def test_lines_that_are_no_records_are_counted(tmp_path: Path) -> None:
    """Damage in the middle costs its own line only; empty lines are none."""
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"a": 1}\n\xff\xfe\n[1, 2]\n\n12\n' + b"[" * 100_000 + b'\n{"a": 2}\n')

    records, damaged = read_run_log(path)

    assert records == [{"a": 1}, {"a": 2}]
    assert damaged == 4


def test_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    """A refused write warns once and is counted; when there is room again, lines are whole."""
    path = tmp_path / "run.jsonl"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with RunLog(path, every_s=0) as log:
        log.write({"at": 0})
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, old[1]))
            with pytest.warns(RuntimeWarning, match="training goes on"):
                log.write({"at": 1})  # five bytes of it fit
            log.write({"at": 2})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            signal.signal(signal.SIGXFSZ, ignored)
        log.write({"at": 3})

    assert log.failed == 2
    assert read_run_log(path) == ([{"at": 0}, {"at": 3}], 1)


def test_only_the_effective_history_is_kept() -> None:
    """Steps that a resume rolled back and repeated appear once, as they were repeated."""
    steps = [0, 10, 20, 30, 15, 25, 35, 35]
    records: list[dict[str, Any]] = [
        {"steps_total": step, "line": line} for line, step in enumerate(steps)
    ]
    records.insert(2, {"event": "checkpoint"})

    kept = effective_records(records)

    assert [record["line"] for record in kept] == [0, 1, 4, 5, 7]


def test_wrong_use_is_named(tmp_path: Path) -> None:
    """Negative intervals, values that JSON has no form for and a closed log are refused."""
    with pytest.raises(ValueError, match="every_s"):
        RunLog(tmp_path / "run.jsonl", every_s=-1)
    with RunLog(tmp_path / "run.jsonl") as log, pytest.raises(TypeError):
        log.write({"value": object()})
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.write({})
