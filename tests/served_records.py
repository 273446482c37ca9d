"""A record that only counts, for tests of what serving processes write."""

import contextlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adasel_stream.atomic import replace_file
from adasel_stream.ownership import LOCK_NAME
from adasel_stream.serving.served import Cursor


class CountingRecord:
    """Count how often each id was applied, and note the last of everything else.

    Attributes:
        applied: by id, losses applied.
        losses: by id, the last loss, its version and its age.
        expected: by id, the last prediction.
    """

    def __init__(self, *, pending: bool = False, kept: bool = False) -> None:
        self.lock = threading.RLock()
        self.cursors: dict[str, Cursor] = {}
        self.saved_cursors: dict[str, Cursor] | None = {} if kept else None
        self.copying = False
        self.pending: object | None = "pending" if pending else None
        self.applied: Counter[int] = Counter()
        self.losses: dict[int, tuple[float, int, float]] = {}
        self.expected: dict[int, float] = {}
        self.calls = 0

    def update(
        self,
        ids: npt.NDArray[np.int64],
        losses: npt.NDArray[np.float32],
        *,
        version: npt.NDArray[np.uint16],
        age_s: npt.NDArray[np.float64],
    ) -> None:
        """Count losses."""
        assert len(ids) == len(losses) == len(version) == len(age_s) > 0
        self.calls += 1
        self.applied.update(ids.tolist())
        found = zip(losses.tolist(), version.tolist(), age_s.tolist(), strict=True)
        self.losses.update(zip(ids.tolist(), found, strict=True))

    def expect(
        self,
        ids: npt.NDArray[np.int64],
        predictions: npt.NDArray[np.float32],
        *,
        version: npt.NDArray[np.uint16],
        age_s: npt.NDArray[np.float64],
    ) -> None:
        """Note predictions."""
        assert len(ids) == len(predictions) == len(version) == len(age_s) > 0
        self.expected.update(zip(ids.tolist(), predictions.tolist(), strict=True))

    def save(self, path: Path) -> None:
        """Write counts and cursors to one file, as a snapshot of them would be."""
        state = {"applied": list(self.applied.items()), "cursors": list(self.cursors.items())}
        replace_file(path, [json.dumps(state).encode()], durable=False)
        self.saved_cursors = dict(self.cursors)

    @classmethod
    def load(cls, path: Path) -> "CountingRecord":
        """Go on from a file, or begin if there is none."""
        record = cls(kept=True)
        if path.exists():
            state = json.loads(path.read_bytes())
            record.applied = Counter(dict(state["applied"]))
            record.cursors = {writer: (first, rows) for writer, (first, rows) in state["cursors"]}
            record.saved_cursors = dict(record.cursors)
        return record


@contextlib.contextmanager
def small_files_only(size: int) -> Iterator[None]:
    """Have the kernel refuse to let a file grow over `size` bytes, as a full disk would."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def listed(folder: Path, ending: str = "") -> list[str]:
    """Return the names in `folder` that end so, sorted, without that of the feed's lock."""
    return sorted(n for n in os.listdir(folder) if n.endswith(ending) and n != LOCK_NAME)
