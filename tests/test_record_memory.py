"""Memory of a record while ids that were never seen before keep coming."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from adasel_stream.record import LossRecord, PendingLabels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc for resident memory")

_BATCH = 65_536
_ALLOWED_BYTES = 4 * 2**20


def resident_bytes() -> int:
    """Return how much memory of this process is in the machine."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def grown_bytes(record: LossRecord, rows: int) -> int:
    """Upsert ever-new ids, predictions too if there is room for some, and return the growth."""
    losses = np.linspace(0, 1, _BATCH, dtype=np.float32)
    before = 0
    for number in range(20 + rows // _BATCH):
        if number == 20:  # temporary arrays of a batch have been there by now
            before = resident_bytes()
        ids = np.arange(number * _BATCH, (number + 1) * _BATCH)
        record.update(ids, losses)
        if record.pending is not None:
            record.expect(ids, losses)
    return resident_bytes() - before


def kept(engine: str) -> int:
    """Give the growth of a record and its predictions, which stay as large as they were made."""
    pending = PendingLabels(200_000, np.subtract, ttl_s=None)
    record = LossRecord(200_000, engine=engine, pending=pending)
    grown = grown_bytes(record, rows=1_500_000)
    assert record.record_bytes == pending.record_bytes == 24 * 200_000
    assert max(len(record), len(pending)) <= 200_000
    assert record.counts["evicted"] > 1_500_000
    return grown


def in_a_process(measure: Callable[[str], int], engine: str) -> int:
    """Measure in a process of its own, whose memory no other test has used before."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, engine).result()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_memory_does_not_grow_with_the_ids(engine: str) -> None:
    """Three bytes of each of 1.5 million new ids would be more than is allowed."""
    assert in_a_process(kept, engine) < _ALLOWED_BYTES


@pytest.mark.verify
@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_memory_is_constant_over_a_hundred_million_new_ids(engine: str) -> None:
    """Not a twentieth of a byte an id is kept beyond the slots."""
    record = LossRecord(1_000_000, engine=engine)
    assert grown_bytes(record, rows=100_000_000) < _ALLOWED_BYTES
    assert record.record_bytes == 24 * 1_000_000
    assert record.counts["evicted"] > 95_000_000
