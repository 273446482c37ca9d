from typing import Any

import numpy as np
import pytest
import torch

from adasel_stream.rows import Leaf, clear_rows, copy_rows, place, put_rows, slots_for, take_rows

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn),
]


def leaf_of(dtype: torch.dtype) -> torch.Tensor:
    """Four rows of two values."""
    return torch.arange(8).reshape(4, 2).to(dtype)


def values(leaf: Leaf) -> list[Any]:
    """Rows as numbers; every dtype here converts to complex."""
    assert isinstance(leaf, torch.Tensor)
    return list(leaf.to(torch.complex128).tolist())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_every_dtype_can_be_taken_and_put(dtype: torch.dtype) -> None:
    """Also of the unsigned ones, which torch cannot index as they are."""
    leaf = leaf_of(dtype)
    slots = slots_for(leaf, 5)
    take_rows(leaf, torch.tensor([3, 1]), slots, 1)
    put_rows(leaf[:2], slots, 3)
    rows = values(leaf)
    assert values(slots)[1:] == [rows[3], rows[1], rows[0], rows[1]]


@pytest.mark.parametrize("dtype", DTYPES[:-1], ids=str)
def test_void_rows_become_zeros(dtype: torch.dtype) -> None:
    """Only those that are marked, whatever they held."""
    leaf = leaf_of(dtype)
    rows = values(leaf)
    clear_rows(leaf, 1, torch.tensor([True, False, True]))
    assert values(leaf) == [rows[0], [0, 0], rows[2], [0, 0]]


def test_void_rows_of_lists_and_arrays_stay() -> None:
    """They live on the host, where nobody knows yet which rows are void."""
    for leaf in (["a", "b"], np.array([1.0, 2.0])):
        before = list(leaf)
        clear_rows(leaf, 0, torch.tensor([True, True]))
        assert list(leaf) == before


def test_copied_rows_share_no_memory() -> None:
    """A snapshot must not change with the buffer."""
    leaves: list[Leaf] = [torch.ones(3), np.ones(3), [1.0, 1.0, 1.0]]
    for leaf in leaves:
        copied = copy_rows(leaf, 2)
        leaf[0] = 5.0
        assert list(copied) == [1.0, 1.0]


def test_slots_are_on_the_leafs_device_and_track_no_gradient() -> None:
    """A leaf that requires grad is data, not a parameter."""
    slots = slots_for(torch.ones(2, 3, device="meta", requires_grad=True), 4)
    assert isinstance(slots, torch.Tensor)
    assert (slots.device.type, slots.shape, slots.requires_grad) == ("meta", (4, 3), False)
    leaf = torch.ones(2, 3, requires_grad=True)
    taken = slots_for(leaf, 1)
    take_rows(leaf, torch.tensor([1]), taken, 0)
    assert isinstance(taken, torch.Tensor)
    assert not taken.requires_grad


def test_place_moves_tensors_and_numeric_arrays() -> None:
    """Lists stay on the host: no device holds text."""
    read_only = np.arange(3.0)
    read_only.flags.writeable = False
    leaves: dict[str, Any] = {
        "tensor": torch.ones(3),
        "array": read_only,
        "swapped": np.arange(3).astype(">i4"),
        "bool": np.ones(3, bool),
        "text": ["a", "b", "c"],
        "time": np.array(["2013-01-01"] * 3, dtype="datetime64[D]"),
    }
    moved = place(leaves, torch.device("meta"))
    tensors = {k for k, v in moved.items() if isinstance(v, torch.Tensor) and v.is_meta}
    assert tensors == {"tensor", "array", "swapped", "bool"}
    assert moved["text"] is leaves["text"]
    here = place(leaves, torch.device("cpu"))
    assert here["tensor"] is leaves["tensor"]
    assert isinstance(here["swapped"], torch.Tensor)
    assert here["swapped"].tolist() == [0, 1, 2]
