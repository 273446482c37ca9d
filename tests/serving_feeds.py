"""What the tests of feeds share: a clock, published segments, and polling to the end."""

from pathlib import Path
from typing import Any

import numpy as np

from adasel_stream.serving import LossFeed, ServedRecord
from adasel_stream.serving.names import segment_name
from adasel_stream.serving.segment import ROW, write_segment

NOW_S = 10_000.0
A, B, C = ("aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def put(folder: Path, writer: str, sequence: int, *ids: int, **fields: Any) -> Path:
    """Publish a segment of rows with these ids."""
    rows = np.zeros(len(ids), ROW)
    rows["id"] = ids
    for name, value in fields.items():
        rows[name] = value
    write_segment(folder, writer, sequence, rows.view(np.uint8).data)
    return folder / segment_name(writer, sequence)


def drain(feed: LossFeed, record: ServedRecord, clock: Clock, max_rows: int = 16_384) -> int:
    """Poll until nothing is left, and return the rows taken."""
    taken = 0
    for _ in range(10_000):
        clock.now_s += 1.0
        rows = feed.poll(record, max_rows)
        taken += rows
        if not rows and not feed.backlog_segments and feed._look is None:
            return taken
    raise AssertionError("the backlog never ended")
