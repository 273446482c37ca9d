"""A checkpoint that is damaged, foreign or hostile is refused, and nothing in it runs."""

import contextlib
import hashlib
import json
import os
import pickle
import random
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from adasel_stream.checkpoint import FORMAT_VERSION, load_checkpoint, save_checkpoint
from adasel_stream.errors import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
)

STATE = {
    "step": 7,
    "weights": (np.array([0.25, 0.75], "<f4"), torch.tensor([True, False])),
    "random": {0: b"\x00\xff", "inf": float("inf"), "name": "ä"},
}


def frame(header: bytes, payload: bytes = b"", version: int = FORMAT_VERSION) -> bytes:
    """Put any header and payload into a frame whose lengths and checksums hold."""
    preamble = struct.pack("<8sIQQ", b"ADASELCK", version, len(header), len(payload))
    body = preamble + struct.pack("<I", zlib.crc32(preamble)) + header + payload
    return body + hashlib.blake2b(body).digest()


def framed_tree(tree: Any, payload: bytes = b"") -> bytes:
    """Put any tree into a checkpoint."""
    return frame(json.dumps({"byteorder": sys.byteorder, "tree": tree}).encode(), payload)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound small checkpoint."""
    path = tmp_path_factory.mktemp("sound") / "c"
    save_checkpoint(path, STATE)
    return path.read_bytes()


def assert_refused(path: Path, content: bytes) -> str:
    """Write `content` to `path`, expect that it is refused by name, and return the reason."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as refusal:
        load_checkpoint(path)
    assert repr(str(path)) in str(refusal.value)
    assert path.read_bytes() == content
    return str(refusal.value)


def flip(content: bytes, bit: int) -> bytes:
    """Flip one bit."""
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_every_flipped_byte_is_refused(sound: bytes, tmp_path: Path) -> None:
    """One flipped bit, and all eight, in any byte of the file make it unloadable."""
    for at in range(len(sound)):
        assert_refused(tmp_path / "c", flip(sound, 8 * at + at % 8))
        assert_refused(tmp_path / "c", sound[:at] + bytes([sound[at] ^ 0xFF]) + sound[at + 1 :])


def test_every_cut_is_refused(sound: bytes, tmp_path: Path) -> None:
    """The file cut at any length, or with anything behind its end, is refused."""
    for length in range(len(sound)):
        assert_refused(tmp_path / "c", sound[:length])
    for tail in (b"\x00", sound):
        assert "bytes long and says" in assert_refused(tmp_path / "c", sound + tail)


def random_damage(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, zero a stretch, or repeat one."""
    at, end = sorted((rng.randrange(len(content)), rng.randrange(1, len(content) + 1)))
    match rng.randrange(4):
        case 0:
            for _ in range(rng.randint(1, 4)):
                content = flip(content, rng.randrange(8 * len(content)))
            return content
        case 1:
            return content[:at]
        case 2:
            return content[:at] + bytes(end - at) + content[end:]
        case _:
            return content[:end] + content[at:end] + content[end:]


def check_random_damage(sound: bytes, path: Path, tries: int) -> None:
    """Damage a file `tries` times; every changed file must be refused."""
    rng = random.Random(0)
    path.write_bytes(sound)
    for _ in range(tries):
        damaged = random_damage(sound, rng)
        if damaged == sound:
            continue
        # Rewritten in place: a new file each time would measure the file system.
        with open(path, "r+b") as file:
            file.write(damaged)
            file.truncate()
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_random_damage_is_refused(sound: bytes, tmp_path: Path) -> None:
    """Two thousand random flips, cuts, holes and repetitions: none is accepted."""
    check_random_damage(sound, tmp_path / "c", 2_000)


@pytest.mark.verify
def test_random_damage_is_always_refused(sound: bytes, tmp_path: Path) -> None:
    """Two hundred thousand random flips, cuts, holes and repetitions: none is accepted."""
    check_random_damage(sound, tmp_path / "c", 200_000)


def test_a_newer_version_is_refused_by_both_numbers(sound: bytes, tmp_path: Path) -> None:
    """A file of a newer format, whatever it holds behind the preamble, is named as such."""
    path = tmp_path / "c"
    reason = assert_refused(path, frame(b"\x00", b"\x01", FORMAT_VERSION + 1))
    assert f"version {FORMAT_VERSION + 1}, this release reads up to {FORMAT_VERSION}" in reason
    with pytest.raises(CheckpointVersionError):
        load_checkpoint(path)


def test_a_flipped_version_is_damage_not_a_newer_version(sound: bytes, tmp_path: Path) -> None:
    """A damaged version number does not send the user looking for another release."""
    (tmp_path / "c").write_bytes(flip(sound, 8 * 9))
    with pytest.raises(CorruptCheckpointError, match="first 28 bytes"):
        load_checkpoint(tmp_path / "c")


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("was-run",))


def test_a_pickle_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a pickle, nor one by torch.save, nor one inside a sound frame is ever run."""
    monkeypatch.chdir(tmp_path)
    hostile = pickle.dumps(_Runs())
    torch.save(_Runs(), "by_torch")
    for content in (hostile, Path("by_torch").read_bytes(), frame(hostile), frame(b"{}", hostile)):
        assert_refused(tmp_path / "c", content * 40)
        assert_refused(tmp_path / "c", content)
    assert not Path("was-run").exists()


@pytest.mark.parametrize(
    ("tree", "payload"),
    [
        *((["list", 1], b""), (7, b""), ({"a": 1}, b""), ([], b""), (["set", 1], b"")),
        *((["dict", 1], b""), (["dict", 1, 2, 1, 3], b""), (["dict", None, 1], b"")),
        *((["dict", 1, ["float", "00"]], b""), (["dict", 1, ["int", "x"]], b"")),
        *((["dict", 1, ["bytes", 0, 2]], b"a"), (["dict", 1, ["bytes", 0, -1]], b"a")),
        *((["dict", 1, ["bytes", 1, 1]], b"ab"), (["dict", 1, 1], b"unclaimed")),
        *(
            (["dict", 1, ["array", 0, "|O", [1]]], bytes(8)),
            (["dict", 1, ["array", 0, "O", []]], bytes(8)),
        ),
        *(
            (["dict", 1, ["array", 0, "<f4", [-1]]], bytes(4)),
            (["dict", 1, ["array", 0, "<f4", [1.0]]], bytes(4)),
        ),
        *(
            (["dict", 1, ["array", 0, "<f5", [1]]], bytes(5)),
            (["dict", 1, ["array", 0, "<U9999999999", [0]]], b""),
        ),
        *(
            (["dict", 1, ["array", 0, "f4,f4", [1]]], bytes(8)),
            (["dict", 1, ["array", 0, "<M8[x]", [1]]], bytes(8)),
        ),
        *(
            (["dict", 1, ["array", 0, "<f4", [0, 2**62]]], b""),
            (["dict", 1, ["array", 0, "<f4", [0, 2**70]]], b""),
        ),
        *(
            (["dict", 1, ["array", 0, "<f4", [1] * 65]], bytes(4)),
            (["dict", 1, ["array", 0, "<f4", [2**62]]], b""),
        ),
        *(
            (["dict", 1, ["tensor", 0, "<f4", [1]]], bytes(4)),
            (["dict", 1, ["tensor", 0, "Tensor", [1]]], b""),
        ),
        *(
            (["dict", 1, ["tensor", 0, "float32", [0, 2**62, 8]]], b""),
            (["dict", 1, ["tensor", 0, "float32", [0, 2**70]]], b""),
        ),
        *(
            (["dict", 1, ["tensor", 0, "uint8", [2**50]]], b""),
            (["dict", 1, ["scalar", 0, "|u1", [1]]], b"a"),
        ),
        (json.loads("[" * 65 + "]" * 65), b""),
    ],
    ids=lambda part: str(part)[:48],
)
def test_a_hostile_tree_is_refused(tree: Any, payload: bytes, tmp_path: Path) -> None:
    """A header that no save makes is damage, however sound its checksum is."""
    (tmp_path / "c").write_bytes(framed_tree(tree, payload))
    with pytest.raises(CorruptCheckpointError):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 10**6, b'{"tree":1}', b"1" * 5000],
    ids=lambda header: repr(header[:12]),
)
def test_a_hostile_header_is_refused(header: bytes, tmp_path: Path) -> None:
    """What is no JSON, or JSON of another form, or nested a million deep, is damage."""
    assert_refused(tmp_path / "c", frame(header))


def test_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    """Tensors from a machine of the other byte order are refused, not misread."""
    other = {"little": "big", "big": "little"}[sys.byteorder]
    header = json.dumps({"byteorder": other, "tree": ["dict"]}).encode()
    assert f"whose byte order is not {sys.byteorder}" in assert_refused(
        tmp_path / "c", frame(header)
    )


json_values = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-9, 2**70), st.floats(), st.text(max_size=4)),
        st.sampled_from(["dict", "ordered", "list", "tuple", "int", "float", "bytes", "array"]),
        st.sampled_from(["tensor", "scalar", "<f4", "|u1", "<U2", "float32", "uint8", "0x1"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=15,
)


@pytest.mark.slow
@settings(deadline=None)
@given(tree=json_values, payload=st.binary(max_size=12))
def test_no_tree_crashes_the_reader(
    tree: Any, payload: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any JSON under a sound checksum either loads as a dict or is refused as damage."""
    path = tmp_path_factory.getbasetemp() / "fuzz.ckpt"
    path.write_bytes(framed_tree(["dict", "a", tree], payload))
    with contextlib.suppress(CorruptCheckpointError):
        assert isinstance(load_checkpoint(path), dict)


def test_lengths_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    """A small file that announces a terabyte is refused at once."""
    for lengths in ((2**40, 0), (0, 2**40), (2**64 - 1, 2**64 - 1)):
        preamble = struct.pack("<8sIQQ", b"ADASELCK", 1, *lengths)
        content = preamble + struct.pack("<I", zlib.crc32(preamble)) + bytes(64)
        assert_refused(tmp_path / "c", content)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder or a named pipe in the file's place is refused and does not block."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(
            CheckpointError, match=r"checkpoint '.*' is not a regular file|directory"
        ):
            load_checkpoint(path)
