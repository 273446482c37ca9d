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
from adasel_stream.errors import ShardError, SourceError
from tests.connectors.shard_files import (
    add_member,
    make_samples,
    member,
    plain,
    rows,
    write_tar,
)

EXTENSIONS = ("jpg", "cls")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of 10, 0 and 13 samples."""
    write_tar(tmp_path / "a.tar", make_samples(10))
    write_tar(tmp_path / "b.tar", [])
    write_tar(tmp_path / "c.tar", make_samples(13, first=10))
    return tmp_path


def _go_on(source: TarSource, state: dict[str, Any]) -> None:
    source.load_state_dict(state)
    next(iter(source))


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


def test_every_batch_boundary_can_be_resumed(folder: Path) -> None:
    """A state taken after any batch, also by way of JSON, continues with the next batch."""
    whole = plain(TarSource(folder, extensions=EXTENSIONS, batch_size=4))
    for stop in range(len(whole) + 1):
        first = TarSource(folder, extensions=EXTENSIONS, batch_size=4)
        iterator = iter(first)
        head = plain(next(iterator) for _ in range(stop))
        state = json.loads(json.dumps(first.state_dict()))
        second = TarSource(folder, extensions=EXTENSIONS, batch_size=4)
        second.load_state_dict(state)
        assert head + plain(second) == whole
        assert second.counts["samples"] == 23


def test_a_resume_of_a_resume_repeats_and_loses_nothing(folder: Path) -> None:
    """Stopping after each single batch gives the undisturbed sequence and counts."""
    undisturbed = TarSource(folder, extensions=EXTENSIONS, batch_size=3)
    whole = plain(undisturbed)
    batches: list[dict[str, Any]] = []
    source = TarSource(folder, extensions=EXTENSIONS, batch_size=3)
    for _ in range(len(whole)):
        batches += plain([next(iter(source))])
        state = source.state_dict()
        source = TarSource(folder, extensions=EXTENSIONS, batch_size=3)
        source.load_state_dict(state)
    assert batches == whole
    assert list(source) == []
    assert source.counts == undisturbed.counts


def test_after_a_pass_the_state_begins_the_next(folder: Path) -> None:
    """At the last batch nothing is left of the pass; after its end a whole pass is."""
    source = TarSource(folder, extensions=EXTENSIONS, batch_size=23)
    iterator = iter(source)
    next(iterator)
    at_last_batch = source.state_dict()
    assert next(iterator, None) is None
    after_pass = source.state_dict()
    for state, expected in ((at_last_batch, 0), (after_pass, 1)):
        other = TarSource(folder, extensions=EXTENSIONS, batch_size=23)
        other.load_state_dict(state)
        assert len(list(other)) == expected
        assert len(list(other)) == 1


def test_shards_that_arrive_later_join_the_next_pass(folder: Path) -> None:
    """A resumed pass keeps to the shards that it began with; finished ones may be gone."""
    source = TarSource(folder, extensions=EXTENSIONS, batch_size=10)
    iterator = iter(source)
    head = rows([next(iterator), next(iterator)], "__key__")
    (folder / "a.tar").unlink()
    write_tar(folder / "bb.tar", make_samples(2, first=50))
    resumed = TarSource(folder, extensions=EXTENSIONS, batch_size=10)
    resumed.load_state_dict(source.state_dict())
    assert head + rows(resumed, "__key__") == [f"{i:06d}" for i in range(23)]
    assert rows(resumed, "__key__")[:2] == ["000050", "000051"]


def test_a_shard_that_changed_or_is_gone_is_refused_by_name(folder: Path) -> None:
    """A snapshot does not go on in other content than it was taken in."""
    source = TarSource(folder, extensions=EXTENSIONS, batch_size=4, on_error="skip_shard")
    next(iter(source))
    state = source.state_dict()
    sound = (folder / "a.tar").read_bytes()
    write_tar(folder / "a.tar", make_samples(10, seed=9))
    changed = TarSource(folder, extensions=EXTENSIONS, batch_size=4, on_error="skip_shard")
    with pytest.raises(ShardError, match=r"'a\.tar' has changed"):
        _go_on(changed, state)
    (folder / "a.tar").write_bytes(sound)
    (folder / "c.tar").unlink()
    with pytest.raises(ShardError, match=r"'c\.tar' is missing"):
        TarSource(folder, extensions=EXTENSIONS).load_state_dict(state)


def test_a_state_of_something_else_is_refused(folder: Path) -> None:
    """States of other sources, formats, shares or with damaged fields raise, naming why."""
    source = TarSource(folder, extensions=EXTENSIONS)
    next(iter(source))
    state = source.state_dict()
    for change, message in (
        ({"source": "parquet"}, "state of a tar source"),
        ({"format": 2}, "format 2"),
        ({"row": -1}, "damaged"),
        ({"shards": ["../../etc/passwd"], "sizes": [1]}, "damaged"),
    ):
        with pytest.raises(SourceError, match=message):
            TarSource(folder, extensions=EXTENSIONS).load_state_dict({**state, **change})
    other = TarSource(folder, extensions=EXTENSIONS, rank=1, world_size=2)
    other.load_state_dict(state)
    with pytest.raises(SourceError, match="reader 0 of 1, this is reader 1 of 2"):
        iter(other)


def test_an_older_iterator_raises_when_a_newer_begins(folder: Path) -> None:
    """Two live passes over one source would mix up its position, so the older one stops."""
    source = TarSource(folder, extensions=EXTENSIONS, batch_size=4)
    older = iter(source)
    next(older)
    next(iter(source))
    with pytest.raises(SourceError, match="another iteration"):
        next(older)


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
