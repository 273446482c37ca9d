"""What the loss record takes, leaves unchanged, gives back and refuses."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from adasel_stream.errors import RecordError
from adasel_stream.record import LossRecord
from tests.record_model import computing_with, floats, ints


@pytest.fixture(autouse=True, scope="module", params=["numpy", "numba"])
def every_engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test of this module with both engines."""
    with computing_with(request.param):
        yield


def test_empty_batches_are_fine() -> None:
    """No rows change nothing."""
    record = LossRecord(10)
    record.update(ints(), floats())
    record.update([], floats())
    for answer in (record.lookup(ints()), record.lookup([])):
        assert [column.shape for column in answer] == [(0,)] * 4
    record.update(["a"], floats(1))
    record.update(ints(), floats())
    assert len(record) == 1


def test_answers_have_the_documented_types() -> None:
    """Losses, averages and ages are float32, known is bool, ids are int64."""
    record = LossRecord(10)
    record.update(ints(1), np.array([1.0]))
    known, items = record.lookup(ints(1, 2)), record.items()
    assert [column.dtype for column in known] == [np.float32, np.bool_, np.float32, np.float32]
    assert items.ids.dtype == np.int64
    assert items.counts.dtype == items.versions.dtype == np.uint16


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_inputs_are_never_changed(dtype: type[np.floating[Any]]) -> None:
    """Read-only arrays are accepted and stay as they were, whatever their types."""
    ids, losses = np.arange(500) % 90, np.linspace(0, 1, 500).astype(dtype)
    losses[3] = np.nan
    given_ids, given_losses = ids.copy(), losses.copy()
    given_ids.flags.writeable = given_losses.flags.writeable = False
    record = LossRecord(40)
    record.update(given_ids, given_losses)
    record.lookup(given_ids)
    np.testing.assert_array_equal(given_ids, ids)
    np.testing.assert_array_equal(given_losses, losses)


def test_arrays_may_lie_anywhere_in_memory() -> None:
    """Every other row, rows backwards, rows of a file at an odd byte, and foreign byte orders."""
    ids, losses = np.arange(6), np.arange(6, dtype=np.float32)
    versions = ids.astype(np.uint16)
    packed = np.zeros(
        6, np.dtype([("flag", "u1"), ("id", "i8"), ("loss", "f4"), ("version", "u2")])
    )
    packed["id"], packed["loss"], packed["version"] = ids, losses, versions
    odd_ids = np.frombuffer(b"x" + ids.tobytes(), np.int64, offset=1)
    odd_losses = np.frombuffer(b"x" + losses.tobytes(), np.float32, offset=1)
    for given_ids, given_losses, given_versions in (
        (np.repeat(ids, 2)[::2], np.repeat(losses, 2)[::2], np.repeat(versions, 2)[::2]),
        (ids[::-1], losses[::-1], versions[::-1]),
        (packed["id"], packed["loss"], packed["version"]),
        (odd_ids, odd_losses, versions),
        (ids.astype(">i8"), losses.astype(">f4"), versions.astype(">u2")),
    ):
        record = LossRecord(100)
        record.update(given_ids, given_losses, version=given_versions, age_s=given_losses)
        assert record.lookup(given_ids).losses.tolist() == given_losses.tolist()
        items = record.items()
        assert items.ids.tolist() == items.losses.tolist() == items.versions.tolist()


def test_lists_of_names_are_never_changed() -> None:
    """A list of strings stays as it was."""
    names = ["a", "b", "a"]
    LossRecord(40).update(names, floats(1, 2, 3))
    assert names == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("ids", "losses", "message"),
    [
        ([1, 2], floats(1, 2), r"ids must be .* got a list with \['int'\]"),
        (["a", None], floats(1, 2), r"ids must be .* got a list with \['NoneType'\]"),
        ("ab", floats(1, 2), "ids must be .* got str"),
        (np.array([1.0]), floats(1), r"got an array of float64, shape \(1,\)"),
        (np.array([1], np.uint64), floats(1), "got an array of uint64"),
        (np.array([True]), floats(1), "got an array of bool"),
        (np.array(["a"]), floats(1), "got an array of <U1"),
        (np.array([[1]]), floats(1), r"shape \(1, 1\)"),
        (np.array(1), np.array(1.0), r"shape \(\)"),
        (ints(1), [1.0], "losses must be a floating-point numpy array, got list"),
        (ints(1), ints(1), "losses must be a floating-point numpy array, got int64"),
        (ints(1, 2), floats(1), r"losses have shape \(1,\), expected \(2,\): one for each id"),
        (ints(1), np.array([[1.0]]), r"losses have shape \(1, 1\), expected \(1,\)"),
    ],
)
def test_wrong_batches_are_refused(ids: Any, losses: Any, message: str) -> None:
    """The message says what was expected and what came; the record stays as it was."""
    record = LossRecord(10)
    with pytest.raises(RecordError, match=message):
        record.update(ids, losses)
    assert len(record) == 0
    record.update(["free to choose"], floats(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"capacity": 0}, ValueError, r"capacity must be in \[1, 17179869184\], got 0"),
        ({"capacity": 1e6}, TypeError, "capacity must be an integer, got float"),
        ({"capacity": True}, TypeError, "capacity must be an integer, got bool"),
        ({"decay": 1.0}, ValueError, r"decay must be in \[0, 1\), got 1.0"),
        ({"decay": np.nan}, ValueError, r"decay must be in \[0, 1\), got nan"),
        ({"decay": "0.9"}, TypeError, "decay must be a number, got str"),
        ({"max_age_s": 0}, ValueError, "max_age_s must be a positive .* pass None for no limit"),
        ({"max_age_s": np.nan}, ValueError, "max_age_s must be a positive"),
        ({"max_version_lag": -1}, ValueError, r"max_version_lag must be in \[0, 32768\], got -1"),
        ({"max_version_lag": 1.0}, TypeError, "max_version_lag must be an integer, got float"),
        ({"engine": "torch"}, ValueError, "engine must be one of auto, numpy, numba, got 'torch'"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 18446744073709551615\], got -1"),
        ({"seed": None}, TypeError, "seed must be an integer, got NoneType"),
        ({"clock": 5.0}, TypeError, "clock must return seconds when called, got float"),
        ({"pending": "x"}, TypeError, r"pending must be PendingLabels\(...\) or None, got str"),
    ],
)
def test_wrong_arguments_fail_at_construction(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message names the argument, its range and what came."""
    with pytest.raises(error, match=message):
        LossRecord(**{"capacity": 100, **arguments})


def test_a_version_that_is_no_integer_is_refused() -> None:
    """A fraction is not cut off silently, and nothing is recorded."""
    record = LossRecord(10)
    with pytest.raises(TypeError):
        record.update(ints(1), floats(1), version=1.5)  # type: ignore[arg-type]  # on purpose
    assert len(record) == 0


def test_a_version_that_is_no_integer_is_named() -> None:
    """The message says which argument it was."""
    with pytest.raises(TypeError, match=r"version must be an integer, .* got float"):
        LossRecord(100).update(ints(1), floats(1), version=1.5)  # type: ignore[arg-type]
