"""Single instances of a record as lines of text."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.inspection.wording import age_words, aligned, figure, shown

__all__ = ["listing", "lookups"]

_HEADERS: Final = ("last loss", "moving average", "age when saved", "losses recorded", "version")
_UNKNOWN: Final = ("unknown", *[""] * (len(_HEADERS) - 1))


def listing(instances: npt.NDArray[Any]) -> list[str]:
    """List instances in their order.

    Args:
        instances: shape (n,), dtype `INSTANCE`.
    """
    return aligned([("id", *_HEADERS), *((str(row["id"]), *_cells(row)) for row in instances)])


def lookups(wanted: Mapping[str, int], instances: npt.NDArray[Any]) -> list[str]:
    """List what was found of wanted instances, and what was not.

    Args:
        wanted: ids by what they are called.
        instances: those that were found, dtype `INSTANCE`.
    """
    rows: list[tuple[str, ...]] = [("instance", "id", *_HEADERS)]
    for name, id_ in wanted.items():
        found = instances[instances["id"] == np.int64(id_)]
        told = [_cells(row) for row in found] or [_UNKNOWN]
        rows += [(shown(name, 24), str(id_), *cells) for cells in told]
    return aligned(rows)


def _cells(row: Any) -> tuple[str, ...]:
    return (
        figure(row["loss"]),
        figure(row["ema"]),
        age_words(row["age"]),
        f"{row['count']:,}",
        str(row["version"]),
    )
