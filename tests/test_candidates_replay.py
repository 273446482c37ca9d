from typing import Any

import pytest
import torch

from adasel_stream.candidates import Candidates
from adasel_stream.errors import SourceError
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
