"""Arrays in NumPy's format come back as NumPy wrote them, and nothing else is read."""

import io
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adasel_connectors.damage import DamageError
from adasel_connectors.npy import read_header


def stored(array: Any, **options: Any) -> bytes:
    """Store an array as NumPy does."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


dtypes = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(),
    hnp.unsigned_integer_dtypes(sizes=(8, 16, 32)),
    hnp.floating_dtypes(sizes=(16, 32, 64)),
)
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(arrays, st.sampled_from("CF"), st.integers(1, 3))
def test_arrays_come_back_equal(array: Any, order: Any, copies: int) -> None:
    """Any shape, order, byte order and width of numbers, stacked as often as it was given."""
    part = stored(np.asarray(array, order=order))
    stack = read_header(part).arrays([part] * copies)
    assert stack.shape == (copies, *array.shape)
    assert stack.flags.writeable
    assert stack.flags.c_contiguous
    assert stack.dtype.isnative
    for each in stack:
        np.testing.assert_array_equal(each, array)


def with_header(text: str, payload: bytes = b"") -> bytes:
    """Put any header before any payload."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + payload


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"\x93NUMPY",
        stored(np.zeros(3))[:-1],
        stored(np.zeros(3)) + b"\0",
        stored(np.zeros(3)).replace(b"NUMPY\x01", b"NUMPY\x07"),
        stored(np.zeros(3, "u8")),
        stored(np.zeros(3, "c8")),
        stored(np.zeros(3, "U4")),
        stored(np.zeros(3, "M8[s]")),
        stored(np.zeros(3, [("a", "i4")])),
        stored(np.array([{"a": 1}], dtype=object), allow_pickle=True),
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"),
        with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", b"x" * 8),
        with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n"),
        with_header("{'descr': '<f4', 'fortran_order': __import__('os'), 'shape': (), }\n"),
        with_header(" " * 5000),
        with_header("{'shape': (" + "(" * 60_000),
    ],
)
def test_anything_else_is_damage(part: bytes) -> None:
    """Objects, pickles, false sizes and strange headers are refused, and nothing is allocated."""
    with pytest.raises(DamageError) as caught:
        read_header(part)
    assert (caught.value.kind, caught.value.one_sample) == ("decode", True)
