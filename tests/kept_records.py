"""Snapshots' tests share these: kept records, what they hold, and damage to their files."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from adasel_stream.record import LossRecord
from adasel_stream.record.entries import Entries
from tests.record_model import Clock

NEVER_S = 1e6
"""A time between snapshots that no test reaches: all are asked for."""

Content = dict[int, tuple[Any, ...]]
"""Of each key its average, last loss, tick, count and version."""


@contextmanager
def kept(path: Path, capacity: int = 4000, **arguments: Any) -> Iterator[LossRecord]:
    """Open a record, and give its folder up at the end without a last snapshot.

    Nothing waits for the disk: what a process wrote outlives it in any case.
    """
    clock = arguments.pop("clock", None) or Clock()
    save_every_s = arguments.pop("save_every_s", NEVER_S)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        record = LossRecord.open(
            path,
            capacity,
            save_every_s=save_every_s,
            clock=clock,
            engine="numpy",  # nothing here depends on it, and the other is compiled first
            **arguments,
        )
        try:
            yield record
        finally:
            record.close(save=False)


def content(record: LossRecord) -> Content:
    """Return all rows of a record by key."""
    return content_of([record.entries(0, record.capacity)])


def content_of(groups: list[Entries]) -> Content:
    """Return rows by key, the last of each."""
    rows = ((group.keys.tolist(), group.values.tolist()) for group in groups)
    return {key: value for keys, values in rows for key, value in zip(keys, values, strict=True)}


def saved_content(path: Path, **arguments: Any) -> Content:
    """Restore a record from its folder and return all rows by key."""
    with kept(path, **arguments) as record:
        return content(record)


def learn(record: LossRecord, rng: np.random.Generator, ids: npt.NDArray[np.int64]) -> None:
    """Update a record with random losses of some ids, a second later than the last time."""
    record.update(ids, rng.random(len(ids)), version=int(rng.integers(9)))


def rank_folder(path: Path, rank: int = 0, world_size: int = 1) -> Path:
    """Name a rank's folder, as the documentation shows it."""
    return path / f"rank-{rank:05d}-of-{world_size:05d}"


def files_of(path: Path, kind: str = "*") -> list[Path]:
    """Return the Parquet files of one kind below a record's folder, oldest first."""
    return sorted(path.glob(f"rank-*/{kind}-*.parquet"), key=lambda file: file.name[-20:])


def damage(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the content of a file."""
    file.write_bytes(change(file.read_bytes()))


def flip_middle(content: bytes) -> bytes:
    """Flip one bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
