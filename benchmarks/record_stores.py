"""Stores that one could keep losses in instead, with the record's `update` and `lookup`.

For `benchmarks/record.py`. Each keeps average, last loss, second and count of an id, durability
off, and is filled in the order of its keys, which is the fastest way in for all of them.
"""

import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import numpy.typing as npt

__all__ = ["DictStore", "LmdbStore", "SqliteStore"]

Ids = npt.NDArray[np.int64]
Losses = npt.NDArray[np.float32]
_DECAY = 0.9
_VALUE = struct.Struct("<ffII")
_VARIABLES = 512


class DictStore:
    """A Python dict: id -> average, last loss, second, count."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[float, float, int, int]] = {}

    def update(self, ids: Ids, losses: Losses) -> None:
        """Record losses, one row after the other."""
        rows, second = self._rows, int(time.time())
        for id_, loss in zip(ids.tolist(), losses.tolist(), strict=True):
            ema, _, _, count = rows.get(id_, (loss, loss, second, 0))
            rows[id_] = (loss + _DECAY * (ema - loss), loss, second, count + 1)

    def lookup(self, ids: Ids) -> Losses:
        """Return last losses, 0 where unknown."""
        rows, unknown = self._rows, (0.0, 0.0, 0, 0)
        found = (rows.get(id_, unknown)[1] for id_ in ids.tolist())
        return np.fromiter(found, np.float32, len(ids))


class LmdbStore:
    """LMDB without sync, keys big-endian so that their order is that of the ids."""

    def __init__(self, folder: Path) -> None:
        self._env = lmdb.open(
            str(folder), map_size=2**34, sync=False, metasync=False, writemap=True, lock=False
        )

    def update(self, ids: Ids, losses: Losses) -> None:
        """Record losses in one transaction: read all, then write all."""
        keys, second = _keys(ids), int(time.time())
        with self._env.begin(write=True) as transaction:
            cursor = transaction.cursor()
            held = dict(cursor.getmulti(keys))
            cursor.putmulti(list(_revised(keys, losses, held, second)))

    def lookup(self, ids: Ids) -> Losses:
        """Return last losses, 0 where unknown."""
        keys = _keys(ids)
        with self._env.begin() as transaction:
            held = dict(transaction.cursor().getmulti(keys))
        found = (_VALUE.unpack(held[key])[1] if key in held else 0.0 for key in keys)
        return np.fromiter(found, np.float32, len(keys))


class SqliteStore:
    """SQLite with a write-ahead log and sync off."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        for line in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=OFF",
            "PRAGMA cache_size=-1000000",
            "CREATE TABLE losses (id INTEGER PRIMARY KEY, ema, last, second, count)",
        ):
            self._database.execute(line)

    def update(self, ids: Ids, losses: Losses) -> None:
        """Record losses in one transaction."""
        second = int(time.time())
        rows = (
            (id_, loss, loss, second)
            for id_, loss in zip(ids.tolist(), losses.tolist(), strict=True)
        )
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT INTO losses VALUES (?, ?, ?, ?, 1) ON CONFLICT (id) DO UPDATE SET "
            f"ema = excluded.last + {_DECAY} * (ema - excluded.last), last = excluded.last, "
            "second = excluded.second, count = count + 1",
            rows,
        )
        self._database.execute("COMMIT")

    def lookup(self, ids: Ids) -> Losses:
        """Return last losses, 0 where unknown."""
        wanted: list[int] = ids.tolist()
        held: dict[int, float] = {}
        for start in range(0, len(wanted), _VARIABLES):
            part = wanted[start : start + _VARIABLES]
            query = f"SELECT id, last FROM losses WHERE id IN ({','.join('?' * len(part))})"
            held.update(self._database.execute(query, part))
        return np.fromiter((held.get(id_, 0.0) for id_ in wanted), np.float32, len(wanted))


def _keys(ids: Ids) -> list[bytes]:
    packed = ids.astype(">u8").tobytes()
    return [packed[start : start + 8] for start in range(0, len(packed), 8)]


def _revised(
    keys: list[bytes], losses: Losses, held: dict[bytes, bytes], second: int
) -> Iterator[tuple[bytes, bytes]]:
    for key, loss in zip(keys, losses.tolist(), strict=True):
        ema, _, _, count = _VALUE.unpack(held[key]) if key in held else (loss, loss, second, 0)
        yield key, _VALUE.pack(loss + _DECAY * (ema - loss), loss, second, count + 1)
