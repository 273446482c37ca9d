"""Put a batch into the table's order and average its duplicate ids, with one sort."""

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Merged", "bucket_first", "bucket_order", "merge", "run_begins"]

_SHARD_BITS: Final = 10


class Merged(NamedTuple):
    """One row for each distinct key of a batch, in the order of the table's buckets.

    Attributes:
        keys: distinct keys, shape (m,), uint64.
        losses: mean loss of each key's rows, shape (m,), float64, finite.
        counts: number of rows of each key, shape (m,), int64, at least 1.
        stamps: the largest stamp of each key's rows, shape (m,), or (1,) for all; uint64, a tick
            above 16 bits of model version.
    """

    keys: npt.NDArray[np.uint64]
    losses: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    stamps: npt.NDArray[np.uint64]

    def take(self, index: npt.NDArray[np.int64]) -> "Merged":
        """Return the rows at `index`, in that order."""
        return Merged(
            self.keys.take(index),
            self.losses.take(index),
            self.counts.take(index),
            self.stamps if len(self.stamps) == 1 else self.stamps.take(index),
        )


def merge(
    keys: npt.NDArray[np.uint64],
    losses: npt.NDArray[np.float32],
    stamps: npt.NDArray[np.uint64],
) -> Merged:
    """Order rows by bucket and average the losses of equal keys.

    The result is the same, bit for bit, in whatever order the rows come.

    Args:
        keys: shape (b,); left unchanged.
        losses: shape (b,), finite; left unchanged.
        stamps: shape (b,), or (1,) for all; of equal keys the largest counts. Left unchanged.

    Returns:
        m <= b rows; keys of one bucket are neighbours, whatever the size of the table.

    >>> import numpy as np
    >>> keys, losses = np.array([9, 4, 9], np.uint64), np.array([1, 5, 2], np.float32)
    >>> merge(keys, losses, np.ones(1, np.uint64)).losses.tolist()
    [5.0, 1.5]
    """
    order, repeats = bucket_order(keys)
    keys, losses = keys.take(order), losses.take(order)
    stamps = stamps if len(stamps) == 1 else stamps.take(order)
    if not repeats:
        return Merged(keys, losses.astype(np.float64), np.ones(len(keys), np.int64), stamps)
    begins = run_begins(keys)
    starts, counts = _runs(begins)
    means = losses.take(starts).astype(np.float64)
    repeated = ~begins
    repeated[:-1] |= repeated[1:]
    means[counts > 1] = _run_means(losses[repeated], begins[repeated])
    if len(stamps) > 1:
        stamps = np.maximum.reduceat(stamps, starts)
    return Merged(keys.take(starts), means, counts, stamps)


def run_begins(ordered: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which rows differ from the row before them, shape (b,); the first does."""
    begins = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    return begins


def bucket_first(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Turn keys so that their order is that of the buckets, whatever the size of the table.

    >>> bucket_first(np.array([1], np.uint64)).tolist() == [1 << 10]
    True
    """
    turned = keys << np.uint64(_SHARD_BITS)
    turned |= keys >> np.uint64(64 - _SHARD_BITS)
    return turned


def bucket_order(keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], bool]:
    """Return an order of rows by bucket, equal keys as they came, and whether any are equal.

    >>> order, repeats = bucket_order(np.array([9, 4, 9], np.uint64))
    >>> order.tolist(), repeats
    ([1, 0, 2], True)
    """
    turned = bucket_first(keys)
    # the row number takes the lowest bits: sorting words is three times as fast as an argsort
    row_mask = np.uint64((1 << (len(keys) - 1).bit_length()) - 1)
    packed = turned & ~row_mask
    packed |= np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    order = (packed & row_mask).view(np.int64)
    packed |= row_mask
    alike = np.count_nonzero(packed[1:] == packed[:-1])
    if alike == 0:
        return order, False
    ordered = keys.take(order)
    if alike == np.count_nonzero(ordered[1:] == ordered[:-1]):
        return order, True
    # different keys, alike but for the bits that the row number took: some 1e-5 of large batches
    return np.argsort(turned, kind="stable"), True


def _runs(begins: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first row and the length of each run."""
    starts = begins.nonzero()[0]
    lengths = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
    lengths[-1] = len(begins) - starts[-1]
    return starts, lengths


def _run_means(
    losses: npt.NDArray[np.float32], begins: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Average each run of losses."""
    # a floating-point sum depends on its order: bring each run into the order of its bits
    packed = begins.cumsum(dtype=np.uint64) << np.uint64(32)
    packed |= losses.view(np.uint32)
    packed.sort()
    ordered = packed.astype(np.uint32).view(np.float32)
    # one by one in this order, as the other engine adds
    runs = begins.cumsum() - 1
    return np.bincount(runs, ordered) / np.bincount(runs)
