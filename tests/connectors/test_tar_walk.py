"""The header walk sees what tarfile sees in a healthy archive, and trusts no other."""

import io
import mmap
import random
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_connectors.damage import DamageError
from adasel_connectors.tar_walk import END, LINK, REGULAR, SPARSE, walk
from tests.connectors.shard_files import END_OF_ARCHIVE, add_member, header, member

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def mapped(content: bytes) -> mmap.mmap:
    """Hold an archive in memory as a reader sees it."""
    view = mmap.mmap(-1, len(content))
    view[:] = content
    return view


def found(content: bytes) -> list[tuple[bytes, bytes]]:
    """Walk to the end; names and contents of regular files."""
    view = mapped(content)
    members = list(walk(view))
    assert members[-1][1] is END
    return [(n, view[s : s + size]) for n, kind, s, size, _ in members if kind is REGULAR]


def kind_of_damage(content: bytes) -> str:
    """Walk until damage is met; its kind."""
    with pytest.raises(DamageError) as caught:
        list(walk(mapped(content)))
    return caught.value.kind


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=140)
files = st.lists(st.tuples(names, st.binary(max_size=1200)), max_size=8)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(files, st.sampled_from(["gnu", "pax"]), st.floats(0, 1e9))
def test_the_walk_agrees_with_tarfile(
    files: list[tuple[str, bytes]], format: str, mtime: float
) -> None:
    """Any regular files under any names come back as tarfile reads them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[format]) as archive:
        for name, content in files:
            add_member(archive, name, content, mtime=mtime)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as archive:
        expected = [
            (each.name, reader.read())
            for each in archive
            if each.isreg() and (reader := archive.extractfile(each)) is not None
        ]
    ours = [(name.decode("utf-8", "surrogateescape"), c) for name, c in found(buffer.getvalue())]
    assert ours == expected


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.from_regex(r"\A([a-z]{1,30}/){0,5}[a-z]{1,30}\.[a-z]{3}\Z"), max_size=5))
def test_long_ustar_names_are_joined_from_their_prefix(paths: list[str]) -> None:
    """Names over 100 bytes that ustar splits in two come back whole."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in paths:
            add_member(archive, path, b"x")
    assert [name.decode() for name, _ in found(buffer.getvalue())] == paths


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.binary(max_size=4096), st.integers(0, 3000), st.booleans())
def test_any_bytes_end_in_damage_or_at_an_end(noise: bytes, at: int, appended: bool) -> None:
    """Whatever lies in a file, the walk stops with damage or a proper end, never otherwise."""
    sound = member(b"a.jpg", b"x" * 700) + member(b"a.cls", b"1") + END_OF_ARCHIVE
    content = sound[:at] + noise + (b"" if appended else sound[at:])
    if not content:
        return
    try:
        kinds = [kind for _, kind, *_ in walk(mapped(content))]
    except DamageError:
        return
    assert kinds[-1] is END


@pytest.mark.parametrize("size", [5, 0o77777777777])
def test_base_256_sizes_are_read(size: int) -> None:
    """A size written in base 256 counts as one in octal does."""
    field = b"\x80" + size.to_bytes(11, "big")
    content = header(b"a.jpg", field) + b"12345" + bytes(507) + END_OF_ARCHIVE
    if size == 5:
        assert found(content) == [(b"a.jpg", b"12345")]
    else:
        assert kind_of_damage(content) == "cut"


@pytest.mark.parametrize(
    "field",
    [
        b"\xff" * 11 + b"\x00",
        b"\xff" * 10 + b"\xfe\x00",
        b"\x80" + b"\xff" * 11,
        b"-0000000512\0"[:12],
        b"0000000_512\0"[:12],
        b"0o00000005\0\0",
        b"000000009\0\0\0",
        b"00\x00000005\0"[:12].ljust(12, b"\0"),
    ],
)
def test_sizes_that_are_not_plain_numbers_are_damage(field: bytes) -> None:
    """Negative, huge or misspelt sizes stop the walk at once."""
    started = time.monotonic()
    assert kind_of_damage(header(b"a.jpg", field) + END_OF_ARCHIVE) in ("bad_header", "cut")
    assert time.monotonic() - started < 5


def test_each_bit_of_a_header_is_guarded() -> None:
    """One flipped bit in a header is damage, or changes neither name, size nor content."""
    sound = member(b"a.jpg", b"x" * 700) + member(b"a.cls", b"1") + END_OF_ARCHIVE
    for bit in range(8 * 512):
        content = bytearray(sound)
        content[bit // 8] ^= 1 << bit % 8
        try:
            assert found(bytes(content)) == found(sound)
        except DamageError:
            continue


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (member(b"a.jpg", b"x" * 100), "cut"),
        (member(b"a.jpg", b"x" * 100)[:700], "cut"),
        (member(b"a.jpg", b"x" * 100) + bytes(512), "cut"),
        (b"\0" * 512 + member(b"a.jpg", b"x") + END_OF_ARCHIVE, "data_after_end"),
        (member(b"a.jpg", b"x") + END_OF_ARCHIVE + member(b"b.jpg", b"x"), "data_after_end"),
        (b"\x1f\x8b\x08" + bytes(600), "compressed"),
        (b"BZh9" + bytes(600), "compressed"),
        (b"\xfd7zXZ\0" + bytes(600), "compressed"),
        (b"(\xb5/\xfd" + bytes(600), "compressed"),
        (member(b"a.jpg", b"", b"V") + END_OF_ARCHIVE, "unsupported_type"),
        (header(b"a.jpg", b"%011o\0" % 512, b"2") + bytes(2048), "bad_header"),
        (header(b"folder/", b"%011o\0" % 512, b"5") + bytes(2048), "bad_header"),
        (member(b"", b"x" * (2 << 20), b"x") + member(b"a", b"") + END_OF_ARCHIVE, "bad_header"),
        (member(b"", b"9 path=b\n", b"x") + END_OF_ARCHIVE, "bad_header"),
        (member(b"", b"99 path=b\n", b"x") + member(b"a", b"") + END_OF_ARCHIVE, "bad_header"),
        (member(b"", b"10 size=-1\n", b"x") + member(b"a", b"") + END_OF_ARCHIVE, "bad_header"),
        (
            member(b"", b"5011 size=" + b"9" * 5000 + b"\n", b"x")
            + member(b"a", b"")
            + END_OF_ARCHIVE,
            "bad_header",
        ),
        (member(b"", b"9 path=b\n", b"g") + member(b"a", b"") + END_OF_ARCHIVE, "bad_header"),
        (
            member(b"", b"9 path=b\n", b"x") * 2 + member(b"a", b"") + END_OF_ARCHIVE,
            "bad_header",
        ),
        (
            member(b"", b"9 size=9\n", b"x") + member(b"", b"b\0", b"L") + END_OF_ARCHIVE,
            "bad_header",
        ),
    ],
)
def test_what_cannot_be_trusted_is_named(content: bytes, kind: str) -> None:
    """Each structural fault stops the walk under its own name."""
    assert kind_of_damage(content) == kind


def test_links_devices_and_sparse_files_are_marked() -> None:
    """What is no regular file says so, and the walk goes on behind it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, type_ in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE)):
            add_member(archive, name, b"", type=type_, linkname="/etc/passwd")
        for name, type_ in (("c.jpg", tarfile.CHRTYPE), ("d.jpg", tarfile.FIFOTYPE)):
            add_member(archive, name, b"", type=type_)
        add_member(archive, "folder", b"", type=tarfile.DIRTYPE)
        add_member(archive, "e.jpg", b"1\n", pax_headers={"GNU.sparse.major": "1"})
        end = archive.offset
    view = mapped(buffer.getvalue()[:end] + member(b"f.jpg", b"x", b"S") + END_OF_ARCHIVE)
    kinds = [(name, kind) for name, kind, *_ in walk(view)]
    assert kinds == [
        *((name, LINK) for name in (b"a.jpg", b"b.jpg", b"c.jpg", b"d.jpg")),
        *((name, SPARSE) for name in (b"e.jpg", b"f.jpg")),
        (b"", END),
    ]


def test_a_walk_can_start_at_each_member(tmp_path: Path) -> None:
    """The offset of a member is where a later walk finds it again, extension headers included."""
    rng = random.Random(0)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for i in range(20):
            add_member(archive, f"{'n' * rng.randint(1, 200)}{i}.jpg", b"x" * i, mtime=i + 0.5)
    view = mapped(buffer.getvalue())
    members = list(walk(view))
    assert all(list(walk(view, m[4])) == members[i:] for i, m in enumerate(members))


def test_small_extension_records_are_read_in_linear_time() -> None:
    """A mebibyte of tiny pax records takes no longer than its size warrants."""
    records = b"5 a=\n" * 200_000 + b"9 path=b\n"
    content = member(b"", records, b"x") + member(b"a.jpg", b"x") + END_OF_ARCHIVE
    started = time.monotonic()
    assert found(content) == [(b"b", b"x")]
    assert time.monotonic() - started < 5
