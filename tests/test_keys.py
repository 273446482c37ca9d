"""Ids and keys of the loss record: every id is itself, integers and strings alike."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_stream.keys import ids_of_keys, instance_ids, keys_of_ids, keys_of_strings
from adasel_stream.record import LossRecord
from tests.record_model import LIMITS, WORD, floats, ints, key_of, same_bucket


@settings(deadline=None, max_examples=60)
@given(ids=st.lists(st.integers(LIMITS.min, LIMITS.max)), seed=st.integers(0, 2**64 - 1))
def test_integer_ids_come_back_exactly(ids: list[int], seed: int) -> None:
    """The mix has an exact inverse for every id and seed, and matches its description."""
    keys = keys_of_ids(ints(*ids), seed)
    assert keys.tolist() == [key_of(id_, seed) for id_ in ids]
    assert ids_of_keys(keys, seed).tolist() == ids


def test_extreme_ids_are_ordinary_ids() -> None:
    """The smallest, the largest, 0 and -1 are unknown at first, then found and exported."""
    ids = ints(LIMITS.min, LIMITS.max, 0, -1)
    record = LossRecord(100)
    assert not record.lookup(ids).known.any()
    record.update(ids, floats(1, 2, 3, 4))
    assert record.lookup(ids).losses.tolist() == [1, 2, 3, 4]
    assert sorted(record.ids().tolist()) == sorted(ids.tolist())


@pytest.mark.parametrize("capacity", [1, 16, 17, 1000])
def test_no_id_is_taken_for_a_free_slot(capacity: int) -> None:
    """The ids whose keys equal the marks of free slots are unknown until they are recorded."""
    ids = ids_of_keys(np.array([0, WORD - 1], np.uint64), seed=0)
    record = LossRecord(capacity)
    assert not record.lookup(ids).known.any()
    record.update(ids, floats(5, 6))
    assert record.lookup(ids).losses.tolist() == [5, 6]
    assert sorted(record.ids().tolist()) == sorted(ids.tolist())
    assert len(record) == 2


def test_keys_that_differ_only_in_their_last_sorted_bits_stay_apart() -> None:
    """Ids alike in all bits that the packed sort keeps are still different ids."""
    key = 0x0123456789ABCDEF
    keys = np.array([key, key ^ 1 << 54, key, key ^ 1 << 55], np.uint64)
    ids = ids_of_keys(keys, seed=0)
    record = LossRecord(100, decay=0.5)
    record.update(ids, floats(1, 2, 3, 4))
    assert record.lookup(ids).losses.tolist() == [2, 2, 2, 4]
    assert len(record) == 3


def test_seeds_place_ids_differently() -> None:
    """Ids that share a bucket under one seed are spread under another."""
    ids = ints(*same_bucket(64, buckets=100, seed=0))
    kept = []
    for seed in (0, 1, 2):
        record = LossRecord(800, seed=seed)
        record.update(ids, np.ones(64, np.float32))
        kept.append(len(record))
    assert kept[0] == 8
    assert min(kept[1:]) > 50


@pytest.mark.parametrize(
    "ids",
    [
        np.array([5, -6, 7], np.int32),
        np.array([5, -6, 7], ">i8"),
        np.array([5, 0, -6, 0, 7, 0], np.int64)[::2],
    ],
)
def test_other_integer_layouts_name_the_same_ids(ids: npt.NDArray[np.int64]) -> None:
    """Narrow, byte-swapped and strided arrays of ids are taken by value."""
    record = LossRecord(40)
    record.update(ids, floats(1, 2, 3))
    assert record.lookup(ints(5, -6, 7)).losses.tolist() == [1, 2, 3]


_text = st.text(st.characters(), max_size=40) | st.text("ab\0", max_size=20)


@settings(deadline=None, max_examples=100)
@given(texts=st.lists(_text, max_size=30), seed=st.integers(0, 2**64 - 1))
def test_a_string_has_one_key_whatever_stands_beside_it(texts: list[str], seed: int) -> None:
    """A key depends on the string and the seed only; different strings differ."""
    keys = keys_of_strings(texts, seed).tolist()
    assert keys == [int(keys_of_strings([text], seed)[0]) for text in texts]
    assert len(set(keys)) == len(set(texts))


def test_string_keys_never_change() -> None:
    """A record outlives its process: these keys must be the same for ever, everywhere."""
    texts = ["", "a", "sample-1", "shard-000017/000123.jpg", "é", "\ud800", "x" * 256, "x" * 257]
    assert [hex(key) for key in keys_of_strings(texts, seed=3).tolist()] == [
        "0xc4604b5554502216",
        "0x6cac24b5420608fd",
        "0xb7e361218affd773",
        "0xefb79fb0ca3637d2",
        "0x322a5861cc35ce42",
        "0xff506c6614b5b26b",
        "0xcc5b1066cefc0b41",
        "0xecc0afa3ee1350c2",
    ]


def test_string_keys_spread_evenly() -> None:
    """A million-fold pattern of names gives no equal keys, and fills all buckets alike."""
    texts = [f"shard-{i // 1000:06d}/{i % 1000:06d}" for i in range(100_000)]
    keys = keys_of_strings(texts, seed=0)
    assert len(np.unique(keys)) == len(keys)
    for bits in (keys >> np.uint64(54), keys >> np.uint64(44), keys >> np.uint64(22)):
        loads = np.bincount((bits & np.uint64(1023)).astype(np.int64), minlength=1024)
        # chi-square with 1,023 degrees of freedom: mean 1,023, deviation 45
        assert ((loads - loads.mean()) ** 2 / loads.mean()).sum() < 1023 + 5 * 45


def test_strings_of_all_kinds_are_ids() -> None:
    """The empty string, unicode, a lone surrogate, zero bytes and long names are told apart."""
    names = ["", "\0", "a", "a\0", "é", "e\u0301", "日本語", "\ud800", "🙂" * 3]
    names += ["x" * length for length in (7, 8, 9, 255, 256, 257, 100_000)]
    losses = np.arange(len(names), dtype=np.float32)
    record = LossRecord(400)
    record.update(names, losses)
    assert record.lookup(names[::-1]).losses.tolist() == losses[::-1].tolist()
    assert record.lookup(["x", "A", "a\0\0"]).known.tolist() == [False] * 3
    assert len(record) == len(names)


def test_a_string_is_known_by_its_integer_id() -> None:
    """Strings and their `instance_ids` name the same instance, in and out."""
    record = LossRecord(10)
    record.update(["a"], floats(1))
    assert record.lookup(instance_ids(["a"])).losses.tolist() == [1]
    assert record.ids().tolist() == instance_ids(["a"]).tolist()
