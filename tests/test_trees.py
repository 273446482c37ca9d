import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adasel_stream.checkpoint import load_checkpoint, save_checkpoint
from adasel_stream.errors import BatchError
from adasel_stream.rows import Leaves, row_count, slots_for, take_rows
from adasel_stream.trees import describe, emptied, flatten, rebuild, template_of
from tests.nestings import NESTINGS, ROWS, Encoding, Pair, Sample, names, rows_of, same_types, x, y

nestings = pytest.mark.parametrize("name", NESTINGS)


def chosen(leaves: Leaves, rows: list[int]) -> Leaves:
    """Copy some rows of every leaf."""
    taken: Leaves = {}
    for path, leaf in leaves.items():
        taken[path] = slots_for(leaf, len(rows))
        take_rows(leaf, torch.tensor(rows, dtype=torch.int64), taken[path], 0)
    return taken


@nestings
def test_every_nesting_comes_back_with_the_rows_that_were_chosen(name: str) -> None:
    """Structure, container types, leaf types and dtypes are the same; rows are those asked for."""
    batch = NESTINGS[name]
    before = rows_of(batch)
    leaves = flatten(batch)
    assert row_count(leaves) == ROWS
    part = rebuild(batch, chosen(leaves, [4, 0, 5]))
    assert same_types(part, batch)
    assert rows_of(part) == [before[4], before[0], before[5]]
    assert rows_of(batch) == before


@nestings
def test_an_emptied_batch_has_the_same_types_and_holds_no_rows(name: str) -> None:
    """It stands for the structure alone, and rebuilds the batch from its leaves."""
    batch = NESTINGS[name]
    leaves = flatten(batch)
    empty = emptied(batch, leaves)
    for leaf in flatten(empty).values():
        assert len(leaf) == 0
        assert not isinstance(leaf, Tensor) or leaf.untyped_storage().nbytes() == 0
    assert same_types(rebuild(empty, leaves), batch)
    assert rows_of(rebuild(empty, leaves)) == rows_of(batch)


@nestings
def test_a_plain_structure_survives_a_checkpoint_file(name: str, tmp_path: Path) -> None:
    """Dicts, lists and tuples can be described in plain data; types of the user's own cannot."""
    batch = NESTINGS[name]
    leaves = flatten(batch)
    description = describe(emptied(batch, leaves))
    own = ("ordered", "default", "tokenizer", "named", "untyped", "dataclass", "frozen", "deep")
    assert (description is None) == name.startswith(own)
    if description is not None:
        save_checkpoint(tmp_path / "s", {"structure": description}, durable=False)
        template = template_of(load_checkpoint(tmp_path / "s")["structure"])
        assert same_types(rebuild(template, leaves), batch)
        assert rows_of(rebuild(template, leaves)) == rows_of(batch)


def test_own_keys_are_not_described() -> None:
    """A file holds keys that are strings or whole numbers, and no others."""
    assert describe({(0, 1): torch.empty(0)}) is None
    assert describe({True: torch.empty(0)}) is None


def test_a_mapping_keeps_its_attributes_and_the_caller_its_batch() -> None:
    """A tokenizer's output is copied, not emptied under the caller's hands."""
    batch = Encoding({"x": x(), "t": names()}, "kind")
    part = rebuild(batch, chosen(flatten(batch), [1]))
    assert (part.kind, part.t, part.x.tolist()) == ("kind", ["nn"], [[2.0, 3.0]])
    assert len(batch["t"]) == ROWS


def test_a_mapping_that_cannot_be_changed_becomes_a_dict() -> None:
    """There is no way to make another one with other values."""
    batch = types.MappingProxyType({"x": x()})
    assert type(rebuild(batch, flatten(batch))) is dict


def test_a_list_of_lists_is_a_leaf_under_a_key_and_a_list_of_leaves_elsewhere() -> None:
    """Tokens of a data set come under a key; pairs of columns come as a pair."""
    assert list(flatten({"tokens": [[1, 2], [3]]})) == ["['tokens']"]
    assert list(flatten(Sample([["a"], ["b", "c"]]))) == [".x"]
    assert list(flatten([["a", "b"], [1, 2]])) == ["[0]", "[1]"]
    assert list(flatten({"pair": [x(), y()]})) == ["['pair'][0]", "['pair'][1]"]
    assert list(flatten({"pair": [names(), y()]})) == ["['pair'][0]", "['pair'][1]"]
    assert list(flatten({"deep": [[x()], [y()]]})) == ["['deep'][0][0]", "['deep'][1][0]"]
    assert list(flatten({"boxes": [{"at": x()}, {"at": y()}]})) == [
        "['boxes'][0]['at']",
        "['boxes'][1]['at']",
    ]


def test_texts_keep_their_array_whatever_their_width() -> None:
    """Arrays of strings have another dtype in every batch; rows of both fit one buffer."""
    batches = np.array(["a", "b"]), np.array(["long one"])
    rows: list[str] = [
        text for batch in batches for leaf in flatten(batch).values() for text in leaf
    ]
    both = rebuild(batches[0], {"": rows})
    assert both.tolist() == ["a", "b", "long one"]
    assert both.dtype.kind == "U"


def test_rows_that_are_sequences_stay_rows_of_an_object_array() -> None:
    """Of lists of one length numpy would make a matrix."""
    batch = np.empty(2, dtype=object)
    batch[0], batch[1] = [1, 2], [3, 4]
    assert rebuild(batch, flatten(batch)).shape == (2,)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (None, "nothing to select"),
        ({}, "nothing to select"),
        ({"x": None}, "nothing to select"),
        ("text", "leaf batch has type str, expected a tensor, an array or a list"),
        ({"x": x(), "epoch": 3}, r"leaf batch\['epoch'\] has type int"),
        (Pair("a", "b"), r"leaf batch\[0\] has type str"),
        ({"x": x(), "t": {"s": {1, 2}}}, r"leaf batch\['t'\]\['s'\] has type set"),
        (torch.tensor(1.0), "leaf batch is a scalar"),
        ({"x": x(), "lr": np.array(0.1)}, r"leaf batch\['lr'\] is a scalar"),
        ({"x": x(), "y": y(4)}, r"leaf batch\['y'\] has 4 rows, batch\['x'\] has 6"),
        ({"x": x(), "boxes": [x(), y(4)]}, r"leaf batch\['boxes'\]\[1\] has 4 rows"),
    ],
)
def test_what_cannot_be_selected_from_is_refused_by_place(batch: Any, message: str) -> None:
    """The message names the leaf, what came and what was expected."""
    with pytest.raises(BatchError, match=message):
        row_count(flatten(batch))


_leaf: st.SearchStrategy[Any] = st.sampled_from(
    [
        lambda rows: torch.arange(rows),
        lambda rows: torch.arange(2.0 * rows).reshape(rows, 2),
        lambda rows: np.arange(rows) * 3,
        lambda rows: [f"row {i}" for i in range(rows)],
        lambda rows: tuple(f"{i}" for i in range(rows)),
        lambda rows: np.array([f"{i}" for i in range(rows)]),
    ]
)
_node = st.recursive(
    _leaf,
    lambda children: st.one_of(
        st.dictionaries(st.sampled_from(["a", "b", "c", 0, 1]), children, min_size=1),
        st.tuples(children, children).map(lambda pair: Pair(*pair)),
        st.tuples(children).map(lambda one: Sample(*one)),
    ),
    max_leaves=8,
)


def grown(node: Any, rows: int) -> Any:
    """Fill a drawn structure with leaves of so many rows."""
    if isinstance(node, dict):
        return {key: grown(child, rows) for key, child in node.items()}
    if isinstance(node, Pair):
        return Pair(grown(node.x, rows), grown(node.y, rows))
    return Sample(grown(node.x, rows)) if isinstance(node, Sample) else node(rows)


@given(drawn=_node, rows=st.integers(1, 9), data=st.data())
def test_any_nesting_comes_back(drawn: Any, rows: int, data: st.DataObject) -> None:
    """Whatever the depth and the mixture, rows are the ones that were asked for."""
    batch = grown(drawn, rows)
    picks = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=9))
    part = rebuild(batch, chosen(flatten(batch), picks))
    before = rows_of(batch)
    assert same_types(part, batch)
    assert rows_of(part) == [before[i] for i in picks]
