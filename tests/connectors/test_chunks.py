"""Large batches are cut into small ones as views, and can be resumed at each of them."""

from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from adasel_connectors.chunks import Rebatch, StatefulRebatch, as_it_is, rebatch
from adasel_connectors.parquet import ParquetSource
from adasel_stream.errors import BatchError, SourceError
from adasel_stream.types import Fetching
from tests.connectors.shard_files import plain, rows, write_parquet

Pair = namedtuple("Pair", "left right")  # an untyped one, as users have them


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), max_size=6), st.integers(1, 12))
def test_rows_keep_their_order_in_batches_of_one_size(sizes: list[int], batch_size: int) -> None:
    """Whatever the chunks' sizes, all batches are full but the last, and no row is lost."""
    starts = np.cumsum([0, *sizes])
    chunks = [{"x": torch.arange(a, a + n)} for a, n in zip(starts, sizes, strict=False)]
    batches = [batch["x"].tolist() for batch in rebatch(chunks, batch_size)]
    assert sum(batches, []) == list(range(sum(sizes)))  # noqa: RUF017  # short lists
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(batches)


def test_slices_of_a_chunk_are_views() -> None:
    """Within a chunk nothing is copied."""
    chunk: dict[str, Any] = {"x": torch.arange(10), "y": np.arange(10)}
    first, second = rebatch([chunk], 5)
    assert first["x"].untyped_storage().data_ptr() == chunk["x"].untyped_storage().data_ptr()
    assert second["x"].untyped_storage().data_ptr() == chunk["x"].untyped_storage().data_ptr()
    assert np.shares_memory(second["y"], chunk["y"])


def test_nested_batches_keep_their_structure() -> None:
    """Dicts, tuples, named tuples and lists of columns nest; lists of values are columns."""
    chunk: Any = {
        "pair": Pair(torch.arange(3), np.arange(3)),
        "inner": ([torch.zeros(3, 2), ["a", "b", "c"]], {"k": [b"a", b"b", b"c"]}),
    }
    first, last = rebatch([chunk], 2)
    assert isinstance(first["pair"], Pair)
    assert first["pair"].right.tolist() == [0, 1]
    assert last["inner"][0][0].shape == (1, 2)
    assert last["inner"][0][1] == ["c"]
    assert first["inner"][1] == {"k": [b"a", b"b"]}
    across = next(iter(rebatch([chunk, chunk], 4)))
    assert across["inner"][0][1] == ["a", "b", "c", "a"]
    assert across["pair"].right.tolist() == [0, 1, 2, 0]


def test_a_dataloader_of_tensors_is_sliced() -> None:
    """What torch's own collate makes of a map-style data set works too."""
    loader = DataLoader(TensorDataset(torch.arange(10), torch.arange(10) * 2), batch_size=6)
    batches = list(rebatch(loader, 4))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert all(torch.equal(y, 2 * x) for x, y in batches)
    assert not hasattr(rebatch(loader, 4), "state_dict")


def test_every_batch_boundary_can_be_resumed(tmp_path: Path) -> None:
    """A state taken after any small batch, and a resume of a resume, lose and repeat nothing."""
    for i in range(3):
        write_parquet(tmp_path / f"{i}.parquet", {"x": np.arange(7) + 7 * i})

    def fresh() -> StatefulRebatch:
        made = rebatch(ParquetSource(tmp_path, batch_size=5), 3)
        assert isinstance(made, StatefulRebatch)
        return made

    whole = plain(fresh())
    assert [value for batch in whole for value in batch["x"]] == list(range(21))
    once: list[dict[str, Any]] = []
    stepping = fresh()
    for i in range(len(whole)):
        once += plain([next(iter(stepping))])
        state = stepping.state_dict()
        stepping = fresh()
        stepping.load_state_dict(state)
        other = fresh()
        other.load_state_dict(state)
        assert whole[: i + 1] + plain(other) == whole
        assert plain(other) == whole
    assert once == whole
    assert list(stepping) == []


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    """The state of the wrapped source alone is not one of the slices."""
    source = ParquetSource(write_parquet(tmp_path / "a.parquet", {"x": [1]}))
    batches = rebatch(source, 1)
    assert isinstance(batches, StatefulRebatch)
    with pytest.raises(SourceError, match="rebatched"):
        batches.load_state_dict(source.state_dict())


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([{"x": torch.zeros(2), "y": torch.zeros(3)}], r"got \[2, 3\]"),
        ([{"x": 1}], "got int"),
        ([{}], r"got \[\]"),
        ([{"x": torch.zeros(1)}, {"x": torch.zeros(1), "y": torch.zeros(1)}], "columns"),
    ],
)
def test_chunks_that_are_no_batches_are_named(chunks: list[Any], message: str) -> None:
    """Ragged leaves, scalars and changing columns raise an error that says so."""
    with pytest.raises(BatchError, match=message):
        list(rebatch(chunks, 2))
    with pytest.raises(ValueError, match="batch_size"):
        rebatch(chunks, 0)


def test_as_it_is_returns_the_very_batch() -> None:
    """The collate function copies nothing."""
    batch = OrderedDict(x=[1])
    assert as_it_is(batch) is batch
    assert type(rebatch([batch], 1)) is Rebatch
    assert rows(rebatch([{"id": [1, 2, 3]}], 2)) == [1, 2, 3]


def test_deferred_columns_pass_through(tmp_path: Path) -> None:
    """References of small batches are fetched by the source, also from behind a DataLoader."""
    write_parquet(tmp_path / "a.parquet", {"x": np.arange(7), "s": [str(i) for i in range(7)]})
    source = ParquetSource(tmp_path, batch_size=5, deferred=("s",))
    behind = DataLoader(source, batch_size=None, collate_fn=as_it_is)
    for loader in (rebatch(source, 3), rebatch(behind, 3), rebatch(rebatch(source, 4), 3)):
        assert isinstance(loader, Fetching)
        assert loader.deferred == ("s",)
        fetched = [loader.fetch({"s": batch["s"]})["s"] for batch in loader]
        assert fetched == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    plain_loader = rebatch([{"x": torch.arange(3)}], 2)
    assert plain_loader.deferred == ()
    with pytest.raises(SourceError, match="defers"):
        plain_loader.fetch({})
