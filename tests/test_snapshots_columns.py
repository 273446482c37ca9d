"""Rows as Parquet and back: in the order of their keys, all values exactly."""

import io
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow.parquet as pq  # type: ignore[import-untyped] # pyarrow ships no types
import pytest
from hypothesis import given, settings

from adasel_stream.errors import DamagedSnapshotError
from adasel_stream.keys import ids_of_keys
from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.snapshots import columns
from adasel_stream.record.snapshots.columns import RowsFile, encode_groups, sorted_groups
from tests.kept_records import content_of

words = st.one_of(
    st.integers(0, 2**64 - 1),
    # keys that differ in few bits, where the sort must not be misled
    st.integers(0, 300).map(lambda low: 2**63 + low),
)


@settings(deadline=None)
@given(keys=st.lists(words, unique=True, max_size=80), seed=st.integers(0, 2**64 - 1))
def test_rows_come_back_as_they_were(keys: list[int], seed: int) -> None:
    """Any rows with distinct keys, in any order, are written sorted and read as they were."""
    rng = np.random.default_rng(seed)
    values = np.frombuffer(rng.bytes(16 * len(keys)), VALUE).copy()
    values["ema"], values["last"] = rng.normal(size=(2, len(keys)))
    values["tick"] |= 1
    values["count"] |= 1
    rows = Entries(np.array(keys, np.uint64), values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "GROUP_ROWS", 7)
        file = b"".join(encode_groups(sorted_groups(rows), seed))
        groups = list(RowsFile(io.BytesIO(file), len(keys), "f").groups())
    assert [len(group.keys) for group in groups[:-1]] == [7] * (len(groups) - 1)
    assert [key for group in groups for key in group.keys.tolist()] == sorted(keys)
    assert content_of(groups) == content_of([rows])


@settings(deadline=None, max_examples=30)
@given(
    keys=st.lists(words, unique=True, max_size=80), bounds=st.tuples(*[st.integers(0, 1024)] * 2)
)
def test_a_range_of_shards_is_all_of_its_rows(keys: list[int], bounds: tuple[int, int]) -> None:
    """Reading a range of virtual shards gives the rows of these and of no other."""
    shards = range(min(bounds), max(bounds))
    rows = Entries(np.array(keys, np.uint64), np.ones(len(keys), VALUE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "GROUP_ROWS", 7)
        file = b"".join(encode_groups(sorted_groups(rows), seed=0))
        groups = RowsFile(io.BytesIO(file), len(keys), "f").groups(shards)
        found = [key for group in groups for key in group.keys.tolist()]
    assert found == [key for key in sorted(keys) if key >> 54 in shards]


def test_a_range_of_shards_leaves_other_row_groups_unread() -> None:
    """Of a damaged file, the shards whose row groups are sound can be read."""
    rows = Entries(np.arange(0, 2**64, 2**52, dtype=np.uint64), np.ones(2**12, VALUE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "GROUP_ROWS", 256)
        file = bytearray(b"".join(encode_groups(sorted_groups(rows), seed=0)))
        file[200] ^= 1  # a page of the first row group
        read = RowsFile(io.BytesIO(file), 2**12, "f")
        assert sum(len(group.keys) for group in read.groups(range(512, 640))) == 512
        with pytest.raises(DamagedSnapshotError):
            list(read.groups(range(64)))


def test_ids_are_had_back_by_other_programs() -> None:
    """The column `id` holds what the keys were made of."""
    rows = Entries(
        np.sort(np.random.default_rng(0).integers(0, 2**64, 99, np.uint64)), np.ones(99, VALUE)
    )
    file = b"".join(encode_groups([rows], seed=5))
    ids = pq.read_table(io.BytesIO(file))["id"].to_pylist()
    assert ids == ids_of_keys(rows.keys, seed=5).tolist()


@pytest.mark.slow
def test_a_snapshot_imports_no_pandas(tmp_path: Path) -> None:
    """The first snapshot and restore do not stop training for as long as pandas takes to load."""
    script = """
import sys, numpy as np
from adasel_stream.record import LossRecord
for capacity in (100, 200):
    record = LossRecord.open(sys.argv[1], capacity, save_every_s=1e6, engine="numpy")
    record.update(np.arange(50), np.ones(50))
    record.save()
    record.close()
assert "pandas" not in sys.modules, "pandas"
"""
    subprocess.run([sys.executable, "-c", script, tmp_path], check=True)
