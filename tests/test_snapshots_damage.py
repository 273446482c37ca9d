"""Snapshots that are damaged, newer or hostile are refused, and nothing of them is taken."""

import dataclasses
import hashlib
import io
import json
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped] # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from adasel_stream.errors import DamagedSnapshotError, RecordError
from adasel_stream.record import LossRecord
from adasel_stream.record.entries import Entries
from adasel_stream.record.snapshots import manifest as manifests
from adasel_stream.record.snapshots.columns import (
    RowsFile,
    encode_groups,
)
from adasel_stream.record.snapshots.files import checked_rows
from adasel_stream.record.snapshots.manifest import FORMAT_VERSION, FileEntry
from benchmarks.record_faults import (
    count_accepted,
    random_damage,
    sound_file,
    sound_manifest,
)
from tests.kept_records import (
    content,
    damage,
    files_of,
    kept,
    learn,
    rank_folder,
)
from tests.record_model import Clock

ROWS = 60


@pytest.fixture(scope="module")
def file() -> bytes:
    """The bytes of a sound file of rows."""
    return sound_file(ROWS)[0]


@pytest.fixture(scope="module")
def entry() -> FileEntry:
    """What a manifest says of it."""
    return sound_file(ROWS)[1]


@pytest.fixture(scope="module")
def manifest(entry: FileEntry) -> bytes:
    """The bytes of a sound manifest."""
    return sound_manifest(entry)


def check_file(damaged: bytes, entry: FileEntry) -> None:
    """Expect that a file is refused before Arrow sees it."""
    with pytest.raises(DamagedSnapshotError):
        checked_rows(io.BytesIO(damaged), entry, "f")


def check_manifest(damaged: bytes) -> None:
    """Expect that a manifest is refused as damaged, not as newer."""
    with pytest.raises(DamagedSnapshotError):
        manifests.decode(damaged, "m")


def test_every_flipped_byte_of_a_manifest_is_refused(manifest: bytes) -> None:
    """One flipped bit, and all eight, in any byte of a manifest make it unusable."""
    for at in range(len(manifest)):
        for bits in (1 << at % 8, 0xFF):
            check_manifest(manifest[:at] + bytes([manifest[at] ^ bits]) + manifest[at + 1 :])
        check_manifest(manifest[:at])
    check_manifest(manifest + b"\n")


def test_every_flipped_byte_of_a_file_is_refused(file: bytes, entry: FileEntry) -> None:
    """One flipped bit in any byte, and a cut at any, is seen by the manifest's digest."""
    for at in range(len(file)):
        check_file(file[:at] + bytes([file[at] ^ 1 << at % 8]) + file[at + 1 :], entry)
        check_file(file[:at], entry)
    check_file(file + b"\0", entry)


def test_random_damage_is_refused() -> None:
    """Four thousand random flips, cuts, holes and repetitions: none is accepted."""
    assert count_accepted(4_000) == 0


@pytest.mark.verify
def test_a_million_damages_are_refused() -> None:
    """A million random flips, cuts, holes and repetitions: none is accepted, none crashes."""
    assert count_accepted(1_000_000) == 0


def check_forged_files(file: bytes, tries: int) -> None:
    """Let Arrow see damaged files, as if their digests were forged as well."""
    rng = random.Random(0)
    for _ in range(tries):
        try:
            rows = RowsFile(io.BytesIO(random_damage(file, rng)), ROWS, "f")
            groups = [*rows.groups(), *rows.groups(range(100, 200))]
        except DamagedSnapshotError:
            continue
        assert sum(len(group.keys) for group in groups) <= 2 * ROWS


def test_forged_files_do_not_crash(file: bytes) -> None:
    """Whatever bytes Arrow is given, it is damage or rows that a record could hold."""
    check_forged_files(file, 2_000)


@pytest.mark.verify
def test_many_forged_files_do_not_crash(file: bytes) -> None:
    """Three hundred thousand forged files: no crash, and memory stays as it was."""
    check_forged_files(file, 1_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_forged_files(file, 300_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 64 * 1024


def check_random_folders(path: Path, tries: int) -> None:
    """Damage one file of a folder, open the record, and compare with what was saved."""
    rng, clock = np.random.default_rng(0), Clock()
    contents = []
    with kept(path, 200, clock=clock) as record:
        learn(record, rng, np.arange(60))
        for _ in range(3):
            clock.now_s += 10
            record.save()
            contents.append(content(record))
            learn(record, rng, rng.integers(0, 60, 9))
    folder = rank_folder(path)
    sound = {file.name: file.read_bytes() for file in folder.iterdir()}
    dice = random.Random(tries)
    for _ in range(tries):
        name = dice.choice([name for name in sound if name != "owner.lock"])
        (folder / name).write_bytes(random_damage(sound[name], dice))
        if name.startswith("delta"):
            with kept(path, 200, clock=clock) as record:
                # files are named by their snapshots, counted from 1
                assert content(record) == contents[int(name[6:18]) - 2]
                assert record.snapshots.damaged_files == 1
        else:
            with pytest.raises(RecordError, match=f"{name}' is damaged"):
                LossRecord.open(path, 200)
        (folder / name).write_bytes(sound[name])
    with kept(path, 200, clock=clock) as record:
        assert content(record) == contents[-1]


def test_random_damage_in_a_folder_is_noticed(tmp_path: Path) -> None:
    """Whichever file of a record is damaged, a restart refuses it or keeps what precedes it."""
    check_random_folders(tmp_path, 60)


@pytest.mark.verify
def test_much_random_damage_in_a_folder_is_noticed(tmp_path: Path) -> None:
    """Ten thousand damaged folders: none is accepted silently."""
    check_random_folders(tmp_path, 10_000)


def forged(file: FileEntry, content: bytes, rows: int) -> FileEntry:
    """Describe other content under a file's name, with a digest that holds."""
    digest = hashlib.sha256(content).hexdigest()
    return dataclasses.replace(file, bytes=len(content), sha256=digest, rows=rows)


def table_bytes(columns: dict[str, Any], schema: Any = None, **options: Any) -> bytes:
    """Write any Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink, **options)
    return bytes(sink.getvalue())


def rows_of(file: bytes, count: int) -> Entries:
    """Read a sound file of one row group."""
    (rows,) = RowsFile(io.BytesIO(file), count, "f").groups()
    return rows


def hostile_files() -> dict[str, tuple[bytes, int]]:
    """Parquet files that no snapshot writes, and how many rows they say."""
    rows = rows_of(sound_file(4)[0], 4)
    backwards = Entries(rows.keys[::-1].copy(), rows.values)
    twice = Entries(rows.keys[[0, 0, 1, 2]], rows.values)
    not_finite = Entries(rows.keys, rows.values.copy())
    not_finite.values["last"][1] = np.nan
    never = Entries(rows.keys, rows.values.copy())
    never.values["tick"][3] = 0
    sound = b"".join(encode_groups([rows], seed=0))
    schema = pq.read_schema(io.BytesIO(sound))
    columns = {name: pq.read_table(io.BytesIO(sound))[name] for name in schema.names}
    extended = schema.set(0, pa.field("key", pa.uuid(), nullable=False))
    uuids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"k" * 16] * 4, pa.binary(16)))
    return {
        "backwards": (b"".join(encode_groups([backwards], seed=0)), 4),
        "twice": (b"".join(encode_groups([twice], seed=0)), 4),
        "not_finite": (b"".join(encode_groups([not_finite], seed=0)), 4),
        "tick_0": (b"".join(encode_groups([never], seed=0)), 4),
        "fewer_rows": (sound, 3),
        "more_rows": (sound, 2**62),
        "text": (table_bytes({"key": ["a"] * 4}), 4),
        "nulls": (
            table_bytes(columns, pa.schema([field.with_nullable(True) for field in schema])),
            4,
        ),
        "metadata": (table_bytes(columns, schema.with_metadata({"a": "b"})), 4),
        "extension": (table_bytes(columns | {"key": uuids}, extended), 4),
        "missing": (table_bytes({"key": columns["key"]}), 4),
        "no_parquet": (b"PAR1" + b"\xff" * 400 + b"PAR1", 4),
        "empty": (b"x", 4),
    }


@pytest.mark.parametrize("name", hostile_files())
def test_a_hostile_file_is_refused(name: str, entry: FileEntry) -> None:
    """A file that no snapshot writes is damage, however sound its digest is."""
    content, rows = hostile_files()[name]
    with pytest.raises(DamagedSnapshotError):
        list(checked_rows(io.BytesIO(content), forged(entry, content, rows), "f").groups())


def test_a_bomb_is_refused_before_memory_is_taken(entry: FileEntry) -> None:
    """A small file that claims four million rows in one group is refused by its claim."""
    count = 4_000_000
    schema = pq.read_schema(io.BytesIO(sound_file(1)[0]))
    columns = {field.name: np.ones(count, field.type.to_pandas_dtype()) for field in schema}
    content = table_bytes(columns, schema, store_schema=False, row_group_size=count)
    assert len(content) < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedSnapshotError, match="a row group has 4000000 rows"):
        checked_rows(io.BytesIO(content), forged(entry, content, count), "f")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 16 * 1024


def resealed(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change a manifest and make its checksum hold, as somebody with ill intent would."""
    document = json.loads(content)
    del document["sha256"]
    change(document)
    form = json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
    document["sha256"] = hashlib.sha256(form).hexdigest()
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


@pytest.mark.parametrize(
    "change",
    [
        *({"files": {}}, {"files": [1]}, {"position": []}, {"world_size": 0}, {"rank": True}),
        *({"tick": 0}, {"tick": "1"}, {"created_s": 1}, {"capacity": 2**70}, {"extra": 1}),
        *({"format_version": 0}, {"format_version": None}, {"created_s": float("inf")}),
    ],
    ids=str,
)
def test_a_hostile_manifest_is_refused(change: dict[str, Any], manifest: bytes) -> None:
    """A manifest that no snapshot writes is damage, however sound its checksum is."""
    check_manifest(resealed(manifest, lambda document: document.update(change)))


@pytest.mark.parametrize(
    "change",
    [
        *({"name": "../base-000000000001.parquet"}, {"name": "delta-000000000001.parquet"}),
        *({"kind": "all"}, {"rows": -1}, {"bytes": 0}, {"sha256": "0" * 63}, {"rows": 1.0}),
        *({"kind": "delta", "name": "delta-000000000001.parquet"}, {"since_tick": 0}),
    ],
    ids=str,
)
def test_a_hostile_entry_is_refused(change: dict[str, Any], manifest: bytes) -> None:
    """An entry that points elsewhere or makes no sense is damage."""
    check_manifest(resealed(manifest, lambda document: document["files"][0].update(change)))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 10**6, b"1" * 5000])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    """What is no JSON, or JSON of another form, or nested a million deep, is damage."""
    check_manifest(content)


def test_a_newer_format_is_refused_and_left_untouched(tmp_path: Path) -> None:
    """A record of a newer release is named with both versions, and not a byte of it changes."""
    with kept(tmp_path) as record:
        record.save()
    newer = FORMAT_VERSION + 1
    manifest = rank_folder(tmp_path) / "manifest.json"
    damage(
        manifest,
        lambda content: resealed(content, lambda m: m.update(format_version=newer, files="other")),
    )
    files = {file: file.read_bytes() for file in rank_folder(tmp_path).iterdir()}
    (rank_folder(tmp_path) / "delta-000000000009.parquet").write_bytes(b"of the newer release")
    with pytest.raises(
        RecordError, match=f"version {newer}, this release reads up to 1"
    ) as refusal:
        LossRecord.open(tmp_path, 100)
    assert not isinstance(refusal.value, DamagedSnapshotError)
    assert (rank_folder(tmp_path) / "delta-000000000009.parquet").exists()
    assert all(file.read_bytes() == was for file, was in files.items() if file.name != "owner.lock")


def test_a_manifest_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """A named pipe, a folder or a link in a file's place is refused and does not block."""
    with kept(tmp_path) as record:
        record.save()
    (base,) = files_of(tmp_path)
    elsewhere = base.rename(tmp_path / "elsewhere")
    base.symlink_to(elsewhere)
    with pytest.raises(RecordError, match="cannot read"):
        LossRecord.open(tmp_path, 100)
    base.unlink()
    base.mkdir()
    with pytest.raises(RecordError, match="cannot read"):
        LossRecord.open(tmp_path, 100)
