"""Owners of records that are killed at each call; run as a script by test_snapshots_kills.py.

A process of its own, so that it can fork children with Arrow loaded. Prints one JSON object of
counts; any broken promise is a failed assertion and exit status 1.
"""

import json
import os
import signal
import sys
from pathlib import Path

from adasel_stream.record.snapshots.upkeep import compact
from benchmarks.record_faults import checked_step, open_record, save, take_step
from tests.killed_savers import count_calls


def kill_at_every_call(job: str, path: Path) -> dict[str, int]:
    """Kill a child before each call to the operating system that one round of its job makes."""
    step = 0
    for number in range(1, 2000):
        child = os.fork()
        if child == 0:
            run_until_call(job, path, number)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        step, before = checked_step(path), step
        assert before <= step <= before + 2
        if status == 0:
            return {"calls": number - 1}
        assert status == -signal.SIGKILL
    raise AssertionError("the round never ended")


def run_until_call(job: str, path: Path, last: int) -> None:
    """Do one round and die by SIGKILL before the call of that number, or exit in peace."""

    def kill(number: int, _: str) -> None:
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)

    record = open_record(path)
    take_step(record)
    save(record, full=True)
    take_step(record)
    if job == "snapshot":
        count_calls(kill)
        save(record)
        save(record, full=True)
    else:
        save(record)
        record.close(save=False)
        count_calls(kill)
        compact(path)
    os._exit(0)


if __name__ == "__main__":
    _, job, folder = sys.argv
    print(json.dumps(kill_at_every_call(job, Path(folder))))
