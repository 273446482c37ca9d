"""What a record holds as a whole: one pass over its files, in bounded memory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.inspection.opening import opened, rows_of
from adasel_stream.inspection.sketch import Sketch
from adasel_stream.record.entries import VALUE, Entries
from adasel_stream.record.evicted import EVICTED_CELLS, count_ages
from adasel_stream.record.snapshots.manifest import Cursors, Manifest, last_tick
from adasel_stream.record.snapshots.reading import merged
from adasel_stream.record.snapshots.upkeep import Progress, unheard
from adasel_stream.record.state import read_field, read_numbers

__all__ = ["SHARES", "Survey", "survey"]

SHARES: Final = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
"""Shares of instances whose quantiles are told."""

_KEY_BYTES: Final = 8
_VERSIONS: Final = 2**16


@dataclass(slots=True)
class Survey:
    """A record as its last snapshots have it; ages are those of the moment when it was saved.

    Attributes:
        path: the record's folder.
        manifests: of each rank, with the rank's folder.
        entries: distinct ids in the files.
        last: last losses.
        ema: moving averages of the losses.
        age_s: ages of the last losses, in seconds.
        count: recorded losses of each id, 65,535 standing for any larger number.
        ages: ages of the last losses, as `read_ages` reads them.
        versions: ids whose last loss is of each model version, shape (65,536,), int64.
    """

    path: Path
    manifests: list[tuple[Path, Manifest]]
    entries: int = 0
    last: Sketch = field(default_factory=Sketch)
    ema: Sketch = field(default_factory=Sketch)
    age_s: Sketch = field(default_factory=Sketch)
    count: Sketch = field(default_factory=Sketch)
    ages: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(EVICTED_CELLS, np.int64))
    versions: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_VERSIONS, np.int64))

    @property
    def capacity(self) -> int:
        """Slots of all ranks."""
        return sum(manifest.capacity for _, manifest in self.manifests)

    @property
    def record_bytes(self) -> int:
        """What the trainers' records take of memory."""
        return self.capacity * (_KEY_BYTES + VALUE.itemsize)

    @property
    def disk_bytes(self) -> int:
        """Size of all files of the snapshots, manifests left out."""
        return sum(file.bytes for _, manifest in self.manifests for file in manifest.files)

    @property
    def exact(self) -> bool:
        """Whether the record held all of `entries`: files do not tell which ids made room."""
        return not self.counters.get("evicted", 0)

    @property
    def counters(self) -> dict[str, int]:
        """What became of rows since the beginning, see `LossRecord.counts`; all ranks added up."""
        return self._added("counts")

    @property
    def pending_counters(self) -> dict[str, int]:
        """What became of predictions, see `PendingLabels.counts`; all ranks added up."""
        return self._added("pending_counts")

    @property
    def evicted(self) -> npt.NDArray[np.int64]:
        """Ages at which losses made room, as `read_ages` reads them; all ranks added up."""
        cells = np.zeros(EVICTED_CELLS, np.int64)
        for position in self._positions:
            cells += np.array(read_numbers(position, "evicted_ages", EVICTED_CELLS), np.int64)
        return cells

    @property
    def cursors(self) -> Cursors:
        """How far each serving writer's segments were applied, by the rank that is farthest."""
        farthest: Cursors = {}
        for _, manifest in self.manifests:
            for writer, cursor in manifest.cursors.items():
                farthest[writer] = max(cursor, farthest.get(writer, cursor))
        return farthest

    @property
    def pending_rows(self) -> int | None:
        """Predictions that wait for labels, None if no rank keeps any."""
        files = [manifest.pending for _, manifest in self.manifests]
        rows = [file.rows for file in files if file is not None]
        return sum(rows) if rows else None

    def _added(self, field: str) -> dict[str, int]:
        added: dict[str, int] = {}
        for position in self._positions:
            for name, count in read_field(position, field, dict).items():
                added[name] = added.get(name, 0) + int(count)
        return added

    @property
    def _positions(self) -> list[dict[str, Any]]:
        """What ranks say of themselves; one that was never saved says nothing."""
        return [manifest.position for _, manifest in self.manifests if manifest.generation]

    def add(self, group: Entries, now: int) -> None:
        """Count a group of distinct ids of a record whose time is `now`."""
        values = group.values
        ages_s = np.maximum(now - values["tick"].astype(np.int64), 0)
        self.entries += len(values)
        self.last.add(values["last"])
        self.ema.add(values["ema"])
        self.count.add(values["count"])
        self.age_s.add(ages_s)
        count_ages(self.ages, ages_s)
        self.versions += np.bincount(values["version"], minlength=_VERSIONS)


def survey(path: Path, progress: Progress = unheard) -> Survey:
    """Read all of a record's snapshots and count what is there; it may be in use.

    Args:
        path: the record's folder.
        progress: told of rows read.

    Raises:
        RecordError: if there is no record, it is damaged, or a newer release wrote it.
    """
    with opened(path) as snapshots:
        seen = Survey(path, [(snapshot.folder, snapshot.manifest) for snapshot in snapshots])
        total = rows_of(snapshots)
        for snapshot in snapshots:
            now = last_tick(snapshot.manifest)
            for group in merged(snapshot):
                seen.add(group, now)
                progress(seen.entries, total)
        progress(total, total)
    return seen
