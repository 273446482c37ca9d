"""Six kinds of damage to a tar shard, under each policy, with a manifest and without one.

Kinds: a flipped bit in a header, a flipped bit in content, a cut in content, a cut before a
sample, a cut between the parts of one, a page of zeros. With a manifest none may pass unnoticed.
Without one, headers and cuts may not; content may, because tar has no checksum over it.
"""

import random
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from adasel_connectors.damage import ON_ERROR, OnError
from adasel_connectors.manifest import write_manifest
from adasel_connectors.tar import TarSource
from adasel_stream.errors import ShardError
from tests.connectors.shard_files import make_samples, write_tar

KINDS = (
    *("flip in header", "flip in content", "cut in content"),
    *("cut before sample", "cut between parts", "zeroed page"),
)
PAGE = 4096
Samples: TypeAlias = dict[str, tuple[int, bytes, int]]
"""Id, image and class by key."""


@dataclass(frozen=True)
class Layout:
    """Where things lie in a sound shard: (header, start and end of content) of each member."""

    content: bytes
    members: list[tuple[int, int, int]]

    def damaged(self, kind: str, rng: random.Random) -> bytes:
        """Damage a copy somewhere at random."""
        i = rng.randrange(2, len(self.members))
        header, start, end = self.members[i]
        if kind == "flip in header":
            return self._flipped(rng.randrange(header, header + 512), rng)
        if kind == "flip in content":
            return self._flipped(rng.randrange(start, end), rng)
        if kind == "cut in content":
            return self.content[: rng.randrange(start, end)]
        if kind == "zeroed page":
            page = rng.randrange(len(self.content) // PAGE) * PAGE
            return self.content[:page] + bytes(PAGE) + self.content[page + PAGE :]
        i -= i % 2  # each sample has two members
        return self.content[: self.members[i + (kind == "cut between parts")][0]]

    def _flipped(self, position: int, rng: random.Random) -> bytes:
        content = bytearray(self.content)
        content[position] ^= 1 << rng.randrange(8)
        return bytes(content)


@dataclass(frozen=True)
class Folder:
    """Three shards, the second to be damaged."""

    path: Path
    manifest: Path
    layout: Layout
    sound: Samples

    def read(self, **options: Any) -> tuple[Samples, dict[str, int], str]:
        """Read all: samples by key, counts, and what was raised."""
        source = TarSource(self.path, extensions=("jpg", "cls"), batch_size=4, **options)
        read: Samples = {}
        try:
            for batch in source:
                read.update(by_key(batch))
        except ShardError as error:
            return read, source.counts, str(error)
        return read, source.counts, ""


def by_key(batch: dict[str, Any]) -> Samples:
    """Take a batch apart."""
    parts = zip(batch["id"].tolist(), batch["jpg"], batch["cls"].tolist(), strict=True)
    return dict(zip(batch["__key__"], parts, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Three sound shards of 12 samples with a manifest."""
    for i, name in enumerate("abc"):
        write_tar(tmp_path / f"{name}.tar", make_samples(12, first=12 * i, seed=i))
    with tarfile.open(tmp_path / "b.tar") as archive:
        members = [(m.offset, m.offset_data, m.offset_data + m.size) for m in archive]
    layout = Layout((tmp_path / "b.tar").read_bytes(), members)
    folder = Folder(tmp_path, write_manifest(tmp_path), layout, {})
    return replace(folder, sound=folder.read()[0])


def check_with_manifest(folder: Folder, kind: str, policy: OnError, rng: random.Random) -> None:
    """Damage the shard; it must be noticed before its first sample."""
    damaged = folder.layout.damaged(kind, rng)
    if damaged == folder.layout.content:
        return  # a page that was all zeros
    (folder.path / "b.tar").write_bytes(damaged)
    read, counts, raised = folder.read(on_error=policy, manifest=folder.manifest)
    others = {key: s for key, s in folder.sound.items() if not "000012" <= key < "000024"}
    assert counts["wrong_size"] + counts["wrong_sha256"] == 1
    if policy == "raise":
        assert raised.startswith("shard 'b.tar': ")
        assert read == dict(list(others.items())[:12])
    else:
        assert (read, counts["skipped_shards"]) == (others, 1)


def check_without_manifest(folder: Folder, kind: str, policy: OnError, rng: random.Random) -> None:
    """Damage the shard; no sample may vanish unnoticed, and none be put together wrongly."""
    (folder.path / "b.tar").write_bytes(folder.layout.damaged(kind, rng))
    read, counts, raised = folder.read(on_error=policy)
    noticed = bool(raised) or counts["skipped_shards"] + counts["skipped_samples"] > 0
    assert noticed or (read.keys() == folder.sound.keys() and not kind.startswith("cut"))
    if raised:
        assert (raised.startswith("shard 'b.tar': "), policy) == (True, "raise")
    else:
        assert list(read)[-12:] == list(folder.sound)[-12:]
    if kind in ("flip in header", "cut in content", "cut before sample", "cut between parts"):
        assert all(folder.sound[key] == sample for key, sample in read.items())


@pytest.mark.parametrize("policy", ON_ERROR)
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_manifest_no_damage_is_silent(folder: Folder, kind: str, policy: OnError) -> None:
    """Every kind is named under every policy, and the other shards come through whole."""
    rng = random.Random(kind + policy)
    for _ in range(5):
        check_with_manifest(folder, kind, policy, rng)


@pytest.mark.parametrize("policy", ON_ERROR)
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_manifest_no_sample_is_lost_silently(
    folder: Folder, kind: str, policy: OnError
) -> None:
    """Cuts and damaged headers are named; what passes has all its samples."""
    rng = random.Random(kind + policy)
    for _ in range(10):
        check_without_manifest(folder, kind, policy, rng)


@pytest.mark.verify
@pytest.mark.parametrize("kind", KINDS)
def test_five_thousand_of_each_kind_pass_no_check_silently(folder: Folder, kind: str) -> None:
    """The same two proofs over many more places."""
    rng = random.Random(kind)
    for _ in range(5000):
        check_with_manifest(folder, kind, rng.choice(ON_ERROR), rng)
        check_without_manifest(folder, kind, rng.choice(ON_ERROR), rng)
