"""Shards made to harm a reader: nothing is executed, nothing grows, nothing hangs."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from adasel_connectors.damage import shown
from tests.connectors.shard_files import END_OF_ARCHIVE, header, member

LARGE = 1 << 29
ALLOWED_GROWTH = 64 << 20
READER = """
import json, resource, sys, time
from pathlib import Path
import torch, numpy, pyarrow.parquet, pyarrow.compute
from adasel_stream.errors import ShardError
from adasel_connectors.parquet import ParquetSource
from adasel_connectors.tar import TarSource

unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
extensions = ("npy", "json", "pyd", "pickle.gz", "pth", "jpg")
list(TarSource(sys.argv[1] + "/sound", extensions=("jpg",)))
list(ParquetSource(sys.argv[1] + "/sound"))
for path in sorted(Path(sys.argv[1]).glob("*.*")):
    before, started = peak(), time.monotonic()
    if path.suffix == ".parquet":
        source = ParquetSource(path, on_error="skip_sample", batch_size=16)
    else:
        own = path.name.partition(".")[0].split("-")[1]
        source = TarSource(path, extensions=(own.replace("_", "."),), on_error="skip_sample")
    samples = sum(len(batch["id"]) for batch, _ in zip(source, range(3)))
    found = {name: count for name, count in source.counts.items() if count}
    report = {"samples": samples, "growth": peak() - before, "counts": found}
    print(json.dumps({"name": path.name, "s": time.monotonic() - started, **report}))
"""


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        """Choose the file."""
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        """Have `os.mkdir` called."""
        return os.mkdir, (str(self.path),)


def write_hostile(folder: Path, trace: Path) -> dict[str, str]:
    """Write one shard for each attack; what each must be counted as, or "" when it is harmless."""
    code = pickle.dumps(Payload(trace))
    npy = io.BytesIO()
    np.save(npy, np.array([Payload(trace)], dtype=object), allow_pickle=True)
    claim = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 1048576), }\n"
    huge = b"\x93NUMPY\x01\x00" + len(claim).to_bytes(2, "little") + claim
    deep = b'{"a":' * 100_000
    sparse_map = b"1\n0\n%d\n" % LARGE
    tars = {
        "a-pyd": (member(b"0.pyd", code), ""),
        "b-pickle_gz": (member(b"0.pickle.gz", gzip.compress(code)), ""),
        "c-pth": (member(b"0.pth", code), ""),
        "d-npy": (member(b"0.npy", npy.getvalue()), "decode"),
        "e-npy": (member(b"0.npy", huge), "decode"),
        "f-json": (member(b"0.json", deep), "decode"),
        "g-jpg": (header(b"0.jpg", b"\xff" * 10 + b"\xfe\x00"), "bad_header"),
        "h-jpg": (header(b"0.jpg", b"\x80" + (1 << 60).to_bytes(11, "big")), "cut"),
        "i-jpg": (member(b"0.jpg", b"", b"2"), "not_regular"),
        "j-jpg": (member(b"../../0.jpg", b"x"), "unsafe_key"),
        "k-jpg": (member(b"/etc/0.jpg", b"x"), "unsafe_key"),
        "l-jpg": (member(b"0\n1.jpg", b"x"), "unsafe_key"),
        "m-jpg": (
            member(b"", b"22 GNU.sparse.major=1\n31 GNU.sparse.realsize=9999999\n", b"x")
            + member(b"0.jpg", sparse_map),
            "not_regular",
        ),
        "n-jpg": (member(b"0.jpg", b"x", b"S"), "not_regular"),
        "o-jpg": (member(b"0.jpg", b"x") + bytes(1 << 27), "data_after_end"),
    }
    for name, (content, _) in tars.items():
        (folder / f"{name}.tar").write_bytes(content + END_OF_ARCHIVE)
    write_tar_bombs(folder)
    write_parquet_bombs(folder)
    kinds = {f"{name}.tar": kind for name, (_, kind) in tars.items()}
    kinds |= {f"{name}-jpg.tar": "compressed" for name in "pqr"}
    return kinds | {"s-jpg.tar": "too_large", "t.parquet": "", "u.parquet": "", "v.parquet": ""}


def write_tar_bombs(folder: Path) -> None:
    """Write compressed archives of zeros, and a member of 0.5 GiB that is a hole on the disk."""
    zeros = bytes(LARGE // 8)
    (folder / "p-jpg.tar").write_bytes(gzip.compress(zeros))
    (folder / "q-jpg.tar").write_bytes(bz2.compress(zeros))
    (folder / "r-jpg.tar").write_bytes(lzma.compress(zeros))
    with open(folder / "s-jpg.tar", "wb") as shard:
        shard.write(header(b"0.jpg", b"%011o\0" % LARGE))
        shard.truncate(512 + LARGE)
        shard.seek(0, 2)
        shard.write(END_OF_ARCHIVE)


def write_parquet_bombs(folder: Path) -> None:
    """Write small files that name 0.5 GiB each: a constant, one long text, compressed zeros."""
    constant = pa.table({"x": np.zeros(LARGE // 8, np.int64)})
    pq.write_table(constant, folder / "t.parquet", row_group_size=LARGE)
    values = pa.array(["x" * (1 << 20)])
    text = pa.DictionaryArray.from_arrays(np.zeros(1 << 21, np.int32), values)
    pq.write_table(pa.table({"x": text}), folder / "u.parquet", store_schema=False)
    zeros = pa.table({"x": pa.array([bytes(1 << 14)] * (LARGE >> 16))})
    pq.write_table(zeros, folder / "v.parquet", compression="zstd", use_dictionary=False)


@pytest.mark.slow
def test_hostile_shards_neither_run_nor_grow_nor_hang(tmp_path: Path) -> None:
    """Each attack ends within 5 s and 64 MiB, is counted as what it is, and executes nothing."""
    folder, trace = tmp_path / "shards", tmp_path / "executed"
    (folder / "sound").mkdir(parents=True)
    sound = member(b"0.jpg", b"x") + END_OF_ARCHIVE
    (folder / "sound" / "a.tar").write_bytes(sound)
    pq.write_table(pa.table({"x": [1, 2], "s": ["a", "b"]}), folder / "sound" / "a.parquet")
    expected = write_hostile(folder, trace)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    reports = {(r := json.loads(line))["name"]: r for line in done.stdout.splitlines()}
    assert reports.keys() == expected.keys()
    for name, kind in expected.items():
        report = reports[name]
        assert report["growth"] <= ALLOWED_GROWTH, report
        assert report["s"] < 5, report
        if kind:
            assert (report["counts"].get(kind), report["samples"]) == (1, 0), report
        else:
            assert report["samples"] > 0, report
    assert not trace.exists()


def test_escape_sequences_do_not_reach_a_terminal() -> None:
    """A key that would rewrite a terminal is quoted wherever it is shown."""
    assert shown("a\x1b[2Jb\nc\u202e") == r"'a\x1b[2Jb\nc\u202e'"
    assert len(shown(b"x" * 100_000)) < 100
