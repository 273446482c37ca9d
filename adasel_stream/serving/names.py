"""How files of a serving folder are called.

`WRITER.SEQUENCE.seg` is a segment, `.WRITER.SEQUENCE.seg.tmp` one that is being written,
`WRITER.SEQUENCE.seg.damaged` one that was set aside, and `WRITER.lock` is held by a writer for as
long as it lives. WRITER stands for 16 hexadecimal digits, drawn by chance and saying nothing of
the machine, SEQUENCE for 12 decimal digits. Anything else in the folder is not ours.
"""

import re
import secrets
from typing import Final

__all__ = [
    "DAMAGED",
    "lock_name",
    "new_writer",
    "segment_name",
    "temporary_name",
    "writer_and_sequence",
    "writer_of_lock",
    "writer_of_temporary",
]

DAMAGED: Final = re.compile(r"[0-9a-f]{16}\.[0-9]{12}\.seg\.damaged")
"""Names of segments that were set aside."""

_SEGMENT: Final = re.compile(r"([0-9a-f]{16})\.([0-9]{12})\.seg")
_TEMPORARY: Final = re.compile(r"\.([0-9a-f]{16})\.[0-9]{12}\.seg\.tmp")
_LOCK: Final = re.compile(r"([0-9a-f]{16})\.lock")


def new_writer() -> str:
    """Draw the name of a writer; no two are alike.

    >>> len(new_writer())
    16
    """
    return secrets.token_hex(8)


def segment_name(writer: str, sequence: int) -> str:
    """Return the name of a segment.

    >>> segment_name("00c0ffee00c0ffee", 7)
    '00c0ffee00c0ffee.000000000007.seg'
    """
    return f"{writer}.{sequence:012d}.seg"


def temporary_name(writer: str, sequence: int) -> str:
    """Return the name of a segment while it is written."""
    return f".{segment_name(writer, sequence)}.tmp"


def lock_name(writer: str) -> str:
    """Return the name of the file that a writer holds locked while it lives."""
    return f"{writer}.lock"


def writer_and_sequence(name: str) -> tuple[str, int] | None:
    """Read the name of a segment; None if it is no such name.

    >>> writer_and_sequence("00c0ffee00c0ffee.000000000007.seg"), writer_and_sequence("notes.seg")
    (('00c0ffee00c0ffee', 7), None)
    """
    match = _SEGMENT.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def writer_of_temporary(name: str) -> str | None:
    """Read the name of a segment that is being written; None if it is no such name."""
    match = _TEMPORARY.fullmatch(name)
    return match[1] if match else None


def writer_of_lock(name: str) -> str | None:
    """Read the name of a writer's lock file; None if it is no such name."""
    match = _LOCK.fullmatch(name)
    return match[1] if match else None
