"""A record as plain data, and back, slot for slot."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from adasel_stream.errors import RecordError
from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.evicted import EVICTED_CELLS
from adasel_stream.record.table import Table
from adasel_stream.record.ticks import Ticks

__all__ = [
    "COUNTS",
    "Position",
    "Slots",
    "dump_table",
    "read_cursors",
    "read_field",
    "read_numbers",
    "read_position",
    "read_table",
]

_T = TypeVar("_T")
_LAYOUT: Final = 1

COUNTS: Final = (
    *("hits", "misses", "stale", "stale_version"),
    *("evicted", "dropped", "rejected"),
)
"""What a record counts."""


class Position(NamedTuple):
    """What a record knows apart from its rows, checked; see `LossRecord.position`."""

    counts: dict[str, int]
    evicted_ages: list[int]
    version: int
    ticks: Ticks
    cursors: dict[str, tuple[int, int]]


def dump_table(table: Table) -> dict[str, Any]:
    """Copy the slots in use.

    Returns:
        `used`, one bit a slot, uint8; and for the n slots in use `keys` and each field of their
        values, shape (n,).

    >>> dump_table(Table(buckets=2))["used"].tolist()
    [0, 0]
    """
    used = table.values["tick"] != 0
    values = table.read(used.nonzero()[0])
    columns = {name: values[name].copy() for name in VALUE.names or ()}
    return {"layout": _LAYOUT, "used": np.packbits(used), "keys": table.keys[used]} | columns


class Slots(NamedTuple):
    """The slots in use of a table that was dumped, checked.

    Attributes:
        slots: their numbers, shape (n,), int64.
        keys: shape (n,), uint64.
        values: shape (n,), dtype VALUE.
    """

    slots: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    values: npt.NDArray[Any]

    def restore(self, table: Table) -> None:
        """Make a table the one that was dumped; both have the same capacity."""
        table.clear()
        table.fill(self.slots, Entries(self.keys, self.values), used=0)


def read_table(table: Table, state: dict[str, Any], last_tick: int) -> Slots:
    """Check a table that was dumped.

    Args:
        table: one of the same capacity, left unchanged.
        state: what `dump_table` returned.
        last_tick: the record's time; no slot is younger.

    Raises:
        RecordError: if the state is damaged.

    >>> table, other = Table(buckets=2), Table(buckets=2)
    >>> read_table(other, dump_table(table), last_tick=1).restore(other)
    """
    if (layout := read_field(state, "layout", int)) != _LAYOUT:
        raise RecordError(f"the state has table layout {layout}, this version reads {_LAYOUT}")
    bits = _read_column(state, "used", np.uint8, len(table.keys) // 8)
    slots = np.unpackbits(bits).nonzero()[0]
    keys = _read_column(state, "keys", np.uint64, len(slots))
    values = np.empty(len(slots), VALUE)
    for name in VALUE.names or ():
        values[name] = _read_column(state, name, VALUE[name], len(slots))
    _check_rows(table, slots, keys, values, last_tick)
    return Slots(slots, keys, values)


def read_field(state: dict[str, Any], name: str, kind: type[_T]) -> _T:
    """Return one entry of a state.

    Raises:
        RecordError: if it is missing or of another type.

    >>> read_field({"seed": 1}, "seed", int)
    1
    """
    value = state.get(name)
    if not isinstance(value, kind):
        raise RecordError(
            f"the state's {name!r} must be {kind.__name__}, got {type(value).__name__}: "
            "pass what state_dict returned"
        )
    return value


def read_position(state: dict[str, Any], clock: Callable[[], float]) -> Position:
    """Return what a record knows apart from its rows.

    Args:
        state: what `LossRecord.position` returned.
        clock: what the record's time goes on with.

    Raises:
        RecordError: if the state is damaged.

    >>> from adasel_stream.record import LossRecord
    >>> read_position(LossRecord(capacity=100).position(), clock=lambda: 0.0).version
    0
    """
    counts = read_field(state, "counts", dict)
    ticks = Ticks(clock)
    ticks.load_state_dict(read_field(state, "ticks", dict))
    return Position(
        counts={name: read_field(counts, name, int) for name in COUNTS},
        evicted_ages=read_numbers(state, "evicted_ages", EVICTED_CELLS),
        version=read_field(state, "version", int),
        ticks=ticks,
        cursors=read_cursors(state),
    )


def read_cursors(state: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return a state's cursors: for each writer a sequence and a number of rows, at least 0.

    Raises:
        RecordError: if they are missing or something else.

    >>> read_cursors({"cursors": {"server-1": [3, 128]}})
    {'server-1': (3, 128)}
    """
    cursors: dict[str, tuple[int, int]] = {}
    for writer, cursor in read_field(state, "cursors", dict).items():
        match writer, cursor:
            case str(), [int(sequence), int(rows)] if sequence >= 0 and rows >= 0:
                cursors[writer] = (sequence, rows)
            case _:
                raise RecordError("the state is damaged: a cursor is no pair of whole numbers")
    return cursors


def read_numbers(state: dict[str, Any], name: str, length: int) -> list[int]:
    """Return one list of whole numbers of a state, each at least 0.

    Raises:
        RecordError: if it is missing or something else.

    >>> read_numbers({"evicted_ages": [0, 3]}, "evicted_ages", 2)
    [0, 3]
    """
    numbers = read_field(state, name, list)
    if len(numbers) != length or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise RecordError(f"the state is damaged: {name!r} must be {length} whole numbers")
    return numbers


def _read_column(
    state: dict[str, Any], name: str, dtype: npt.DTypeLike, length: int
) -> npt.NDArray[Any]:
    """Return one array of a state."""
    column = read_field(state, name, np.ndarray)
    if column.dtype != dtype or column.shape != (length,):
        raise RecordError(
            f"the state's {name!r} must be {np.dtype(dtype)} of shape ({length},), "
            f"got {column.dtype} of shape {column.shape}"
        )
    return column


def _check_rows(
    table: Table,
    slots: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
    values: npt.NDArray[Any],
    last_tick: int,
) -> None:
    """Refuse rows that no record could hold: searches rely on these properties."""
    ordered = np.sort(keys)
    for holds, what in (
        ((table.buckets_of(keys) == slots // 8).all(), "a key is in a bucket not its own"),
        ((ordered[1:] != ordered[:-1]).all(), "a key is there twice"),
        ((values["tick"] > 0).all(), "a slot in use has tick 0"),
        ((values["tick"] <= last_tick).all(), "a slot is younger than the record"),
        (np.isfinite(values["ema"]).all(), "an average is not finite"),
        (np.isfinite(values["last"]).all(), "a loss is not finite"),
    ):
        if not holds:
            raise RecordError(f"the state is damaged: {what}")
