"""Processes that save checkpoints and are killed; run as a script by test_atomic.py.

A process of its own, so that it can fork children with torch loaded while it has no threads.
Prints one JSON object of counts; any broken promise is a failed assertion and exit status 1.
"""

import fcntl
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adasel_stream.checkpoint import load_checkpoint, save_checkpoint

CALLS = (
    *((os, name) for name in ("listdir", "open", "write", "fsync", "replace", "unlink", "close")),
    (fcntl, "flock"),
)
"""Every call to the operating system that a save makes."""


def state_at(step: int) -> dict[str, Any]:
    """A state that shows by itself whether all its parts are of one step."""
    return {"step": step, "array": np.full(30_000, step), "parts": [np.int64(step)] * 20}


def checked_step(path: Path) -> int:
    """Load the file, check that it is of one step, and return the step."""
    state = load_checkpoint(path)
    step = int(state["step"])
    assert (state["array"] == step).all(), "arrays of another step"
    assert state["parts"] == [step] * 20, "parts of another step"
    return step


def count_calls(on_call: Callable[[int, str], None]) -> None:
    """Have every call of `CALLS` announce itself, numbered from 1, before it is made."""
    count = 0

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def announced(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            on_call(count, name)
            return call(*args, **kwargs)

        return announced

    for module, name in CALLS:
        setattr(module, name, wrap(name, getattr(module, name)))


def save_until_call(path: Path, last: int) -> None:
    """Save and die by SIGKILL before the call of that number, or exit in peace."""

    def kill(number: int, _: str) -> None:
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)

    count_calls(kill)
    save_checkpoint(path, state_at(2))
    os._exit(0)


def kill_at_every_call(path: Path) -> dict[str, int]:
    """Kill a saving child before its 1st, 2nd, ... call, until one gets through."""
    for number in range(1, 1000):
        save_checkpoint(path, state_at(1))
        child = os.fork()
        if child == 0:
            save_until_call(path, number)
        status = os.waitpid(child, 0)[1]
        assert checked_step(path) in (1, 2)
        if status == 0:
            return {"calls": number - 1}
    raise AssertionError("the save never ended")


def save_for_ever(path: Path, report: int) -> None:
    """Save one step after the other and report each save that returned."""
    step = checked_step(path)
    while True:
        step += 1
        save_checkpoint(path, state_at(step))
        os.write(report, step.to_bytes(8, "little"))


def kill_at_random_moments(path: Path, kills: int) -> dict[str, int]:
    """Kill a child that saves in a loop, again and again: no save that returned is lost."""
    rng = random.Random(0)
    save_checkpoint(path, state_at(0))
    temporaries = 0
    for _ in range(kills):
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            save_for_ever(path, writable)
        os.close(writable)
        time.sleep(rng.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reported = b""
        while block := os.read(readable, 1 << 16):
            reported += block
        os.close(readable)
        step = checked_step(path)
        if reported:
            last = int.from_bytes(reported[-8:], "little")
            assert last <= step <= last + 1, f"saved {last}, found {step}"
        left = len(os.listdir(path.parent)) - 1
        assert left <= 1, "temporaries of killed writers pile up"
        temporaries += left
    return {"kills": kills, "saved": checked_step(path), "killed_while_writing": temporaries}


if __name__ == "__main__":
    job, file = sys.argv[1], Path(sys.argv[2])
    counts = kill_at_every_call(file) if job == "calls" else kill_at_random_moments(file, int(job))
    print(json.dumps(counts))
