from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch

from adasel_stream import Guards, LossRecord, SelectingLoader
from adasel_stream.repeats import Repeats
from tests.streams import Rows


def test_counts_are_never_too_low_and_rarely_too_high() -> None:
    """Against a dictionary, before anything is forgotten."""
    random = np.random.default_rng(0)
    ids = random.zipf(1.3, 30_000).astype(np.int64) % 10**12
    repeats, truth = Repeats(), Counter(ids.tolist())
    for part in np.array_split(ids, 100):
        repeats.add(part)
    names = np.array(list(truth))
    counted, true = repeats.count(names), np.array([truth[i] for i in names.tolist()])
    assert (counted >= true).all()
    assert np.mean(counted > true + 2) < 0.02
    strangers = repeats.count(random.integers(10**15, 10**16, 10_000))
    assert np.mean(strangers > 1) < 0.05


def test_what_is_long_ago_is_forgotten() -> None:
    """An instance that was chosen a thousand times comes to nothing as others are chosen."""
    repeats = Repeats()
    repeats.add(np.full(1000, 7))
    for start in range(0, 12 * 65_536, 65_536):
        repeats.add(np.arange(start + 10**6, start + 10**6 + 65_536))
    assert int(repeats.count(np.array([7]))[0]) <= 6


def test_state_goes_there_and_back() -> None:
    """In plain data, to the last count."""
    first, second = Repeats(), Repeats()
    first.add(np.random.default_rng(1).integers(0, 5000, 70_000))
    second.load_state_dict(first.state_dict())
    ids = np.arange(5000)
    assert np.array_equal(first.count(ids), second.count(ids))
    for one in (first, second):
        one.add(np.arange(65_000))
    assert np.array_equal(first.count(ids), second.count(ids))


@pytest.mark.parametrize("ids", [np.array([], dtype=np.int64), np.array([-1, 2**63 - 1, -(2**63)])])
def test_any_ids_can_be_counted(ids: np.ndarray) -> None:
    """None at all, negative ones, the largest."""
    repeats = Repeats()
    repeats.add(ids)
    assert repeats.count(ids).tolist() == [1] * len(ids)


def test_a_row_that_is_chosen_again_and_again_is_held_back() -> None:
    """An instance whose loss never falls is a tenth of what is trained on, not a quarter."""
    losses = torch.full((16,), 0.1)
    losses[:2] = 50.0

    def source() -> list[Rows]:
        others = torch.arange(2, 2 + 14 * 2000).reshape(2000, 14)
        return [{"id": torch.cat([torch.arange(2), own]), "loss": losses} for own in others]

    def share(guards: Guards | None) -> float:
        record = LossRecord(capacity=40_000, max_age_s=1e9)
        every = np.arange(2 + 14 * 2000)
        record.update(every, np.where(every < 2, 50.0, 0.1))
        loader = SelectingLoader(
            source(),
            record=record,
            ids="id",
            sampling_rate=0.25,
            guards=guards,
            batch_size=8,
        )
        stubborn = []
        for batch in islice(loader, 400):
            loader.mean(batch["loss"])
            stubborn.append(float((batch["id"] < 2).float().mean()))
        return sum(stubborn[100:]) / len(stubborn[100:])

    assert share(None) > 0.2
    assert share(Guards(cap=0.1, tail=0.0, repeats=20)) < 0.15
