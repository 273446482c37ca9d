"""What a record answers: arrays with one row for each instance."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Items", "Known"]


class Known(NamedTuple):
    """What the record knows of a batch; each shape (b,).

    Attributes:
        losses: last recorded losses, float32, finite, 0 where unknown.
        known: whether the record holds a loss that is not stale, bool.
        age_s: whole seconds since that loss was recorded, float32, infinite where unknown.
        ema: moving averages of the losses, float32, finite, 0 where unknown.
    """

    losses: npt.NDArray[np.float32]
    known: npt.NDArray[np.bool_]
    age_s: npt.NDArray[np.float32]
    ema: npt.NDArray[np.float32]


class Items(NamedTuple):
    """All that a record of integer ids holds, in the order of its slots; each shape (n,).

    Attributes:
        ids: int64.
        losses: last recorded losses, float32.
        ema: moving averages of the losses, float32.
        age_s: whole seconds since the last loss, float32, at the record's last use.
        counts: recorded losses, uint16, 65,535 standing for any larger number.
        versions: model version of the last loss modulo 65,536, uint16.
    """

    ids: npt.NDArray[np.int64]
    losses: npt.NDArray[np.float32]
    ema: npt.NDArray[np.float32]
    age_s: npt.NDArray[np.float32]
    counts: npt.NDArray[np.uint16]
    versions: npt.NDArray[np.uint16]
