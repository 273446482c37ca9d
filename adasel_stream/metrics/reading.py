"""From the plain numbers of a run to values by label, snapshots and saved state."""

import math
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from adasel_stream.metrics.families import FAMILIES, Family
from adasel_stream.metrics.histogram import Histogram

__all__ = ["Run", "identity", "restore", "saved", "snapshot", "values"]

_STATE_VERSION = 1


class Run(Protocol):
    """The part of `Metrics` that is read by name; the rest are the families' attributes."""

    methods: tuple[str, ...]
    slices: tuple[str, ...]
    run: str
    rank: int
    batch_size: int
    policy: str
    score_mode: str
    run_id: str

    def refresh(self) -> None:
        """Read what is counted elsewhere."""
        ...


def values(run: Run, family: Family) -> dict[str, Any]:
    """Return a family's numbers or histograms by label, under "" where it has no label.

    Only declared names are returned, so that no label can come from data.
    """
    held = getattr(run, family.name)
    if not family.label:
        return {"": held}
    if isinstance(held, list):
        return dict(zip(_declared(run, family), held, strict=True))
    return {name: held[name] for name in family.names}


def _declared(run: Run, family: Family) -> tuple[str, ...]:
    """Return the names that the run declares for a label."""
    return run.slices if family.label == "slice" else run.methods


def identity(run: Run) -> dict[str, str]:
    """Return the labels of the info metric."""
    return {
        "run_id": run.run_id,
        "version": _installed_version(),
        "policy": run.policy,
        "score_mode": run.score_mode,
        "batch_size": str(run.batch_size),
    }


@cache  # it reads a file
def _installed_version() -> str:
    try:
        return version("adasel-stream")
    except PackageNotFoundError:
        return "unknown"


def snapshot(run: Run) -> dict[str, Any]:
    """Describe every family in values that JSON can hold; unknown numbers are None."""
    run.refresh()
    shown: dict[str, Any] = {"time": time.time(), "run": run.run, "rank": run.rank}
    for family in FAMILIES:
        if family.kind == "info":
            shown[family.shown] = identity(run)
            continue
        plain = {label: _plain(value) for label, value in values(run, family).items()}
        shown[family.shown] = plain if family.label else plain[""]
    return shown


def _plain(value: Any) -> Any:
    if isinstance(value, Histogram):
        return value.state_dict()
    if value is None or isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def saved(run: Run) -> dict[str, Any]:
    """Describe all counters and histograms in plain numbers, for `restore`."""
    run.refresh()
    state: dict[str, Any] = {"version": _STATE_VERSION}
    for family in FAMILIES:
        if family.kind in ("counter", "histogram"):
            state[family.name] = {k: _plain(v) for k, v in values(run, family).items()}
    return state


def restore(run: Run, state: Mapping[str, Any]) -> None:
    """Set all counters and histograms to what `saved` described.

    Raises:
        ValueError: if `state` has another version or a counter that is no count.
    """
    if state.get("version") != _STATE_VERSION:
        raise ValueError(
            f"metrics state must have version {_STATE_VERSION}, got {state.get('version')!r}: "
            f"load it with the version of adasel-stream that wrote it"
        )
    for family in FAMILIES:
        before = state.get(family.name, {})
        if family.kind == "histogram":
            for label, histogram in values(run, family).items():
                if label in before:
                    histogram.load_state_dict(before[label])
        elif family.kind == "counter":
            _restore_counter(run, family, before)


def _restore_counter(run: Run, family: Family, before: Mapping[str, float]) -> None:
    for count in before.values():
        if not (math.isfinite(count) and count >= 0):
            raise ValueError(f"{family.shown} must be finite and at least 0, got {count}")
    held = getattr(run, family.name)
    if not family.label:
        setattr(run, family.name, before.get("", held))
    elif isinstance(held, list):
        setattr(run, family.name, [before.get(name, 0) for name in _declared(run, family)])
    else:
        held.update({name: before[name] for name in family.names if name in before})
