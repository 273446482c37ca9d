"""Single instances of a record as lines of text."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from adasel_stream.inspection.wording import age_words, aligned, figure, shown

__all__ = ["LEGEND", "listing", "lookups"]

LEGEND: Final = (
    "average: moving average of the losses; age: of the last loss, when the record was saved;\n"
    "losses: how many were recorded; a string id is shown as its 64-bit hash, --name looks it up"
)
"""What the columns mean."""

_HEADERS: Final = ("last loss", "average", "age", "losses", "version")
_UNKNOWN: Final = ("unknown", *[""] * (len(_HEADERS) - 1))


def listing(instances: npt.NDArray[Any]) -> list[str]:
    """List instances in their order.

    Args:
        instances: shape (n,), dtype `INSTANCE`.

    >>> from adasel_stream.inspection.instances import INSTANCE
    >>> listing(np.array([(7, 0.25, 0.5, 7200, 3, 1)], INSTANCE))[1].split()
    ['7', '0.25', '0.5', '2', 'h', '3', '1']
    """
    return aligned([("id", *_HEADERS), *((str(row["id"]), *_cells(row)) for row in instances)])


def lookups(wanted: Sequence[tuple[str, int]], instances: npt.NDArray[Any]) -> list[str]:
    """List what was found of wanted instances, and what was not.

    Args:
        wanted: what instances are called, and their ids.
        instances: those that were found, dtype `INSTANCE`.

    >>> from adasel_stream.inspection.instances import INSTANCE
    >>> lookups([("7", 7)], np.empty(0, INSTANCE))[1].split()
    ['7', '7', 'unknown']
    """
    rows: list[tuple[str, ...]] = [("instance", "id", *_HEADERS)]
    for name, id_ in wanted:
        found = instances[instances["id"] == np.int64(id_)]
        told = [_cells(row) for row in found] or [_UNKNOWN]
        rows += [(shown(name, 24), str(id_), *cells) for cells in told]
    return aligned(rows)


def _cells(row: Any) -> tuple[str, ...]:
    return (
        figure(row["loss"]),
        figure(row["ema"]),
        age_words(row["age_s"]),
        f"{row['count']:,}",
        str(row["version"]),
    )
