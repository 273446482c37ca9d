"""TarSource gives the samples of webdataset shards, and can stop and go on at each batch."""

import hashlib
import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adasel_connectors.tar import TarSource
from adasel_stream.errors import ShardError
from tests.connectors.shard_files import (
    add_member,
    make_samples,
    member,
    rows,
    write_tar,
    write_three_tars,
)

EXTENSIONS = ("jpg", "cls")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of 10, 0 and 13 samples."""
    return write_three_tars(tmp_path)


def npy(array: Any) -> bytes:
    """Store an array as NumPy does."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_batches_have_an_exact_size_across_shards(folder: Path) -> None:
    """All batches are full but the last, wherever shards end."""
    source = TarSource(folder, extensions=EXTENSIONS, batch_size=4)
    assert [len(batch["id"]) for batch in source] == [4, 4, 4, 4, 4, 3]
    assert rows(source, "__key__") == [f"{i:06d}" for i in range(23)]
    assert source.counts["samples"] == 46
    assert source.counts["unverified_shards"] == 6


def test_content_equals_webdataset_batch_for_batch(folder: Path) -> None:
    """A healthy shard written by webdataset comes back as webdataset reads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # webdataset's own imports warn
        import webdataset as wds  # type: ignore[import-untyped]  # webdataset ships no types

        path = folder / "wds.tar"
        with wds.TarWriter(str(path)) as writer:
            for key, parts in make_samples(23, seed=1):
                writer.write(
                    {"__key__": f"sub.dir/{key}", "JPG": parts["jpg"], "cls": 3, "x.y": b""}
                )
        pipeline = wds.WebDataset(str(path), shardshuffle=False).to_tuple("__key__", "jpg", "cls")
        theirs = [tuple(map(list, batch)) for batch in pipeline.batched(8)]
    source = TarSource(path, extensions=("jpg", "cls"), batch_size=8, decoders={"cls": None})
    ours = [(batch["__key__"], batch["jpg"], batch["cls"]) for batch in source]
    assert ours == theirs
    assert source.counts["ignored_members"] == 23


def test_ids_are_the_shard_and_the_row(folder: Path) -> None:
    """An id is the shard's 31-bit number and the sample's row, the same wherever it lies."""
    ids = rows(TarSource(folder, extensions=EXTENSIONS, batch_size=4))
    assert [i & 0xFFFFFFFF for i in ids] == [*range(10), *range(13)]
    assert len({i >> 32 for i in ids}) == 2
    assert max(ids) < 2**63
    assert min(ids) >= 0
    moved = folder.rename(folder.with_name("moved"))
    assert rows(TarSource(moved, extensions=EXTENSIONS, batch_size=5)) == ids


def test_known_extensions_are_decoded_into_columns(tmp_path: Path) -> None:
    """Classes become int64, arrays one tensor, text a list, JSON an object array."""
    samples = [
        (
            f"{i}",
            {
                "cls": b" %d\n" % i,
                "npy": npy(np.full((2, 3), i, np.float32)),
                "left.npy": npy(np.zeros(i)),
                "txt": "é".encode(),
                "json": json.dumps({"i": i}).encode(),
                "bin": b"\0",
            },
        )
        for i in range(3)
    ]
    names = ("cls", "npy", "left.npy", "txt", "json", "bin")
    (batch,) = TarSource(write_tar(tmp_path / "a.tar", samples), extensions=names)
    assert batch["cls"].dtype == torch.int64
    assert torch.equal(batch["npy"], torch.arange(3.0).view(3, 1, 1).expand(3, 2, 3))
    assert [array.shape for array in batch["left.npy"]] == [(0,), (1,), (2,)]
    assert batch["txt"] == ["é"] * 3
    assert batch["json"].tolist() == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert batch["bin"] == [b"\0"] * 3


def test_own_decoders_replace_the_default_ones(tmp_path: Path) -> None:
    """A user's function of bytes makes the column; alike tensors are stacked."""
    path = write_tar(tmp_path / "a.tar", make_samples(5))
    decoders = {"jpg": lambda part: torch.tensor(list(part[:4])), "cls": None}
    (batch,) = TarSource(path, extensions=EXTENSIONS, decoders=decoders)
    assert batch["jpg"].shape == (5, 4)
    assert batch["cls"] == [b"0", b"1", b"2", b"3", b"4"]


def test_ranks_share_the_shards(tmp_path: Path) -> None:
    """Each sample is read by exactly one rank."""
    for i in range(5):
        write_tar(tmp_path / f"{i}.tar", make_samples(7, first=7 * i))
    parts = [
        rows(TarSource(tmp_path, extensions=EXTENSIONS, rank=rank, world_size=3), "__key__")
        for rank in range(3)
    ]
    assert sorted(key for part in parts for key in part) == [f"{i:06d}" for i in range(35)]
    assert [len(part) for part in parts] == [14, 14, 7]


@pytest.mark.parametrize(
    ("fifth", "kind"),
    [
        ({"5.jpg": b"x" * 2000, "5.cls": b"5"}, "too_large"),
        ({"5.jpg": b"x" * 1600, "5.cls": b"5" * 600}, "too_large"),
        ({"5.jpg": b"x"}, "incomplete"),
        ({"5.jpg": b"x", "5.cls": b"five"}, "decode"),
        ({"5.jpg": b"x", "5.JPG": b"y", "5.cls": b"5"}, "duplicate_part"),
        ({"../5.jpg": b"x", "../5.cls": b"5"}, "unsafe_key"),
        ({"/abs/5.jpg": b"x", "/abs/5.cls": b"5"}, "unsafe_key"),
        ({"5\n\x1b[31m.jpg": b"x", "5\n\x1b[31m.cls": b"5"}, "unsafe_key"),
        ({"\udcff.jpg": b"x", "\udcff.cls": b"5"}, "unsafe_key"),
    ],
)
def test_an_unusable_sample_is_raised_skipped_or_ends_its_shard(
    tmp_path: Path, fifth: dict[str, bytes], kind: str
) -> None:
    """Each policy does what it says about one sample, counts it and keeps its neighbours."""
    files = {f"{i}.{extension}": b"%d" % i for i in range(10) for extension in EXTENSIONS}
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as shard:
        for name in files:
            if name.startswith("5"):
                continue
            if name == "6.jpg":
                for unusable, content in fifth.items():
                    add_member(shard, unusable, content)
            add_member(shard, name, files[name])
    write_tar(tmp_path / "b.tar", make_samples(3, first=20))
    before, after = [f"{i}" for i in range(5)], [f"{i}" for i in range(6, 10)]
    others = [f"{i:06d}" for i in range(20, 23)]
    limits = {"max_member_bytes": 1600, "max_sample_bytes": 2000}
    options: dict[str, Any] = {"extensions": EXTENSIONS, "batch_size": 4, **limits}

    stopping = TarSource(tmp_path, **options)
    with pytest.raises(ShardError, match=r"^shard 'a.tar': sample 5 \('[ -~]+'\): [ -~]+$"):
        list(stopping)
    assert stopping.counts[kind] == 1

    skipping = TarSource(tmp_path, **options, on_error="skip_sample")
    assert rows(skipping, "__key__") == before + after + others
    assert (skipping.counts[kind], skipping.counts["skipped_samples"]) == (1, 1)
    assert [i & 0xFFFFFFFF for i in rows(skipping)][:9] == [0, 1, 2, 3, 4, 6, 7, 8, 9]

    leaving = TarSource(tmp_path, **options, on_error="skip_shard")
    assert rows(leaving, "__key__") == before + others
    assert (leaving.counts[kind], leaving.counts["skipped_shards"]) == (1, 1)


@pytest.mark.parametrize(
    ("parts", "told"),
    [(("png",), "no 'cls' part and no 'jpg' part,"), (("png", "jpg"), "no 'cls' part,")],
)
def test_parts_that_a_sample_lacks_are_named(
    tmp_path: Path, parts: tuple[str, ...], told: str
) -> None:
    """They are those that the source was asked for, whatever else a sample has."""
    write_tar(tmp_path / "a.tar", [("5", dict.fromkeys(parts, b"x"))])
    source = TarSource(tmp_path, extensions=("cls", "jpg"))
    with pytest.raises(ShardError, match=rf"sample 0 \('5'\): it has {told} which extensions asks"):
        list(source)


def test_members_that_are_no_samples_are_passed_over_and_counted(tmp_path: Path) -> None:
    """Folders, hidden files, metadata and files without extension take part in no sample."""
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        add_member(shard, "d", b"", type=tarfile.DIRTYPE)
        for name in ("__meta__.json", "README", "d/0.jpg", "d/._0.jpg"):
            add_member(shard, name, b"0")
        for name in ("d/0.other", "d/0.cls", "d/0"):
            add_member(shard, name, b"0")
    source = TarSource(tmp_path, extensions=EXTENSIONS, on_error="skip_sample")
    assert rows(source, "__key__") == ["d/0"]
    assert source.counts["ignored_members"] == 5
    assert source.counts["incomplete"] == 0


def test_damage_with_sound_rows_before_it_gives_them_out_first(tmp_path: Path) -> None:
    """Rows read before a cut are kept; the sample that the cut may have hit is not."""
    path = write_tar(tmp_path / "a.tar", make_samples(10))
    with tarfile.open(path) as archive:
        end = archive.getmembers()[13].offset
    path.write_bytes(path.read_bytes()[:end])
    write_tar(tmp_path / "b.tar", make_samples(3, first=20))
    source = TarSource(tmp_path, extensions=EXTENSIONS, batch_size=4, on_error="skip_sample")
    expected = [f"{i:06d}" for i in (*range(6), 20, 21, 22)]
    assert rows(source, "__key__") == expected
    assert (source.counts["cut"], source.counts["skipped_shards"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"extensions": "jpg"}, TypeError, "one string"),
        ({"extensions": ()}, ValueError, "empty"),
        ({"extensions": ("jpg", "JPG")}, ValueError, "different"),
        ({"extensions": ("id",)}, ValueError, "'id'"),
        ({"decoders": {"png": None}}, ValueError, "png"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank"),
        ({"on_error": "ignore"}, ValueError, "on_error"),
        ({"max_member_bytes": 0}, ValueError, "max_member_bytes"),
        ({"manifest": "nowhere.json"}, ValueError, "nowhere"),
    ],
)
def test_wrong_arguments_fail_at_construction(
    folder: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A wrong argument is named at once, not when the data is read."""
    with pytest.raises(error, match=message):
        TarSource(folder, **{"extensions": EXTENSIONS, **arguments})


def test_with_a_manifest_an_archive_needs_no_end_marker(tmp_path: Path) -> None:
    """A manifest vouches for a shard whose writer left the end marker out."""
    content = member(b"0.jpg", b"x") + member(b"0.cls", b"1")
    (tmp_path / "a.tar").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    entry = {"name": "a.tar", "bytes": len(content), "sha256": digest, "samples": 1}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"shards": [entry]}))
    source = TarSource(tmp_path, extensions=EXTENSIONS, manifest=manifest)
    assert rows(source, "__key__") == ["0"]
    with pytest.raises(ShardError, match="without an end marker"):
        list(TarSource(tmp_path, extensions=EXTENSIONS))
