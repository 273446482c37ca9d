"""A survey of a record as numbers for machines."""

import os
from typing import Any, Final

import numpy as np

from adasel_stream.inspection.histograms import cells, loss_bounds
from adasel_stream.inspection.sketch import Sketch
from adasel_stream.inspection.survey import SHARES, Survey
from adasel_stream.record.evicted import EVICTED_AGE_BOUNDS_S, read_ages
from adasel_stream.record.snapshots.manifest import last_tick

__all__ = ["numbers"]

_KINDS: Final = ("last", "ema", "age_s", "count")


def numbers(seen: Survey, now_s: float) -> dict[str, Any]:
    """Describe a survey in values that JSON can hold.

    Histograms count what is below their first bound, between any two, and from the last on; those
    of ages what is up to each bound, and above the last.

    Args:
        seen: what was found.
        now_s: seconds since 1970.
    """
    manifests = [manifest for _, manifest in seen.manifests]
    written_s = [manifest.created_s for manifest in manifests if manifest.generation]
    return {
        "path": os.fspath(seen.path),
        "world_size": manifests[0].world_size,
        "layout": max(manifest.layout for manifest in manifests),
        "seed": manifests[0].seed,
        "decay": manifests[0].decay,
        "entries": seen.entries,
        "entries_exact": seen.exact,
        "capacity": seen.capacity,
        "record_bytes": seen.record_bytes,
        "disk_bytes": seen.disk_bytes,
        "saved_s": max(written_s, default=None),
        "snapshot_age_s": now_s - max(written_s) if written_s else None,
        "files": _files(seen),
        "quantiles": {
            kind: dict(zip(map(str, SHARES), getattr(seen, kind).quantiles(SHARES), strict=False))
            for kind in _KINDS
        },
        "losses": {"last": _histogram(seen.last), "ema": _histogram(seen.ema)},
        "age_s": {"bounds": EVICTED_AGE_BOUNDS_S, "counts": read_ages(seen.ages).counts.tolist()},
        "evicted_age_s": {
            "bounds": EVICTED_AGE_BOUNDS_S,
            "counts": read_ages(seen.evicted).counts.tolist(),
            "sum": read_ages(seen.evicted).sum_s,
        },
        "versions": {
            str(version): int(seen.versions[version])
            for version in np.flatnonzero(seen.versions).tolist()
        },
        "pending_rows": seen.pending_rows,
        "counters": seen.counters,
        "pending_counters": seen.pending_counters,
        "cursors": seen.cursors,
    }


def _files(seen: Survey) -> list[dict[str, Any]]:
    return [
        {
            "folder": folder.name,
            "rank": manifest.rank,
            "name": file.name,
            "kind": file.kind,
            "rows": file.rows,
            "bytes": file.bytes,
            "youngest_s": last_tick(manifest) - file.until_tick,
            "oldest_s": last_tick(manifest) - file.since_tick,
        }
        for folder, manifest in seen.manifests
        for file in manifest.files
    ]


def _histogram(sketch: Sketch) -> dict[str, Any]:
    if not sketch.size:
        return {"bounds": [], "counts": []}
    _, low, *_, high, _ = sketch.quantiles(SHARES)
    bounds = loss_bounds(low, high)
    return {"bounds": bounds, "counts": cells(sketch, bounds)}
