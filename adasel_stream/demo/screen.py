"""What the user sees while the demo runs: a picture on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TextIO

from adasel_stream.demo.arms import Arm
from adasel_stream.demo.plan import LABELS

__all__ = ["COLUMNS", "PlainScreen", "Screen", "cells", "open_screen"]

COLUMNS = ("run", "loss so far", "predicted/actual", "updates", "seconds")
"""Running figures of each arm."""


class Screen(Protocol):
    """Where a run tells how it goes."""

    def say(self, sentence: str) -> None:
        """Tell something that stays."""
        ...

    def busy(self, sentence: str) -> None:
        """Tell what is being done now."""
        ...

    def show(self, seen: int, rows: int, arms: Sequence[Arm]) -> None:
        """Show the running figures after `seen` of `rows` samples."""
        ...

    def close(self) -> None:
        """Leave the last picture as it is."""
        ...


def cells(arm: Arm) -> tuple[str, ...]:
    """Give an arm's running figures as text, one for each of `COLUMNS`."""
    progressive = arm.learner.progressive
    spent: Mapping[str, float] = arm.metrics.phase_seconds
    return (
        LABELS[arm.name],
        f"{progressive.loss:.4f}",
        f"{progressive.calibration:.3f}",
        f"{arm.learner.updates:,}",
        f"{sum(spent.values()):.1f}",
    )


class PlainScreen:
    """Lines of text: for logs, pipes and terminals that can do no more.

    Args:
        file: where to write; standard error by default.
        every_s: least time between two lines of running figures.
    """

    def __init__(self, file: TextIO | None = None, *, every_s: float = 5.0) -> None:
        """Write nothing yet."""
        self._file = file if file is not None else sys.stderr
        self._every_s = every_s
        self._due = 0.0

    def say(self, sentence: str) -> None:
        """Write a line."""
        print(sentence, file=self._file, flush=True)

    def busy(self, sentence: str) -> None:
        """Write a line."""
        self.say(f"... {sentence}")

    def show(self, seen: int, rows: int, arms: Sequence[Arm]) -> None:
        """Write a line if one is due, and at the end."""
        if time.monotonic() < self._due and seen < rows:
            return
        self._due = time.monotonic() + self._every_s
        losses = " | ".join(
            f"{LABELS[arm.name]} {arm.learner.progressive.loss:.4f}" for arm in arms
        )
        self.say(f"{seen / rows:4.0%}  {seen:>7,} flights  loss so far: {losses}")

    def close(self) -> None:
        """Leave everything as it is."""


def open_screen() -> Screen:
    """Choose a picture where standard error is a terminal and `rich` is installed."""
    if not sys.stderr.isatty():
        return PlainScreen()
    try:
        from adasel_stream.demo.rich_screen import RichScreen
    except ImportError:
        return PlainScreen()
    return RichScreen()
