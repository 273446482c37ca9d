"""What a record is constructed with, checked."""

import math
from typing import Final, NamedTuple

from adasel_stream.record.inputs import number, whole
from adasel_stream.record.table import MIN_BUCKETS, WAYS

__all__ = ["NO_AGE_LIMIT_S", "NO_LAG_LIMIT", "Settings", "check_settings"]

NO_AGE_LIMIT_S: Final = 2**32 - 1
"""No loss is older."""

NO_LAG_LIMIT: Final = 2**15
"""No two versions are farther apart, since they wrap at 65,536."""

_MAX_CAPACITY: Final = 2**34
_MAX_SEED: Final = 2**64 - 1


class Settings(NamedTuple):
    """Checked settings of a record.

    Attributes:
        buckets: of eight slots, in [2, 2**31].
        decay: what one new loss leaves of the old average, in [0, 1).
        max_age_s: oldest whole seconds that are known, in [0, 2**32).
        max_version_lag: farthest versions that are known, in [0, 2**15].
        seed: in [0, 2**64).
    """

    buckets: int
    decay: float
    max_age_s: int
    max_version_lag: int
    seed: int


def check_settings(
    capacity: int, decay: float, max_age_s: float | None, max_version_lag: int | None, seed: int
) -> Settings:
    """Check the arguments of `LossRecord`, where they are described.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of its range.

    >>> check_settings(100, 0.9, None, None, 0).buckets
    13
    """
    buckets = -(-whole("capacity", capacity, 1, _MAX_CAPACITY) // WAYS)
    if not 0 <= number("decay", decay) < 1:
        raise ValueError(
            f"decay must be in [0, 1), got {decay}: it is what one new loss leaves of the "
            "old average"
        )
    age_s = math.inf if max_age_s is None else number("max_age_s", max_age_s)
    if not age_s > 0:
        raise ValueError(
            f"max_age_s must be a positive number of seconds, got {max_age_s}: "
            "pass None for no limit"
        )
    lag = NO_LAG_LIMIT
    if max_version_lag is not None:
        lag = whole("max_version_lag", max_version_lag, 0, NO_LAG_LIMIT)
    return Settings(
        buckets=max(MIN_BUCKETS, buckets),
        decay=float(decay),
        max_age_s=int(min(age_s, NO_AGE_LIMIT_S)),
        max_version_lag=lag,
        seed=whole("seed", seed, 0, _MAX_SEED),
    )
