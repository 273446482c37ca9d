"""The command `adasel-stream record`: as processes of their own, and in this one."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.demo_command import Ended

SCRIPT = Path(sys.executable).with_name("adasel-stream")
_NOBODY = 65_534
_HOLD = """
import sys
from adasel_stream.record import LossRecord
record = LossRecord.open(sys.argv[1], 100, engine="numpy")
print("open", flush=True)
sys.stdin.read()
"""


def run_script(*arguments: object) -> Ended:
    """Run the installed command to its end."""
    ended = subprocess.run(
        [SCRIPT, "record", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@contextlib.contextmanager
def trainer(path: Path) -> Iterator[int]:
    """Let another process have a record open, and give its number."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process.pid
        finally:
            process.kill()


@contextlib.contextmanager
def without_permission(folder: Path) -> Iterator[None]:
    """Take a folder's permissions away, and those that the superuser has in any case."""
    superuser = os.geteuid() == 0
    folder.chmod(0)
    if superuser:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)
        folder.chmod(0o700)
