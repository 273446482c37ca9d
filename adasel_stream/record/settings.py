"""What a record is constructed with, checked."""

from typing import Final, NamedTuple

from adasel_stream.arguments import number, whole
from adasel_stream.record.table import buckets_for

__all__ = [
    "MAX_CAPACITY",
    "NO_AGE_LIMIT_S",
    "NO_LAG_LIMIT",
    "Settings",
    "age_limit_s",
    "check_settings",
]

NO_AGE_LIMIT_S: Final = 2**32 - 1
"""No loss is older."""

NO_LAG_LIMIT: Final = 2**15
"""No two versions are farther apart, since they wrap at 65,536."""

MAX_CAPACITY: Final = 2**34
"""Slots of a table: 412 GB."""

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
    buckets = buckets_for(whole("capacity", capacity, 1, MAX_CAPACITY))
    if not 0 <= number("decay", decay) < 1:
        raise ValueError(
            f"decay must be in [0, 1), got {decay}: it is what one new loss leaves of the "
            "old average"
        )
    lag = NO_LAG_LIMIT
    if max_version_lag is not None:
        lag = whole("max_version_lag", max_version_lag, 0, NO_LAG_LIMIT)
    return Settings(
        buckets=buckets,
        decay=float(decay),
        max_age_s=age_limit_s("max_age_s", max_age_s),
        max_version_lag=lag,
        seed=whole("seed", seed, 0, _MAX_SEED),
    )


def age_limit_s(name: str, limit_s: float | None) -> int:
    """Return the oldest whole seconds that a limit allows, in [0, 2**32).

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not positive.

    >>> age_limit_s("ttl_s", 1.5), age_limit_s("ttl_s", None)
    (1, 4294967295)
    """
    if limit_s is None:
        return NO_AGE_LIMIT_S
    if not number(name, limit_s) > 0:
        raise ValueError(
            f"{name} must be a positive number of seconds, got {limit_s}: pass None for no limit"
        )
    return int(min(limit_s, NO_AGE_LIMIT_S))
