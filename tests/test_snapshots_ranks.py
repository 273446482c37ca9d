"""A record that is split among another number of ranks than before."""

from contextlib import ExitStack
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from adasel_stream.record import LossRecord
from adasel_stream.record.snapshots.columns import SHARDS, shards_of
from adasel_stream.record.snapshots.layout import shard_range
from tests.kept_records import (
    Content,
    content,
    kept,
    learn,
    rank_folder,
)
from tests.record_model import Clock, floats, ints


def losses_of(rows: Content) -> dict[int, float]:
    """Return last losses by key, which stay when ticks are counted from another beginning."""
    return {key: row[1] for key, row in rows.items()}


def open_all(stack: ExitStack, path: Path, world_size: int, clock: Clock) -> list[LossRecord]:
    """Open the records of all ranks."""
    return [
        stack.enter_context(kept(path, 4000, rank=rank, world_size=world_size, clock=clock))
        for rank in range(world_size)
    ]


def gathered(records: list[LossRecord]) -> Content:
    """Put together what all ranks hold; no two hold the same key."""
    rows: Content = {}
    for record in records:
        mine = content(record)
        assert not mine.keys() & rows.keys()
        rows |= mine
    return rows


def learn_own(record: LossRecord, rank: int, world_size: int, rng: np.random.Generator) -> None:
    """Update a rank's record with ids of its own shards, some of them new."""
    shards = shard_range(rank, world_size)
    ids = rng.integers(0, 3000, 600)
    probe = LossRecord(8000, engine="numpy")
    probe.update(ids, np.ones(len(ids)))
    mine = [
        id_
        for id_, shard in zip(
            probe.ids().tolist(),
            shards_of(probe.entries(0, probe.capacity).keys).tolist(),
            strict=True,
        )
        if shard in shards
    ]
    learn(record, rng, ints(*mine))


@pytest.mark.parametrize("sizes", [(1, 2, 3, 1), (4, 2), (1, 5, 5, 3)])
def test_other_numbers_of_ranks_keep_all(sizes: tuple[int, ...], tmp_path: Path) -> None:
    """Split anew again and again, ranks together hold what they held before, each its own part."""
    rng, clock = np.random.default_rng(0), Clock()
    expected: dict[int, float] = {}
    for world_size in sizes:
        with ExitStack() as stack:
            records = open_all(stack, tmp_path, world_size, clock)
            assert losses_of(gathered(records)) == expected
            for rank, record in enumerate(records):
                clock.now_s += 7
                learn_own(record, rank, world_size, rng)
                record.save()
            expected = losses_of(gathered(records))
        folders = sorted(folder.name for folder in tmp_path.iterdir())
        wanted = [rank_folder(tmp_path, rank, world_size).name for rank in range(world_size)]
        assert folders == wanted
    assert len(expected) > 900


def test_the_old_split_stays_until_every_rank_has_saved(tmp_path: Path) -> None:
    """A crash in the middle of the change loses nothing, whichever way it goes on."""
    clock = Clock()
    with kept(tmp_path, clock=clock) as record:
        record.update(ints(*range(500)), np.ones(500))
        record.save()
        whole = losses_of(content(record))
    with ExitStack() as stack:
        first, _ = open_all(stack, tmp_path, 2, clock)
        clock.now_s += 5
        key = next(iter(content(first)))
        first.update(first.ids()[:1], floats(3))
        first.save()
        expected = whole | {key: 3.0}
    assert rank_folder(tmp_path).exists()
    with ExitStack() as stack:
        assert losses_of(gathered(open_all(stack, tmp_path, 2, clock))) == expected
    with ExitStack() as stack:
        assert losses_of(gathered(open_all(stack, tmp_path, 3, clock))) == expected
    with kept(tmp_path, clock=clock) as record:
        assert losses_of(content(record)) == expected


def test_ages_agree_between_ranks_that_began_at_different_times(tmp_path: Path) -> None:
    """Ticks count from each record's own beginning; put together they mean the same moments."""
    clock = Clock()
    ids = {rank: np.array([], np.int64) for rank in range(2)}
    for rank in range(2):
        clock.now_s += 1000
        with kept(tmp_path, rank=rank, world_size=2, clock=clock) as record:
            learn_own(record, rank, 2, np.random.default_rng(0))
            ids[rank] = record.ids()
            record.save()
    clock.now_s += 50
    with kept(tmp_path, clock=clock) as record:
        assert (record.lookup(ids[0]).age_s == 1050).all()
        assert (record.lookup(ids[1]).age_s == 50).all()


def test_cursors_of_all_ranks_come_together(tmp_path: Path) -> None:
    """After a change the record knows every writer, each as far as the furthest rank."""
    for rank, cursors in enumerate([{"a": (3, 9), "b": (1, 0)}, {"b": (1, 5)}]):
        with kept(tmp_path, rank=rank, world_size=2) as record:
            record.cursors |= cursors
            record.save()
    with kept(tmp_path) as record:
        assert record.cursors == {"a": (3, 9), "b": (1, 5)}


@settings(deadline=None)
@given(world_size=st.integers(1, SHARDS))
def test_ranks_share_all_virtual_shards(world_size: int) -> None:
    """Ranges of ranks are contiguous, and every virtual shard has one owner."""
    owned = [shard for rank in range(world_size) for shard in shard_range(rank, world_size)]
    assert owned == list(range(SHARDS))
