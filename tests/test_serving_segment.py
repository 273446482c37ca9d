"""A segment is read as it was written, or refused."""

import os
import random
import struct
import zlib
from hashlib import blake2b
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings

from adasel_stream.serving.names import segment_name
from adasel_stream.serving.segment import (
    FORMAT_VERSION,
    MAX_ROWS,
    ROW,
    DamagedSegmentError,
    NewerSegmentError,
    read_segment,
    segment_bytes,
    write_segment,
)

WRITER = "00c0ffee00c0ffee"


def random_rows(n: int, seed: int = 0) -> npt.NDArray[Any]:
    """Make rows of any bytes."""
    return np.frombuffer(random.Random(seed).randbytes(n * ROW.itemsize), ROW)


def content_of(folder: Path, rows: npt.NDArray[Any]) -> bytes:
    """Write a segment and return its bytes."""
    write_segment(folder, WRITER, 1, rows.view(np.uint8).data)
    return (folder / segment_name(WRITER, 1)).read_bytes()


def frame(
    rows: int,
    content: bytes,
    *,
    version: int = FORMAT_VERSION,
    writer: str = WRITER,
    number: int = 1,
) -> bytes:
    """Put anything into a frame whose checksums hold, by what the format's description says."""
    head = b"ADASELSG" + struct.pack("<I", version) + bytes.fromhex(writer)
    head += struct.pack("<QI", number, rows)
    head += struct.pack("<I", zlib.crc32(head))
    return head + content + blake2b(head + content, digest_size=16).digest()


def assert_damaged(path: Path, content: bytes) -> str:
    """Write `content` in a segment's place, expect that it is refused, and return the reason."""
    # rewritten in place: a new file each time would measure the file system
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()
    with pytest.raises(DamagedSegmentError) as refusal:
        read_segment(path.parent, WRITER, 1)
    assert path.name in str(refusal.value)
    return str(refusal.value)


@given(
    n=st.integers(1, 40),
    sequence=st.integers(0, 10**12 - 1),
    writer=st.binary(min_size=8, max_size=8),
)
@settings(max_examples=50, deadline=None)
def test_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, n: int, sequence: int, writer: bytes
) -> None:
    """Any rows under any name are read bit for bit, and the file has the size that was said."""
    folder = tmp_path_factory.mktemp("s")
    rows = random_rows(n, seed=n)
    write_segment(folder, writer.hex(), sequence, rows.view(np.uint8).data)
    assert read_segment(folder, writer.hex(), sequence).tobytes() == rows.tobytes()
    assert (folder / segment_name(writer.hex(), sequence)).stat().st_size == segment_bytes(n)


def test_the_format_is_what_its_description_says(tmp_path: Path) -> None:
    """A segment put together by hand equals the written one, so that others may write them."""
    row = struct.pack("<qfIHHI", -5, 0.5, 1_700_000_000, 65_535, 1, 0)
    rows = np.array([(-5, 0.5, 1_700_000_000, 65_535, 1, 0)], ROW)
    assert content_of(tmp_path, rows) == frame(1, row)


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    """One flipped bit, and all eight, in any byte of a segment."""
    sound = content_of(tmp_path, random_rows(3))
    for at in range(len(sound)):
        for mask in (1 << at % 8, 0xFF):
            damaged = sound[:at] + bytes([sound[at] ^ mask]) + sound[at + 1 :]
            assert_damaged(tmp_path / segment_name(WRITER, 1), damaged)


def test_every_cut_is_refused(tmp_path: Path) -> None:
    """A segment cut at any length, or with anything behind its end."""
    sound = content_of(tmp_path, random_rows(3))
    for length in range(len(sound)):
        assert_damaged(tmp_path / segment_name(WRITER, 1), sound[:length])
    for tail in (b"\0", sound):
        assert_damaged(tmp_path / segment_name(WRITER, 1), sound + tail)


def check_random_damage(folder: Path, n: int, tries: int) -> None:
    """Flip bits, cut, zero or repeat stretches of a segment of n rows."""
    rng = random.Random(0)
    sound = content_of(folder, random_rows(n))
    for _ in range(tries):
        damaged = bytearray(sound)
        at, end = sorted((rng.randrange(len(sound)), rng.randrange(1, len(sound) + 1)))
        match rng.randrange(4):
            case 0:
                for _ in range(rng.randint(1, 4)):
                    damaged[rng.randrange(len(sound))] ^= 1 << rng.randrange(8)
            case 1:
                del damaged[at:]
            case 2:
                damaged[at:end] = bytes(end - at)
            case _:
                damaged[end:end] = damaged[at:end]
        if damaged != sound:
            assert_damaged(folder / segment_name(WRITER, 1), bytes(damaged))


def test_random_damage_is_refused(tmp_path: Path) -> None:
    """A thousand random flips, cuts, holes and repetitions."""
    check_random_damage(tmp_path, 100, 1_000)


@pytest.mark.verify
def test_random_damage_is_always_refused(tmp_path: Path) -> None:
    """Two hundred thousand, and two thousand of a large segment."""
    check_random_damage(tmp_path, 100, 200_000)
    check_random_damage(tmp_path, 65_536, 2_000)


@pytest.mark.parametrize(
    "content",
    [
        frame(0, b""),
        frame(MAX_ROWS + 1, bytes(24)),
        frame(2**32 - 1, bytes(24)),
        frame(2, bytes(24)),
        frame(1, bytes(48)),
        frame(1, bytes(24), version=0),
        frame(1, bytes(24), writer="0" * 16),
        frame(1, bytes(24), number=2),
    ],
    ids=["no rows", "many", "most", "fewer", "more", "version 0", "of another", "another number"],
)
def test_a_sound_frame_that_says_what_is_not_so_is_refused(tmp_path: Path, content: bytes) -> None:
    """Row counts, names and versions are checked, whatever the checksums say."""
    assert_damaged(tmp_path / segment_name(WRITER, 1), content)


def test_a_newer_version_is_refused_by_both_numbers(tmp_path: Path) -> None:
    """A segment of a newer format, whatever it holds, is named as such and left as it is."""
    path = tmp_path / segment_name(WRITER, 1)
    path.write_bytes(newer := frame(7, b"any", version=FORMAT_VERSION + 1))
    wanted = f"version {FORMAT_VERSION + 1}, this release reads up to {FORMAT_VERSION}"
    with pytest.raises(NewerSegmentError, match=wanted):
        read_segment(tmp_path, WRITER, 1)
    assert path.read_bytes() == newer


def test_what_is_no_file_is_no_segment(tmp_path: Path) -> None:
    """A named pipe does not block, a folder is refused, and a link is not followed."""
    path = tmp_path / segment_name(WRITER, 1)
    os.mkfifo(path)
    with pytest.raises(DamagedSegmentError, match="not a regular file"):
        read_segment(tmp_path, WRITER, 1)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        read_segment(tmp_path, WRITER, 1)
    path.rmdir()
    (tmp_path / "target").write_bytes(frame(1, bytes(24)))
    path.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        read_segment(tmp_path, WRITER, 1)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither a segment nor the beginning of one."""
    (tmp_path / segment_name(WRITER, 1)).mkdir()
    with pytest.raises(IsADirectoryError):
        write_segment(tmp_path, WRITER, 1, random_rows(1).view(np.uint8).data)
    assert os.listdir(tmp_path) == [segment_name(WRITER, 1)]
