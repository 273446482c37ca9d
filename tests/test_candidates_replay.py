from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from adasel_stream.candidates import Candidates
from adasel_stream.errors import SourceError
from tests.candidates import generator
from tests.test_candidates import rest


def test_a_stateless_source_cannot_go_on() -> None:
    """The message names sources that can, and what to pass if it always gives the same."""
    first = Candidates([0, 1, 2])
    first.start()
    first.next()
    second = Candidates([0, 1, 2])
    with pytest.raises(
        SourceError, match=r"no state_dict of list, so .*after batch 1; .*replay=True"
    ):
        second.load_state_dict(first.state_dict())
    assert rest(second) == [0, 1, 2]


def test_a_stateless_source_that_nothing_was_taken_from_can_begin() -> None:
    """A snapshot of before the first batch loses nothing."""
    candidates = Candidates([0, 1])
    candidates.load_state_dict(Candidates([0, 1]).state_dict())
    assert rest(candidates) == [0, 1]


def test_a_stateless_source_is_read_again_where_that_is_allowed() -> None:
    """It warns, goes on at the right batch, and the next pass is whole."""
    first = Candidates([0, 1, 2], replay=True)
    first.start()
    first.next()
    first.next()
    second = Candidates([0, 1, 2], replay=True)
    second.load_state_dict(first.state_dict())
    with pytest.warns(RuntimeWarning, match="list has no state_dict: reading 2 batches again"):
        assert rest(second) == [2]
    assert second.state_dict() == {"taken": 0}
    assert rest(second) == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:list has no state_dict:RuntimeWarning")
def test_a_shorter_stream_is_not_the_same_one() -> None:
    """Reading again ends with an error, not with a silent gap."""
    candidates = Candidates([0], replay=True)
    candidates.load_state_dict({"taken": 3})
    with pytest.raises(SourceError, match="ended after 1 batches, the snapshot was taken after 3"):
        candidates.start()


def shuffled(order: list[int]) -> list[Any]:
    """Batches that differ in their first row only by number."""
    return [{"x": torch.tensor([i, 7]), "t": [f"row {i}", "row 7"], "n": None} for i in order]


@pytest.mark.filterwarnings("ignore:list has no state_dict:RuntimeWarning")
@pytest.mark.parametrize(("order", "same"), [([0, 1, 2, 3], True), ([1, 0, 2, 3], False)])
def test_replaying_another_order_is_found_out(order: list[int], same: bool) -> None:
    """An unseeded shuffle would repeat some rows and lose others, in silence."""
    first = Candidates(shuffled([0, 1, 2, 3]), replay=True)
    first.start()
    first.next()
    first.next()
    second = Candidates(shuffled(order), replay=True)
    second.load_state_dict(first.state_dict())
    if same:
        assert [batch["x"][0] for batch in rest(second)] == [2, 3]
    else:
        with pytest.raises(SourceError, match=r"batch 2 is not the one .* Seed its shuffle"):
            second.start()


def seeded_loader() -> DataLoader[int]:
    """Shuffle by a generator of its own, as a new process would make it."""
    return DataLoader(range(12), batch_size=2, shuffle=True, generator=generator(5))  # type: ignore[arg-type] # a range is a data set


@pytest.mark.filterwarnings("ignore:DataLoader has no state_dict:RuntimeWarning")
@pytest.mark.parametrize("taken", [0, 1, 3, 6, 7, 15])
def test_a_seeded_shuffle_goes_on_in_any_pass(taken: int) -> None:
    """Its generator goes on from pass to pass, and so it does in a new process."""
    first, passes, count = Candidates(seeded_loader(), replay=True), [], 0
    first.start()
    while count < taken:
        try:
            first.next()
            count += 1
        except StopIteration:
            first.start()
    state = first.state_dict()
    second = Candidates(seeded_loader(), replay=True)
    second.load_state_dict(state)
    for candidates in (first, second):
        if candidates is second:
            candidates.start()
        left: list[list[int]] = [[], [], []]
        for number in range(3):
            if number:
                candidates.start()
            try:
                while True:
                    left[number] += candidates.next().tolist()
            except StopIteration:
                pass
        passes.append(left)
    assert passes[0] == passes[1]
    assert passes[0][1] != passes[0][2]


@pytest.mark.filterwarnings("ignore:DataLoader has no state_dict:RuntimeWarning")
def test_going_on_leaves_torchs_generator_alone() -> None:
    """Dropout goes on where its state was set, although a DataLoader draws as it begins."""
    loader: DataLoader[int] = DataLoader(range(12), batch_size=2)  # type: ignore[arg-type] # as above
    second = Candidates(loader, replay=True)
    second.load_state_dict({"taken": 1})
    before = torch.get_rng_state()
    second.start()
    assert torch.equal(torch.get_rng_state(), before)
