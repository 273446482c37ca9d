"""A survey of a record as a page of text, 100 columns wide at most."""

import os
import time
from typing import Final

import numpy as np

from adasel_stream.inspection.histograms import age_lines, loss_bounds, loss_lines
from adasel_stream.inspection.survey import SHARES, Survey
from adasel_stream.inspection.wording import (
    age_words,
    aligned,
    figure,
    share_words,
    shown,
    size_words,
)
from adasel_stream.record.evicted import read_ages
from adasel_stream.record.snapshots.manifest import last_tick

__all__ = ["overview"]

_MOST: Final = 8
_FILES: Final = 24


def overview(seen: Survey, now_s: float) -> str:
    """Tell what a record holds.

    Args:
        seen: what was found.
        now_s: seconds since 1970.
    """
    parts = [_summary(seen, now_s), _files(seen)]
    if seen.entries:
        parts += [_quantiles(seen), _losses(seen), _ages(seen), _versions(seen)]
    parts += [
        _counters(seen.counters, "rows"),
        _counters(seen.pending_counters, "predictions"),
        _evicted(seen),
        _writers(seen),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _summary(seen: Survey, now_s: float) -> list[str]:
    manifests = [manifest for _, manifest in seen.manifests]
    first = manifests[0]
    version = first.position.get("version", 0)
    files = sum(len(manifest.files) for manifest in manifests)
    rows = [
        ["record", repr(os.fspath(seen.path))],
        ["saved", _saved(seen, now_s)],
        *_occupancy(seen),
        ["on disk", f"{size_words(seen.disk_bytes)} in {files:,} files"],
        ["in memory", f"{size_words(seen.record_bytes)} while trainers have it open"],
        ["ranks", f"{len(manifests):,} of {first.world_size:,}, layout {first.layout:,}"],
        ["settings", f"seed {first.seed}, decay {first.decay:g}, model version {version}"],
    ]
    if seen.pending_rows is not None:
        rows.append(["pending", f"{seen.pending_rows:,} predictions wait for their labels"])
    return aligned(rows, left=2)


def _occupancy(seen: Survey) -> list[list[str]]:
    held = min(seen.entries, seen.capacity)
    words = f"{held:,} in {seen.capacity:,} slots ({share_words(held, seen.capacity)})"
    if seen.exact:
        return [["instances", words]]
    return [
        ["instances", f"at most {words}"],
        ["", f"files hold {seen.entries:,}; some may be forgotten, having made room for others"],
    ]


def _saved(seen: Survey, now_s: float) -> str:
    moments_s = [manifest.created_s for _, manifest in seen.manifests if manifest.generation]
    if not moments_s:
        return "not yet, its first snapshot is still to come"
    last_s, first_s = max(moments_s), min(moments_s)
    words = f"{_when(last_s)}, {age_words(now_s - last_s)} ago"
    others = len(moments_s) - 1
    return words + (
        f", the rank that is farthest behind {age_words(now_s - first_s)} ago" * bool(others)
    )


def _when(moment_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment_s))


def _files(seen: Survey) -> list[str]:
    rows = [["file", "rows", "size", "youngest", "oldest"]]
    for folder, manifest in seen.manifests:
        now = last_tick(manifest)
        for file in manifest.files:
            name = file.name if len(seen.manifests) == 1 else f"{folder.name}/{file.name}"
            ages = [age_words(now - tick) for tick in (file.until_tick, file.since_tick)]
            rows.append([name, f"{file.rows:,}", size_words(file.bytes), *ages])
    return _shortened(aligned(rows), 1 + _FILES) if len(rows) > 1 else []


def _quantiles(seen: Survey) -> list[str]:
    names = ["least", *(f"{share:.0%}" for share in SHARES[1:-1]), "greatest"]
    rows = [
        ["", *names],
        ["last loss", *map(figure, seen.last.quantiles(SHARES))],
        ["moving average", *map(figure, seen.ema.quantiles(SHARES))],
        ["age when saved", *map(age_words, seen.age_s.quantiles(SHARES))],
        ["losses recorded", *map(figure, seen.count.quantiles(SHARES))],
    ]
    return aligned(rows)


def _losses(seen: Survey) -> list[str]:
    _, low, *_, high, _ = seen.last.quantiles(SHARES)
    lines = loss_lines([seen.last, seen.ema], loss_bounds(low, high))
    return aligned([["loss", "last", "", "moving average", ""], *lines], left=1)


def _ages(seen: Survey) -> list[str]:
    return ["age when saved", *aligned(age_lines(read_ages(seen.ages).counts.tolist()))]


def _versions(seen: Survey) -> list[str]:
    used = np.flatnonzero(seen.versions)
    common = used[np.argsort(-seen.versions[used], kind="stable")]
    rows = [
        [str(version), f"{count:,}", share_words(count, seen.entries)]
        for version, count in zip(
            common[:_MOST].tolist(), seen.versions[common[:_MOST]].tolist(), strict=True
        )
    ]
    lines = aligned([["model version", "instances", "share"], *rows])
    others = seen.entries - int(seen.versions[common[:_MOST]].sum())
    more = len(used) - _MOST
    return lines + ([f"and {more:,} other versions of {others:,} instances"] * (more > 0))


def _counters(counters: dict[str, int], what: str) -> list[str]:
    rows = [[name.replace("_", " "), f"{count:,}"] for name, count in counters.items()]
    return aligned([[f"{what} since the beginning", ""], *rows]) if rows else []


def _evicted(seen: Survey) -> list[str]:
    lines = age_lines(read_ages(seen.evicted).counts.tolist())
    return ["age when evicted", *aligned(lines)] if lines else []


def _writers(seen: Survey) -> list[str]:
    rows = [[shown(name), f"{at:,}", f"{rows:,}"] for name, (at, rows) in seen.cursors.items()]
    header = ["serving writer", "segment", "rows of it"]
    return _shortened(aligned([header, *sorted(rows)]), 1 + _MOST) if rows else []


def _shortened(lines: list[str], most: int) -> list[str]:
    left_out = len(lines) - most
    return lines[:most] + ([f"and {left_out:,} more, see --json"] if left_out > 0 else [])
