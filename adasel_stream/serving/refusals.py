"""What the operating system refused: counted always, logged once in a while."""

import logging
import math
import time
from typing import Final

__all__ = ["Refusals"]

_LOG_EVERY_S: Final = 60.0


class Refusals:
    """Counts failures and writes one line a minute about them.

    Args:
        logger: where to write.
        consequence: what happens instead, the second half of the line.

    Attributes:
        count: failures so far.

    >>> refusals = Refusals(logging.getLogger("doctest"), "it is tried again")
    >>> refusals.count
    0
    """

    def __init__(self, logger: logging.Logger, consequence: str) -> None:
        self.count = 0
        self._logger = logger
        self._consequence = consequence
        self._log_at_s = -math.inf

    def note(self, what: str, error: Exception) -> None:
        """Count one failure."""
        self.count += 1
        if time.monotonic() >= self._log_at_s:
            self._log_at_s = time.monotonic() + _LOG_EVERY_S
            self._logger.warning(
                "%s (%s; failure %d): %s", what, error, self.count, self._consequence
            )
