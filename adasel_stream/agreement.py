"""Whether what is put together belongs together: a loader, its snapshot, its metrics."""

from collections.abc import Mapping
from typing import Any, Final

from adasel_stream.metrics import Metrics

__all__ = ["FORMAT", "check_state", "metrics_for"]

FORMAT: Final = 5
"""Version of the loader's `state_dict`."""


def check_state(state: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Make sure that a loader with `settings` may go on from `state`.

    Raises:
        ValueError: the state is of another format or of other settings; it names both.
    """
    if state.get("format") != FORMAT:
        raise ValueError(
            f"the loader state has format {state.get('format')}, this version reads {FORMAT}; pass "
            "what `state_dict` gave, without what was saved beside it"
        )
    missing = {"settings", "candidates", "selector", "over", "metrics"} - state.keys()
    if missing:
        raise ValueError(f"the loader state lacks {', '.join(sorted(missing))}; it is damaged")
    theirs = dict(state["settings"])
    differ = [
        f"{k} {theirs.get(k)!r}, here {v!r}" for k, v in settings.items() if theirs.get(k) != v
    ]
    if differ:
        raise ValueError(f"the snapshot was taken with other settings: {'; '.join(differ)}")


def metrics_for(
    metrics: Metrics | None,
    methods: list[str],
    slices: tuple[str, ...],
    sampling_rate: float,
    policy: str,
) -> Metrics:
    """Give the metrics that count a loader's methods: those that were passed, or new ones.

    Raises:
        TypeError: they are no `Metrics`.
        ValueError: they were made for other methods.
    """
    if metrics is None:
        return Metrics(
            methods, sampling_rate=sampling_rate, batch_size=1, policy=policy, slices=slices
        )
    if not isinstance(metrics, Metrics):
        raise TypeError(f"metrics must be a Metrics, got {type(metrics).__name__}")
    if list(metrics.methods) != methods:
        raise ValueError(
            f"metrics count the methods {list(metrics.methods)}, the loader has {methods}; give "
            "both the same names in the same order"
        )
    if metrics.slices != slices:
        raise ValueError(
            f"metrics count the slices {list(metrics.slices)}, the loader's guards have "
            f"{list(slices)}; give both the same names in the same order"
        )
    return metrics
