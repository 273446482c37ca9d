import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adasel_stream.buffer import Buffer, kept_at
from adasel_stream.errors import BatchError
from adasel_stream.rows import Leaves


def leaves(start: int, rows: int) -> Leaves:
    """Rows that are numbered from `start`, in leaves of each kind."""
    numbers = range(start, start + rows)
    return {
        "['x']": torch.tensor([[float(n), -float(n)] for n in numbers]),
        "['a']": np.array([n for n in numbers]),
        "['t']": [f"row {n}" for n in numbers],
    }


def numbers(batch: Leaves | None) -> list[int]:
    """Which rows a batch holds, all its leaves agreeing."""
    assert batch is not None
    held = [int(n) for n in batch["['a']"]]
    assert batch["['t']"] == [f"row {n}" for n in held]
    assert [row[0] for row in torch.as_tensor(batch["['x']"]).tolist()] == held
    return held


@given(
    batch_size=st.integers(1, 7),
    pushes=st.lists(
        st.integers(1, 9).flatmap(lambda b: st.tuples(st.just(b), st.permutations(range(b)))),
        max_size=8,
    ),
    data=st.data(),
)
def test_rows_leave_in_the_order_they_came_and_none_is_lost(
    batch_size: int, pushes: list[tuple[int, list[int]]], data: st.DataObject
) -> None:
    """However batches, choices and emitted size fall together, also when saved at any moment."""
    buffer, seen, due, got = Buffer(batch_size), 0, list[int](), list[int]()
    for rows, order in pushes:
        picks = order[: data.draw(st.integers(0, rows))]
        buffer.push(leaves(seen, rows), torch.tensor(picks, dtype=torch.int64))
        due += [seen + i for i in picks]
        seen += rows
        if data.draw(st.booleans()):
            resumed = Buffer(batch_size)
            resumed.load_state_dict(buffer.state_dict())
            buffer = resumed
        while data.draw(st.booleans()) and (batch := buffer.pop()) is not None:
            assert len(numbers(batch)) == batch_size
            got += numbers(batch)
        assert len(buffer) == len(due) - len(got)
    while (batch := buffer.pop()) is not None:
        got += numbers(batch)
    assert got == due[: len(due) - len(due) % batch_size]
    assert len(buffer) == len(due) % batch_size


def test_chosen_columns_travel_with_their_rows() -> None:
    """Weights are given for the chosen rows alone, in their order."""
    buffer = Buffer(3)
    columns: Leaves = {"weights": torch.tensor([0.4, 0.1, 0.2, 0.5])}
    buffer.push(leaves(0, 5), torch.tensor([4, 1, 2, 0]), columns)
    batch = buffer.pop()
    assert batch is not None
    assert torch.as_tensor(batch["weights"]).tolist() == pytest.approx([0.4, 0.1, 0.2])
    part = buffer.state_dict()["part"]
    assert part["weights"].tolist() == [0.5]
    assert part["['a']"].tolist() == [0]


def test_void_slots_hold_zeros() -> None:
    """On an accelerator a slot that no finite row fills must not carry a poisoned row."""
    buffer = Buffer(2)
    poisoned = torch.tensor([[1.0, 2.0], [float("nan"), float("inf")]])
    columns: Leaves = {"weights": torch.tensor([1.5, 9.0])}
    buffer.push({"": poisoned}, torch.tensor([0, 1]), columns, torch.tensor([False, True]))
    batch = buffer.pop()
    assert batch is not None
    assert torch.as_tensor(batch[""]).tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert torch.as_tensor(batch["weights"]).tolist() == [1.5, 0.0]


def test_a_snapshot_shares_no_memory_with_what_is_emitted() -> None:
    """A trainer that changes its batch in place changes no snapshot, and the other way round."""
    buffer = Buffer(2)
    buffer.push(leaves(0, 3), torch.tensor([0, 1, 2]))
    state = buffer.state_dict()
    resumed = Buffer(2)
    resumed.load_state_dict(state)
    batch = buffer.pop()
    assert batch is not None
    for leaf in batch.values():
        leaf[0] = 7.0
    buffer.push(leaves(3, 1), torch.tensor([0]))
    assert numbers(resumed.pop()) == [0, 1]
    resumed.load_state_dict(state)
    assert numbers(resumed.pop()) == [0, 1]
    assert resumed.state_dict()["part"]["['a']"].tolist() == [2]


def test_candidates_are_not_kept_alive() -> None:
    """Rows are copied: what is left over of a batch can go."""
    buffer = Buffer(4)
    batch = leaves(0, 100)
    watched = weakref.ref(batch["['x']"])
    buffer.check(batch)
    buffer.push(batch, torch.tensor([0, 1]))
    del batch
    assert watched() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"['y']": torch.zeros(2)},
            r"leaves batch\['a'\], batch\['t'\], batch\['x'\], batch\['y'\] follows one with "
            r"batch\['a'\], batch\['t'\], batch\['x'\]; all batches .* the same structure",
        ),
        ({"['x']": torch.zeros(2, 3)}, r"rows of shape \(3,\).* before it was .* \(2,\)"),
        ({"['x']": torch.zeros(2, 2).double()}, "dtype torch.float64, before it was .*float32"),
        ({"['x']": np.zeros((2, 2), "f4")}, "is an array .* before it was a tensor"),
        ({"['a']": np.zeros(2)}, "dtype float64, before it was an array .*int64"),
        ({"['t']": np.zeros(2)}, "is an array .* before it was a list"),
        ({"['a']": ["a", "b"]}, "is a list, before it was an array"),
    ],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_a_batch_of_another_make_is_refused(
    change: dict[str, Any], message: str, resumed: bool
) -> None:
    """Its rows could not stand beside those that wait, or that were emitted before."""
    buffer = Buffer(2)
    buffer.check(leaves(0, 2))
    buffer.push(leaves(0, 2), torch.tensor([1]))
    if resumed:
        state, buffer = buffer.state_dict(), Buffer(2)
        buffer.load_state_dict(state)
    buffer.check(leaves(5, 9))
    with pytest.raises(BatchError, match=message):
        buffer.check({**leaves(2, 2), **change})
    buffer.push(leaves(2, 2), torch.tensor([0]))
    assert numbers(buffer.pop()) == [1, 2]


def test_a_snapshot_of_another_batch_size_is_refused() -> None:
    """The message names both, and what to construct."""
    buffer = Buffer(2)
    with pytest.raises(ValueError, match="batches of 3 rows, this loader of 2; construct the"):
        buffer.load_state_dict(Buffer(3).state_dict())


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
    """Such batches could never be emitted."""
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        Buffer(batch_size)


@pytest.mark.parametrize("batch_size", [2.0, "8", True])
def test_a_batch_size_that_is_no_whole_number_is_refused(batch_size: Any) -> None:
    """The message names its type."""
    with pytest.raises(TypeError, match="batch_size must be a whole number, got "):
        Buffer(batch_size)


def test_restored_tensors_go_where_they_came_from_or_where_they_are_wanted() -> None:
    """A machine without that accelerator keeps them on its CPU."""
    assert kept_at("cpu", None) == torch.device("cpu")
    assert kept_at("hpu", None) == torch.device("cpu")
    assert kept_at("cpu", torch.device("meta")) == torch.device("meta")
