"""The loss record's tests share these: a model in plain Python, a clock, ids and comparisons."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
import pytest

from adasel_stream.record import LossRecord, holding
from adasel_stream.record.engine import Engine
from adasel_stream.record.engines import make_engine
from adasel_stream.record.table import Table
from adasel_stream.record.ticks import FIRST_TICK

WORD = 2**64
"""How many keys there are."""

LIMITS = np.iinfo(np.int64)
"""The smallest and the largest id."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest loss that a record takes."""


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        """Return the set time."""
        return self.now_s


class Row(TypedDict):
    """What the model keeps of one id."""

    key: int
    ema: float
    last: float
    tick: int
    count: int
    version: int


def key_of(id_: int, seed: int) -> int:
    """Mix an id as the record documents it, in plain integers."""
    return _finalise((id_ % WORD) ^ _finalise((seed + 0x9E3779B97F4A7C15) % WORD))


def _finalise(bits: int) -> int:
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        bits = (bits ^ (bits >> 33)) * factor % WORD
    return bits ^ (bits >> 33)


def bucket_first(key: int) -> int:
    """Return what orders keys by bucket: their bits after the top 10, then those."""
    return (key << 10) % WORD | key >> 54


def bucket_of(key: int, buckets: int) -> int:
    """Return the bucket from the 32 bits after the top 10."""
    return (key >> 22) % 2**32 * buckets >> 32


Observed: TypeAlias = tuple[float, int, int]
"""One loss that was recorded, with its tick and version."""


class Model:
    """A record as a dict of buckets, one row after the other."""

    def __init__(self, buckets: int, decay: float, seed: int) -> None:
        self.buckets: dict[int, list[Row | None]] = {b: [None] * 8 for b in range(buckets)}
        self.decay, self.seed, self.tick = decay, seed, FIRST_TICK
        self.dropped = self.rejected = 0
        self.evicted_ages_s: list[int] = []

    def way(self, key: int) -> tuple[list[Row | None], int | None]:
        """Return a key's bucket and where in it the key is."""
        bucket = self.buckets[bucket_of(key, len(self.buckets))]
        ways = [way for way, row in enumerate(bucket) if row is not None and row["key"] == key]
        return bucket, ways[0] if ways else None

    def update(
        self,
        ids: list[int],
        losses: list[float],
        versions: int | list[int] = 0,
        ages_s: int | list[int] = 0,
    ) -> None:
        """Record a batch; one version and one age are those of all rows."""
        versions = [versions] * len(ids) if isinstance(versions, int) else versions
        ages_s = [ages_s] * len(ids) if isinstance(ages_s, int) else ages_s
        groups: dict[int, list[Observed]] = {}
        for id_, loss, version, age_s in zip(ids, losses, versions, ages_s, strict=True):
            if abs(loss) <= LARGEST:
                tick = min(self.tick, max(1, self.tick - age_s))
                observed = (float(np.float32(loss)), tick, version % 65536)
                groups.setdefault(key_of(id_, self.seed), []).append(observed)
            else:
                self.rejected += 1
        new: dict[int, list[Row]] = {}
        for key in sorted(groups, key=bucket_first):
            bucket, way = self.way(key)
            old = None if way is None else bucket[way]
            row = self._row(key, groups[key], old)
            if way is None:
                new.setdefault(bucket_of(key, len(self.buckets)), []).append(row)
            else:
                bucket[way] = row
        for number, rows in new.items():
            self._insert(self.buckets[number], sorted(rows, key=lambda row: -row["tick"]))

    def _insert(self, bucket: list[Row | None], rows: list[Row]) -> None:
        turn = rows[0]["key"] % 8
        ages = [(row["tick"] if row else 0, way ^ turn) for way, row in enumerate(bucket)]
        placed = 0
        for row, (tick, turned) in zip(rows, sorted(ages), strict=False):
            if row["tick"] >= tick:
                bucket[turned ^ turn] = row
                placed += 1
                if tick > 0:
                    self.evicted_ages_s.append(self.tick - tick)
        self.dropped += len(rows) - placed

    def _row(self, key: int, observed: list[Observed], old: Row | None) -> Row:
        mean = sum(sorted(loss for loss, _, _ in observed)) / len(observed)
        ema = mean if old is None else mean + self.decay ** len(observed) * (old["ema"] - mean)
        tick, version = max((tick, version) for _, tick, version in observed)
        row = Row(
            key=key,
            ema=float(np.float32(ema)),
            last=float(np.float32(mean)),
            tick=tick,
            count=min(65535, len(observed) + (old["count"] if old else 0)),
            version=version,
        )
        if old is not None and tick < old["tick"]:
            row.update({"last": old["last"], "tick": old["tick"], "version": old["version"]})
        return row

    def columns(self) -> dict[str, list[Any]]:
        """Return the slots in use and their rows, as `state_dict` lists them."""
        rows = [row for number in sorted(self.buckets) for row in self.buckets[number]]
        columns: dict[str, list[Any]] = {"used": [row is not None for row in rows]}
        held = [row for row in rows if row is not None]
        columns["keys"] = [row["key"] for row in held]
        for name in ("ema", "last", "tick", "count", "version"):
            columns[name] = [row[name] for row in held]
        return columns


def ints(*ids: int) -> npt.NDArray[np.int64]:
    """Return an array of ids."""
    return np.array(ids, np.int64)


def floats(*losses: float) -> npt.NDArray[np.float32]:
    """Return an array of losses."""
    return np.array(losses, np.float32)


@contextmanager
def computing_with(engine: str) -> Iterator[None]:
    """Let every record that is constructed meanwhile with engine "auto" take this one."""

    def make(name: str, table: Table, seed: int) -> Engine:
        return make_engine(engine if name == "auto" else name, table, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holding, "make_engine", make)
        yield


def same_bucket(count: int, buckets: int, seed: int = 0) -> list[int]:
    """Return ids that share bucket 0."""
    ids = (id_ for id_ in range(10**6) if bucket_of(key_of(id_, seed), buckets) == 0)
    return [next(ids) for _ in range(count)]


def assert_same_state(one: LossRecord, other: LossRecord) -> None:
    """Compare two records slot for slot."""
    assert len(one) == len(other)
    _assert_same(one.state_dict(), other.state_dict())


def _assert_same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if isinstance(value, dict):
            _assert_same(value, theirs[name])
        else:
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def assert_is_model(record: LossRecord, model: Model) -> None:
    """Compare a record with the model slot for slot."""
    expected, table = model.columns(), record.state_dict()["table"]
    assert np.unpackbits(table["used"]).astype(bool).tolist() == expected["used"]
    for name in ("keys", "last", "tick", "count", "version"):
        assert table[name].tolist() == expected[name], name
    np.testing.assert_allclose(table["ema"], expected["ema"], rtol=1e-6)
    assert len(record) == len(expected["keys"])
    counts = record.counts
    assert counts["evicted"] == len(model.evicted_ages_s) == record.evicted_ages.counts.sum()
    assert record.evicted_ages.sum_s == sum(model.evicted_ages_s)
    assert (counts["dropped"], counts["rejected"]) == (model.dropped, model.rejected)
