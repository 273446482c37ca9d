"""Deferred parts of tar samples are passed over, and read of chosen rows only."""

import io
import tarfile
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adasel_connectors.damage import OnError
from adasel_connectors.shards import ShardFile
from adasel_connectors.tar import TarSource
from adasel_connectors.tar_samples import Limits, Samples
from adasel_stream.errors import ShardError
from adasel_stream.types import Fetching
from tests.connectors.shard_files import (
    END_OF_ARCHIVE,
    add_member,
    header,
    make_samples,
    member,
    plain,
    rows,
    write_tar,
    write_three_tars,
)

EXTENSIONS = ("jpg", "cls")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of 10, 0 and 13 samples."""
    return write_three_tars(tmp_path)


def later(paths: Path, **options: Any) -> TarSource:
    """Make a source that defers its images."""
    return TarSource(paths, **{"extensions": EXTENSIONS, "deferred": ("jpg",), **options})


def references(source: TarSource, name: str = "jpg") -> torch.Tensor:
    """Read all references of a column."""
    return torch.cat([batch[name] for batch in source])


def test_fetched_content_is_what_would_have_been_read(folder: Path) -> None:
    """For any choice of rows, in any order, fetch gives the bytes that a plain source gives."""
    whole = plain(TarSource(folder, extensions=EXTENSIONS, batch_size=4))
    source = later(folder, batch_size=4)
    assert isinstance(source, Fetching)
    for batch, expected in zip(source, whole, strict=True):
        assert batch["jpg"].dtype == torch.int64
        assert batch["__key__"] == expected["__key__"]
        assert batch["cls"].tolist() == expected["cls"]
        chosen = torch.randperm(len(batch["id"]), generator=torch.Generator().manual_seed(0))[:2]
        fetched = source.fetch({"jpg": batch["jpg"][chosen]})
        assert fetched == {"jpg": [expected["jpg"][i] for i in chosen.tolist()]}
    assert source.counts["fetched"] == 12
    assert source.counts["unfetched"] == 0


def test_decoders_of_deferred_parts_run_in_fetch(tmp_path: Path) -> None:
    """The user's decoder sees chosen rows only; defaults make what a batch would have a row of."""
    file = io.BytesIO()
    np.save(file, np.arange(6, dtype=np.uint16).reshape(2, 3))
    parts = {"npy": file.getvalue(), "json": b'{"a": 1}', "txt": "é".encode(), "cls": b"3"}
    samples = [(f"{i}", {"jpg": b"%d" % i, **parts}) for i in range(5)]
    seen: list[bytes] = []

    def decode(part: bytes) -> int:
        seen.append(part)
        return int(part) * 10

    names = ("jpg", "npy", "json", "txt", "cls")
    source = TarSource(
        write_tar(tmp_path / "a.tar", samples),
        extensions=names,
        deferred=names,
        decoders={"jpg": decode},
    )
    (batch,) = source
    assert not seen
    fetched = source.fetch({name: batch[name][[3, 1]] for name in names})
    assert seen == [b"3", b"1"]
    assert fetched["jpg"] == [30, 10]
    assert fetched["npy"][0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert fetched["npy"][0].dtype == torch.int32
    assert (fetched["json"][0], fetched["txt"][0], fetched["cls"][0]) == ({"a": 1}, "é", 3)


class Watched:
    """A mapping that remembers which bytes were read of it."""

    def __init__(self, view: mmap) -> None:
        """Watch a mapping."""
        self.view = view
        self.read: list[tuple[int, int]] = []

    def __len__(self) -> int:
        """Give the file's size."""
        return len(self.view)

    def __getitem__(self, part: slice) -> bytes:
        """Read, and remember it."""
        start, stop, _ = part.indices(len(self.view))
        self.read.append((start, stop))
        return self.view[part]


def test_deferred_content_is_never_touched(tmp_path: Path) -> None:
    """While candidates are read, no byte of a deferred part is looked at."""
    path = write_tar(tmp_path / "a.tar", make_samples(20))
    with tarfile.open(path) as archive:
        contents = [(m.offset_data, m.offset_data + m.size) for m in archive if "jpg" in m.name]
    file = ShardFile(str(path))
    watched: Any = Watched(file.view)
    columns = {b"jpg": 0, b"cls": 1}
    found = list(Samples(watched, columns, Limits(1 << 20, 1 << 20), deferred=frozenset({0})))
    file.close()
    places = [part for _, (part, _), *_ in found]
    assert places == [(start, stop - start) for start, stop in contents]
    for start, stop in contents:
        assert all(last <= start or first >= stop for first, last in watched.read)


def test_a_rejected_part_larger_than_memory_costs_nothing(tmp_path: Path) -> None:
    """A part of 64 GiB, a hole on the disk, is passed over; fetching it is refused by its size."""
    size = 1 << 36
    with open(tmp_path / "a.tar", "wb") as shard:
        shard.write(header(b"0.jpg", b"\x80" + size.to_bytes(11, "big")))
        shard.truncate(512 + size)
        shard.seek(0, 2)
        shard.write(member(b"0.cls", b"7") + END_OF_ARCHIVE)
    source = later(tmp_path, max_member_bytes=1 << 40, max_sample_bytes=1 << 40)
    (batch,) = source
    assert batch["cls"].tolist() == [7]
    careful = later(tmp_path)
    (error,) = careful.fetch({"jpg": batch["jpg"]})["jpg"]
    assert isinstance(error, ShardError)
    assert careful.counts["unfetched_too_large"] == 1


@pytest.mark.parametrize("policy", ["skip_sample", "skip_shard"])
def test_damage_is_found_from_headers_as_without_deferring(tmp_path: Path, policy: OnError) -> None:
    """Limits, missing and doubled parts, links, sparse files and cuts are counted all the same."""
    sound = make_samples(30)
    damaged = [
        ("0", {"jpg": b"x" * 2000, "cls": b"0"}),
        ("1", {"jpg": b"x" * 1600, "cls": b"1" * 600}),
        ("2", {"cls": b"2"}),
        ("3", {"jpg": b"x"}),
        ("4", {"jpg": b"x", "JPG": b"y", "cls": b"4"}),
        ("../5", {"jpg": b"x", "cls": b"5"}),
        ("6", {"jpg": b"x", "cls": b"six"}),
    ]
    for i, one in enumerate(damaged):
        write_tar(tmp_path / f"{i}.tar", [*sound[3 * i : 3 * i + 2], one, sound[3 * i + 2]])
    with tarfile.open(tmp_path / "7.tar", "w") as shard:
        add_member(shard, "7.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add_member(shard, "7.cls", b"7")
    cut = write_tar(tmp_path / "8.tar", sound[24:])
    cut.write_bytes(cut.read_bytes()[:5000])
    limits: dict[str, Any] = {"max_member_bytes": 1600, "max_sample_bytes": 2000}
    plain_one = TarSource(tmp_path, extensions=EXTENSIONS, on_error=policy, **limits)
    later_one = later(tmp_path, on_error=policy, **limits)
    expected = rows(plain_one, "jpg")
    fetched = later_one.fetch({"jpg": references(later_one)})["jpg"]
    assert fetched == expected
    counts = later_one.counts
    assert {name: counts[name] for name in plain_one.counts} == plain_one.counts
    assert min(counts[kind] for kind in ("too_large", "incomplete", "duplicate_part", "cut")) > 0
    assert min(counts[kind] for kind in ("unsafe_key", "decode", "not_regular")) > 0


def test_a_part_that_cannot_be_decoded_is_counted_and_given_as_an_error(tmp_path: Path) -> None:
    """Its neighbours are decoded; the error says which sample it was and what the decoder said."""
    path = write_tar(tmp_path / "a.tar", [(f"{i}", {"jpg": b"%d" % i}) for i in (1, 0, 2)])
    source = TarSource(
        path,
        extensions=("jpg",),
        deferred=("jpg",),
        decoders={"jpg": lambda part: 10 // int(part)},
    )
    first, second, third = source.fetch({"jpg": references(source)})["jpg"]
    assert (first, third) == (10, 5)
    assert isinstance(second, ShardError)
    assert (
        str(second) == "shard 'a.tar': sample 1: its jpg part cannot be decoded: ZeroDivisionError"
    )
    damage = second.__cause__
    assert damage is not None
    assert isinstance(damage.__cause__, ZeroDivisionError)
    assert source.counts["unfetched_decode"] == 1


def test_headers_of_all_writers_are_recognised(tmp_path: Path) -> None:
    """Content behind ustar, GNU and pax headers, long names included, is found again."""
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        samples = [(f"{'d' * 80}/{'é' * 40}{i}", {"jpg": b"%d" % i}) for i in range(3)]
        path = write_tar(tmp_path / f"{format}.tar", samples, format=format)
        source = TarSource(path, extensions=("jpg",), deferred=("jpg",))
        assert source.fetch({"jpg": references(source)})["jpg"] == [b"0", b"1", b"2"]


def test_deferred_extensions_must_be_among_those_read(folder: Path) -> None:
    """A wrong argument is named at once."""
    with pytest.raises(ValueError, match="deferred must be among"):
        later(folder, deferred=("png",))
    with pytest.raises(TypeError, match="deferred must be a sequence of names, got one string"):
        later(folder, deferred="jpg")
    with pytest.raises(ValueError, match="deferred must be different"):
        later(folder, deferred=("jpg", "JPG"))
