"""Shards are found where the user says, and named independently of where they lie."""

import os
from pathlib import Path

import pytest

from adasel_connectors.shards import find_shards, number_shards

SUFFIXES = (".tar", ".tar.gz")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards, a compressed one, hidden files and others."""
    for name in ("b.tar", "a.TAR", "sub/c.tar", "z.tar.gz", ".x.tar", "_tmp/y.tar", "n.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_a_folder_is_searched_and_sorted(folder: Path) -> None:
    """Shards of subfolders count; hidden files and what is written to `_` names do not."""
    root, found = find_shards(folder, SUFFIXES)
    assert list(found) == ["a.TAR", "b.tar", "sub/c.tar", "z.tar.gz"]
    assert root == folder


def test_globs_files_and_sequences_are_taken(folder: Path) -> None:
    """Names are relative to the part without wildcards, or to the files' common folder."""
    assert list(find_shards(f"{folder}/*.tar", SUFFIXES)[1]) == ["b.tar"]
    assert list(find_shards(f"{folder}/**/*.tar", SUFFIXES)[1]) == ["b.tar", "sub/c.tar"]
    assert list(find_shards(folder / "b.tar", SUFFIXES)[1]) == ["b.tar"]
    files: list[str | Path] = [folder / "sub" / "c.tar", str(folder / "b.tar")]
    assert list(find_shards(files, SUFFIXES)[1]) == ["sub/c.tar", "b.tar"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("pipe:cat /etc/passwd", "'pipe:'"),
        ("https://user:secret@host/a.tar", "'https:'"),
        (["s3://bucket/a.tar"], "'s3:'"),
        ("nowhere", "nothing at 'nowhere'"),
        ("shards-{000..009}.tar", "braces are not expanded"),
        ("sub", "found none"),
        ([], "empty"),
        (["n.txt", "missing.tar"], "none at"),
        (["n.txt", "n.txt"], "twice"),
    ],
)
def test_what_holds_no_shards_is_a_wrong_argument(
    folder: Path, monkeypatch: pytest.MonkeyPatch, paths: str | list[str], message: str
) -> None:
    """Addresses, commands and empty places are refused; secrets in them are not repeated."""
    monkeypatch.chdir(folder)
    (folder / "sub" / "c.tar").unlink()
    with pytest.raises(ValueError, match=message) as caught:
        find_shards(paths, SUFFIXES)
    assert "secret" not in str(caught.value)


def test_numbers_are_of_31_bits_and_differ() -> None:
    """Two names with one digest get two numbers, the earlier name keeping its own."""
    names = {f"{i}.tar": os.devnull for i in range(150_000)}
    shards = number_shards(names)
    assert len({shard.number for shard in shards}) == len(names)
    assert all(0 <= shard.number < 2**31 for shard in shards)
    alone = [number_shards({shard.name: ""})[0].number for shard in shards[:500]]
    assert alone == [shard.number for shard in shards[:500]]
