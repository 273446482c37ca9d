"""Single instances of a record: those at one end of an order, and those that somebody names."""

from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from adasel_stream.inspection.opening import opened, rows_of
from adasel_stream.keys import ids_of_keys, keys_of_ids
from adasel_stream.record.entries import Entries
from adasel_stream.record.snapshots.columns import shards_of
from adasel_stream.record.snapshots.manifest import Manifest, last_tick
from adasel_stream.record.snapshots.reading import merged
from adasel_stream.record.snapshots.upkeep import Progress, unheard

__all__ = ["INSTANCE", "ORDERS", "Order", "extremes", "find"]

INSTANCE: Final = np.dtype(
    [
        *(("id", "i8"), ("loss", "f4"), ("ema", "f4")),
        ("age_s", "i8"),
        ("count", "u2"),
        ("version", "u2"),
    ]
)
"""What a record says of one instance: id, last loss, moving average, seconds since that loss when
the record was saved, recorded losses and model version."""

Order: TypeAlias = Literal["loss", "ema", "age", "count"]
"""What puts instances in order."""

ORDERS: Final[tuple[Order, ...]] = get_args(Order)
"""All of them."""

_FIELDS: Final = {"loss": "loss", "ema": "ema", "age": "age_s", "count": "count"}


def extremes(
    path: Path, order: Order, most: int, *, lowest: bool = False, progress: Progress = unheard
) -> npt.NDArray[Any]:
    """Return the instances that come first in an order; which of equal ones is left open.

    Takes memory for `most` instances and a few row groups. Files do not tell which ids made room
    since the base was written, so that these may be among them.

    Args:
        path: the record's folder; it may be in use.
        order: what to go by.
        most: number of instances, at least 1.
        lowest: begin with the lowest instead of the highest.
        progress: told of rows read.

    Returns:
        Shape (n,), n at most `most`, dtype INSTANCE.

    Raises:
        RecordError: if there is no record, it is damaged, or a newer release wrote it.
    """
    best = np.empty(0, INSTANCE)
    done = 0
    with opened(path) as snapshots:
        total = rows_of(snapshots)
        for snapshot in snapshots:
            for group in merged(snapshot):
                instances = _instances(group, snapshot.manifest)
                best = _first(np.concatenate([best, instances]), order, most, lowest=lowest)
                done += len(instances)
                progress(done, total)
        progress(total, total)
    return best


def find(path: Path, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Look instances up.

    Args:
        path: the record's folder; it may be in use.
        ids: shape (n,); strings stand for their `instance_ids`.

    Returns:
        Those that the record holds, in the order of its ranks and keys, dtype INSTANCE. An id
        that several ranks hold is there several times.

    Raises:
        RecordError: if there is no record, it is damaged, or a newer release wrote it.
    """
    found = [np.empty(0, INSTANCE)]
    with opened(path) as snapshots:
        for snapshot in snapshots:
            keys = keys_of_ids(ids, snapshot.manifest.seed)
            shards = shards_of(keys)
            near = range(int(shards.min()), int(shards.max()) + 1)
            for group in merged(snapshot, near):
                held = np.isin(group.keys, keys)
                chosen = Entries(group.keys[held], group.values[held])
                found.append(_instances(chosen, snapshot.manifest))
    return np.concatenate(found)


def _instances(group: Entries, manifest: Manifest) -> npt.NDArray[Any]:
    instances = np.empty(len(group.keys), INSTANCE)
    instances["id"] = ids_of_keys(group.keys, manifest.seed)
    instances["loss"] = group.values["last"]
    instances["ema"] = group.values["ema"]
    instances["count"] = group.values["count"]
    instances["version"] = group.values["version"]
    ages_s = last_tick(manifest) - group.values["tick"].astype(np.int64)
    instances["age_s"] = np.maximum(ages_s, 0)
    return instances


def _first(
    instances: npt.NDArray[Any], order: Order, most: int, *, lowest: bool
) -> npt.NDArray[Any]:
    ranks = instances[_FIELDS[order]].astype(np.float64)
    if not lowest:
        ranks = -ranks
    if len(ranks) > most:
        near = np.argpartition(ranks, most - 1)[:most]
        instances, ranks = instances[near], ranks[near]
    return instances[np.lexsort((instances["id"], ranks))]
