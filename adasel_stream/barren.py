"""What nothing comes of: losses that are not finite, and passes that are too short."""

import logging
from typing import Final

from adasel_stream.errors import ScoreError

__all__ = ["BarrenPasses", "BarrenWindows"]

_log = logging.getLogger(__name__)

_MOST: Final = 100
"""After so many windows without a finite loss none is waited for."""


class BarrenWindows:
    """Watch how many rows of each window can be chosen.

    >>> windows = BarrenWindows()
    >>> windows.look(rows=8, usable=8)
    >>> windows.require_finite()
    """

    def __init__(self) -> None:
        """Begin with all well."""
        self._barren = 0
        self._told = False

    def look(self, rows: int, usable: int | None) -> None:
        """Tell once of losses that are not finite, until all are again; count barren windows.

        Args:
            rows: of a window.
            usable: how many of them have a finite loss and gradient, or None where that is unknown.
        """
        if usable is None or usable == rows:
            self._told, self._barren = False, 0
            return
        self._barren = 0 if usable else self._barren + 1
        if not self._told:
            self._told = True
            _log.warning(
                "%s of the %d losses or gradients of a window are not finite; such rows are not "
                "chosen, and adasel_samples_dropped_total counts them",
                "all" if usable == 0 else rows - usable,
                rows,
            )

    def require_finite(self) -> None:
        """Give up where no loss has been finite for so long that none will be.

        Raises:
            ScoreError: nothing could be chosen from the last hundred windows.
        """
        if self._barren >= _MOST:
            self._barren = 0
            raise ScoreError(
                f"none of the losses and gradients of the last {_MOST} windows is finite, so "
                "that nothing could be chosen; look whether the model's weights are, and go on "
                "from a snapshot of before"
            )


class BarrenPasses:
    """Say once that a whole pass chose too few rows for a batch."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self._told = False

    def tell(self, waiting: int, batch_size: int | None) -> None:
        """Take in that a pass emitted nothing.

        Args:
            waiting: rows that are chosen.
            batch_size: rows that a batch has.
        """
        if not self._told:
            self._told = True
            _log.warning(
                "a whole pass over the source emitted nothing: %d rows are chosen, a batch has %d; "
                "they wait for the next pass. Pass a smaller batch_size=, or a higher "
                "sampling_rate=",
                *(waiting, batch_size),
            )
