"""Labels that are joined while a record is copied: each prediction waits or has become a loss."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from adasel_stream.keys import ids_of_keys
from adasel_stream.record import LossRecord
from adasel_stream.record.pending import PendingLabels
from adasel_stream.record.snapshots import copying
from tests.kept_records import kept, saved_content
from tests.record_model import Clock, ints

SLICES, SLOTS = 20, 2400
IDS = 300


def pending_labels() -> PendingLabels:
    """Predictions that wait; a loss is the distance to the label."""
    return PendingLabels(SLOTS, lambda p, y: np.abs(p - y), ttl_s=None)


def between_slices(patch: pytest.MonkeyPatch, act: Callable[[int], object], slots: int) -> None:
    """Do something after each slice that is copied, told how many there were before."""
    calls = iter(range(10**6))
    patch.setattr(copying, "_SLICE_SLOTS", slots)
    patch.setattr(copying, "time", SimpleNamespace(sleep=lambda _: act(next(calls))))


def expect(record: LossRecord, *ids: int) -> None:
    """Keep a prediction of 0 for each id."""
    record.expect(ints(*ids), np.zeros(len(ids)))


def join(record: LossRecord, *ids: int) -> list[bool]:
    """Join a label of 1 to each id."""
    found: list[bool] = record.join(ints(*ids), np.ones(len(ids))).tolist()
    return found


def waiting(record: LossRecord) -> list[int]:
    """Return the ids whose predictions wait."""
    assert record.pending is not None
    keys = record.pending.entries(0, record.pending.capacity).keys
    return sorted(ids_of_keys(keys, record.seed).tolist())


def counts(record: LossRecord) -> dict[int, int]:
    """Return the number of losses of each id."""
    items = record.items()
    return dict(zip(items.ids.tolist(), items.counts.tolist(), strict=True))


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32 - 1), full=st.booleans())
def test_a_label_that_comes_during_a_copy_counts_once(
    seed: int, full: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whenever a label comes while a snapshot is taken, its prediction waits or is one loss."""
    path, clock = tmp_path_factory.mktemp("record"), Clock()
    moments = np.random.default_rng(seed).integers(0, 2 * SLICES, IDS)  # of both tables
    with kept(path, SLOTS, clock=clock, pending=pending_labels()) as record:
        expect(record, *range(IDS))
        record.update(np.arange(0, IDS, 3), np.ones(IDS // 3))
        clock.now_s += 10
        record.save()
        clock.now_s += 10

        def act(number: int) -> None:
            assert all(join(record, *(moments == number).nonzero()[0].tolist()))

        with pytest.MonkeyPatch.context() as patch:
            between_slices(patch, act, slots=SLOTS // SLICES)
            record.save(full=full)
        assert waiting(record) == []
    with kept(path, SLOTS, clock=clock, pending=pending_labels()) as record:
        total = Counter(waiting(record))
        total.update(counts(record))
        assert total == Counter(range(IDS)) + Counter(range(0, IDS, 3))
        join(record, *range(IDS))
        assert set(counts(record).values()) == {1, 2}


def test_a_prediction_after_a_label_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new prediction of an id whose label came during the copy waits for the next label."""
    with kept(tmp_path, pending=pending_labels()) as record:
        expect(record, 1, 2)

        def act(number: int) -> None:
            if number == 0:  # predictions are copied, losses are not
                join(record, 1, 2)
                expect(record, 2)

        between_slices(monkeypatch, act, slots=10**6)
        record.save()
    with kept(tmp_path, pending=pending_labels()) as record:
        assert counts(record) == {1: 1, 2: 1}
        assert waiting(record) == [2]


def test_losses_that_take_the_room_of_copied_ones_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full record, all of it copied and then replaced by labels, is saved with the new losses."""
    clock = Clock()
    with kept(tmp_path, 16, clock=clock, pending=pending_labels()) as record:
        record.update(np.arange(100), np.ones(100))
        assert len(record) == 16
        clock.now_s += 1
        expect(record, *range(100, 200))

        def act(number: int) -> None:
            if number == 1:  # all is copied
                join(record, *range(100, 200))

        between_slices(monkeypatch, act, slots=10**6)
        record.save()
        newest = counts(record)
        assert len(newest) == 16
        assert min(newest) >= 100
        clock.now_s += 1
    assert len(saved_content(tmp_path, capacity=800, clock=clock)) == 32
    with kept(tmp_path, 16, clock=clock) as record:
        assert counts(record) == newest


def test_a_label_of_a_copy_that_failed_is_in_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joined while a copy was made that came to nothing: the next snapshot has the loss."""
    with kept(tmp_path, pending=pending_labels()) as record:
        expect(record, 1)

        def act(_: int) -> None:
            join(record, 1)
            raise MemoryError

        with monkeypatch.context() as patch:
            between_slices(patch, act, slots=10**6)
            with pytest.raises(Exception, match="MemoryError; the one before is intact"):
                record.save()
        record.save()
    with kept(tmp_path, pending=pending_labels()) as record:
        assert counts(record) == {1: 1}
        assert waiting(record) == []
