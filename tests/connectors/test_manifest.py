"""A manifest describes shards completely, and whatever differs from it is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from adasel_connectors.damage import ON_ERROR, OnError
from adasel_connectors.manifest import read_manifest, verify_manifest, write_manifest
from adasel_connectors.tar import TarSource
from adasel_stream.errors import ShardError, SourceError
from tests.connectors.shard_files import make_samples, rows, write_parquet, write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tar shards, one of them in a subfolder, and a Parquet shard."""
    (tmp_path / "sub").mkdir()
    write_tar(tmp_path / "a.tar", make_samples(4))
    write_tar(tmp_path / "sub" / "b.tar", make_samples(3, first=4))
    write_parquet(tmp_path / "c.parquet", {"x": [1, 2]})
    return tmp_path


def test_a_manifest_counts_bytes_and_samples(folder: Path) -> None:
    """Each shard has a line with its size, digest and number of samples."""
    path = write_manifest(folder)
    entries = read_manifest(path)
    assert {name: entry.samples for name, entry in entries.items()} == {
        "a.tar": 4,
        "c.parquet": 2,
        "sub/b.tar": 3,
    }
    assert entries["a.tar"].bytes == (folder / "a.tar").stat().st_size
    assert verify_manifest(folder, path) == []
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_each_difference_is_named(folder: Path) -> None:
    """Missing, cut, altered and additional shards each have a line."""
    path = write_manifest(folder)
    content = (folder / "a.tar").read_bytes()
    (folder / "a.tar").write_bytes(content[:-512])
    altered = bytearray((folder / "sub" / "b.tar").read_bytes())
    altered[600] ^= 1
    (folder / "sub" / "b.tar").write_bytes(altered)
    (folder / "c.parquet").unlink()
    write_tar(folder / "new.tar", [])
    lines = verify_manifest(folder, path)
    assert len(lines) == 4
    for part in ("'new.tar': not in", "'a.tar': the manifest says", "'sub/b.tar': its content"):
        assert any(line.startswith(part) for line in lines)
    assert "'c.parquet': the file is missing" in lines


@pytest.mark.parametrize("policy", ON_ERROR)
def test_missing_and_unlisted_shards_are_found_by_policy(folder: Path, policy: OnError) -> None:
    """A shard that should be there, or should not, raises or is counted, never ignored."""
    path = write_manifest(folder)
    (folder / "a.tar").unlink()
    write_tar(folder / "z.tar", make_samples(2, first=50))
    source = TarSource(folder, extensions=("jpg",), manifest=path, on_error=policy)
    if policy == "raise":
        with pytest.raises(ShardError, match=r"'a\.tar': the file is missing"):
            list(source)
        return
    assert rows(source, "__key__") == ["000004", "000005", "000006"]
    counts = source.counts
    assert (counts["missing"], counts["unlisted"], counts["skipped_shards"]) == (1, 1, 2)
    assert counts["verified_shards"] == 1


def test_a_wrong_count_is_named(folder: Path) -> None:
    """A manifest whose digest fits but whose count does not is not believed."""
    path = write_manifest(folder)
    loaded = json.loads(path.read_text())
    loaded["shards"][0]["samples"] = 5
    path.write_text(json.dumps(loaded))
    source = TarSource(folder, extensions=("jpg",), manifest=path)
    with pytest.raises(ShardError, match="says 5 samples, it has 4"):
        list(source)


def test_damaged_shards_are_not_described(folder: Path) -> None:
    """A manifest is made of sound shards only."""
    (folder / "a.tar").write_bytes((folder / "a.tar").read_bytes()[:1000])
    with pytest.raises(SourceError, match=r"'a\.tar'"):
        write_manifest(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"shards": 1}',
        b"[" * 100_000,
        b'{"shards": [{"name": "../a", "bytes": 1, "sha256": "%s", "samples": 0}]}' % (b"0" * 64),
        b'{"shards": [{"name": "/a", "bytes": 1, "sha256": "%s", "samples": 0}]}' % (b"0" * 64),
        b'{"shards": [{"name": "a", "bytes": -1, "sha256": "%s", "samples": 0}]}' % (b"0" * 64),
        b'{"shards": [{"name": "a", "bytes": 1, "sha256": "x", "samples": 0}]}',
        b'{"shards": [{"name": "a", "bytes": 1, "sha256": "%s"}]}' % (b"0" * 64),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    """Anything but names below the folder, sizes, digests and counts is a wrong argument."""
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest '.*'"):
        read_manifest(path)


def test_a_shard_named_twice_is_refused(folder: Path) -> None:
    """Two lines for one shard could contradict each other."""
    path = write_manifest(folder)
    loaded: dict[str, Any] = json.loads(path.read_text())
    loaded["shards"] *= 2
    path.write_text(json.dumps(loaded))
    with pytest.raises(ValueError, match="twice"):
        read_manifest(path)
