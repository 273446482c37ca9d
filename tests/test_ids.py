from typing import Any

import numpy as np
import pytest
import torch

from adasel_stream.errors import BatchError
from adasel_stream.ids import as_ids, find_ids
from adasel_stream.keys import instance_ids
from tests.nestings import Encoding, Pair, Sample

NAMES = ["a", "b", "c"]


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([7, -8, 2**62]),
        torch.tensor([7, -8, 2**62], requires_grad=False),
        np.array([7, -8, 2**62]),
        [7, -8, 2**62],
        (7, -8, 2**62),
    ],
)
def test_whole_numbers_stay_what_they_are(ids: Any) -> None:
    """No id travels through a float."""
    assert as_ids(ids).tolist() == [7, -8, 2**62]
    assert as_ids(ids).dtype == np.int64


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_narrow_whole_numbers_are_widened(dtype: torch.dtype) -> None:
    """They name the same instances as wide ones."""
    assert as_ids(torch.tensor([1, 2], dtype=dtype)).tolist() == [1, 2]


def test_unsigned_ids_keep_their_bits() -> None:
    """Hashes come as uint64."""
    assert as_ids(np.array([2**64 - 1], dtype=np.uint64)).tolist() == [-1]


@pytest.mark.parametrize(
    "ids", [NAMES, tuple(NAMES), np.array(NAMES), np.array(NAMES, dtype=object)]
)
def test_strings_become_the_ids_that_the_record_gives_them(ids: Any) -> None:
    """In whatever form they come."""
    assert as_ids(ids).tolist() == instance_ids(NAMES).tolist()


def test_no_ids_are_no_ids() -> None:
    """An empty list has no type of its own."""
    assert as_ids([]).shape == (0,)


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [
        (torch.tensor([1.0]), "float32"),
        (np.array([1.0]), "float64"),
        ([True], "bool"),
        ([b"a"], r"\|S1"),
        ([2**70], "object"),
    ],
)
def test_other_ids_are_refused(ids: Any, dtype: str) -> None:
    """A float loses digits, and bytes may be text or a number."""
    with pytest.raises(BatchError, match=f"ids have dtype {dtype}, expected whole numbers of 64"):
        as_ids(ids)


@pytest.mark.parametrize("ids", [["a", None], (1, None), np.array(["a", None]), [1, None, "b"]])
def test_a_row_without_an_id_is_named(ids: Any) -> None:
    """Its number and the type that came say where to look."""
    with pytest.raises(BatchError, match=r"row 1 of the batch has no id: .* got NoneType; give"):
        as_ids(ids)


@pytest.mark.parametrize(("ids", "types"), [(["a", 2], ("int", "str")), ([1, "b"], ("str", "int"))])
def test_names_and_numbers_are_not_mixed(ids: Any, types: tuple[str, str]) -> None:
    """A number among names would become its digits, and so another instance."""
    told = "row 1 of the batch has an id of type {}, row 0 one of type {}, expected".format(*types)
    with pytest.raises(BatchError, match=told):
        as_ids(ids)


@pytest.mark.parametrize(
    ("batch", "where"),
    [
        ({"id": [1, 2]}, "id"),
        ({"meta": {"id": [1, 2]}}, ("meta", "id")),
        ({"meta": Pair([1, 2], None)}, ("meta", "x")),
        (Sample(0, {"k": torch.tensor([1, 2])}), ("y", "k")),
        (Pair(0, np.array([1, 2])), "y"),
        ((0, [1, 2]), 1),
        ((0, {"id": (1, 2)}), (1, "id")),
        (Encoding({"id": [1, 2]}, ""), "id"),
        ([1, 2], lambda batch: batch),
        ({"x": torch.tensor([10, 20])}, lambda batch: batch["x"] // 10),
    ],
)
def test_ids_are_found_by_key_path_attribute_and_function(batch: Any, where: Any) -> None:
    """Wherever a stream keeps them."""
    assert find_ids(batch, where, 2).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("batch", "where"),
    [
        ({"x": [1]}, "id"),
        ({"x": {"y": [1]}}, ("x", "id")),
        (([1],), 1),
        (([1],), "id"),
        (Sample([1]), "id"),
        ({"x": [1]}, lambda batch: batch["id"]),
    ],
)
def test_missing_ids_are_named_with_what_is_there(batch: Any, where: Any) -> None:
    """So that the right key can be read off the message."""
    with pytest.raises(BatchError, match=r"^ids=.* is not in the batch, whose leaves are .*; name"):
        find_ids(batch, where, 1)


@pytest.mark.parametrize(
    ("ids", "shape"),
    [([1, 2, 3], "3,"), ([[1, 2], [3, 4]], "2, 2"), (torch.tensor(1), ""), ([], "0,")],
)
def test_anything_but_one_id_per_row_is_refused(ids: Any, shape: str) -> None:
    """The message shows both shapes."""
    with pytest.raises(
        BatchError, match=rf"ids='id' gives shape \({shape}\), expected \(2,\): one"
    ):
        find_ids({"id": ids}, "id", 2)


def test_ids_of_several_parts_are_refused_whatever_their_lengths() -> None:
    """The message of numpy would help nobody."""
    with pytest.raises(
        BatchError, match="ids have parts of different lengths, expected one id per"
    ):
        as_ids([[1], [2, 3]])  # type: ignore[list-item] # that is the point
