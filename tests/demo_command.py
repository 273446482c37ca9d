"""Runs of the demo: as processes of their own, and in this one where starting costs more."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from adasel_stream.cli import main
from adasel_stream.demo.shards import Prepared

ARMS = {
    "adaselection": "AdaSelection",
    "uniform": "uniform",
    "uniform_same_cost": "uniform, same cost",
    "full": "full training",
}


SERVED_ARMS = {
    "adaselection_serving": "AdaSelection, serving",
    "adaselection_scoring": "AdaSelection, scoring",
    "uniform": "uniform",
    "uniform_scoring_cost": "uniform, scoring's cost",
    "full": "full training",
}
"""Those of a run with `--losses serving`."""


class Ended(NamedTuple):
    """How a run ended, and what it told."""

    code: int
    out: str
    told: str


_LIMITED = (
    "import resource, runpy, sys; most = int(sys.argv.pop(1)); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)); "
    "runpy.run_module('adasel_stream', run_name='__main__', alter_sys=True)"
)


class Command:
    """One process of `adasel-stream` that is under way.

    Args:
        arguments: what follows the command's name.
        most_bytes: longest file that the system lets it write, as a full disk would.
        leads: whether it leads a group of processes, as in the foreground of a terminal.
    """

    def __init__(
        self, arguments: Sequence[str], *, most_bytes: int | None = None, leads: bool = False
    ) -> None:
        """Start it."""
        start = ["-m", "adasel_stream"] if most_bytes is None else ["-c", _LIMITED, str(most_bytes)]
        self._process = subprocess.Popen(
            [sys.executable, *start, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "error"},
            process_group=0 if leads else None,
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

    def signal_group(self, number: int) -> None:
        """Send the group that it leads a signal, as a terminal does."""
        os.killpg(self._process.pid, number)

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


def run(*arguments: str) -> Ended:
    """Run a process to its end."""
    with Command(arguments) as command:
        return command.end()


def run_here(arguments: Sequence[str], shown: pytest.CaptureFixture[str]) -> Ended:
    """Run the command in this process, which has loaded everything already."""
    shown.readouterr()
    code = main(arguments)
    return Ended(code, *shown.readouterr())


def demo(prepared: Prepared, out: Path, *more: str) -> list[str]:
    """Give the arguments of a small demo on shards that are there."""
    data, rows = str(prepared.folder.parent), str(prepared.rows)
    return ["demo", "--out", str(out), "--data", data, "--rows", rows, "--port", "0", *more]


def numbers(out: Path) -> dict[str, Any]:
    """Read a result without what depends on how fast the machine is."""
    result = json.loads((out / "summary.json").read_text())
    for arm in result["arms"].values():
        del arm["seconds"], arm["accounting_s"]
    del result["cost"], result["elapsed_s"]
    result.get("served", {}).pop("seconds", None)
    return dict(result)
