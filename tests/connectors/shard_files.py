"""Real shards for the connectors' tests: healthy, damaged and hostile ones."""

import io
import random
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from torch import Tensor

Sample = tuple[str, dict[str, bytes]]
"""Key, and content by extension."""


def make_samples(count: int, *, first: int = 0, seed: int = 0) -> list[Sample]:
    """Make samples with an image-like part of 300 to 1,500 bytes and a class."""
    rng = random.Random(seed)
    return [
        (f"{i:06d}", {"jpg": rng.randbytes(rng.randint(300, 1500)), "cls": b"%d" % (i % 10)})
        for i in range(first, first + count)
    ]


def write_tar(path: Path, samples: Iterable[Sample], *, format: int = tarfile.PAX_FORMAT) -> Path:
    """Write a shard as tarfile does it."""
    with tarfile.open(path, "w", format=format) as shard:
        for key, parts in samples:
            for extension, content in parts.items():
                add_member(shard, f"{key}.{extension}", content)
    return path


def write_three_tars(folder: Path) -> Path:
    """Write shards of 10, 0 and 13 samples, numbered through."""
    for name, count, first in (("a", 10, 0), ("b", 0, 10), ("c", 13, 10)):
        write_tar(folder / f"{name}.tar", make_samples(count, first=first))
    return folder


def add_member(shard: tarfile.TarFile, name: str, content: bytes, **fields: Any) -> None:
    """Add one file; `fields` are attributes of its TarInfo."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    shard.addfile(member, io.BytesIO(content))


def header(name: bytes, size: bytes = b"%011o\0" % 0, typeflag: bytes = b"0") -> bytes:
    """Make a ustar header with a right checksum around any fields, sound or not."""
    fields = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"0" * 11 + b"\0"
    rest = typeflag + bytes(100) + b"ustar\x0000" + bytes(247)
    total = sum(fields) + sum(rest) + 8 * 0x20
    return fields + b"%06o\0 " % total + rest


def member(name: bytes, content: bytes, typeflag: bytes = b"0") -> bytes:
    """Make a member: header, content, padding."""
    padding = bytes(-len(content) % 512)
    return header(name, b"%011o\0" % len(content), typeflag) + content + padding


END_OF_ARCHIVE = bytes(1024)


def write_parquet(path: Path, columns: Mapping[str, Any], **options: Any) -> Path:
    """Write a shard as pyarrow does it."""
    pq.write_table(pa.table(dict(columns)), path, **options)
    return path


def plain(batches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turn batches into lists, to be compared by `==`."""
    return [
        {
            name: column.tolist() if isinstance(column, Tensor) else list(column)
            for name, column in batch.items()
        }
        for batch in batches
    ]


def rows(batches: Iterable[Mapping[str, Any]], name: str = "id") -> list[Any]:
    """Concatenate one column of all batches."""
    return [value for batch in plain(batches) for value in batch[name]]
