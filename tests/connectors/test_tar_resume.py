"""TarSource can stop and go on at each batch, in the very shards that it began with."""

import json
from pathlib import Path
from typing import Any

import pytest

from adasel_connectors.damage import OnError
from adasel_connectors.tar import TarSource
from adasel_stream.errors import ShardError, SourceError
from tests.connectors.shard_files import (
    make_samples,
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


def _go_on(source: TarSource, state: dict[str, Any]) -> None:
    source.load_state_dict(state)
    next(iter(source))


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


@pytest.mark.parametrize("policy", ["skip_sample", "skip_shard"])
def test_damage_is_skipped_and_counted_alike_after_a_resume(
    tmp_path: Path, policy: OnError
) -> None:
    """Over unusable samples and cut shards, stopping at each batch changes nothing."""
    for i in range(4):
        samples = make_samples(9, first=9 * i)
        del samples[2 * i][1]["cls"]
        write_tar(tmp_path / f"{i}.tar", samples)
    cut = tmp_path / "1.tar"
    cut.write_bytes(cut.read_bytes()[:9000])

    def fresh() -> TarSource:
        return TarSource(tmp_path, extensions=EXTENSIONS, batch_size=2, on_error=policy)

    undisturbed = fresh()
    whole = plain(undisturbed)
    assert undisturbed.counts["incomplete"] >= 2
    source = fresh()
    batches: list[dict[str, Any]] = []
    for _ in range(len(whole)):
        batches += plain([next(iter(source))])
        state = json.loads(json.dumps(source.state_dict()))
        source = fresh()
        source.load_state_dict(state)
    assert batches == whole
    assert list(source) == []
    assert source.counts == undisturbed.counts
