"""The snapshot of a run: what is needed to go on exactly where it stopped."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adasel_stream.checkpoint import load_checkpoint, save_checkpoint
from adasel_stream.demo.arms import Arm
from adasel_stream.errors import CheckpointError

__all__ = ["Spent", "restore", "save"]


class Spent(NamedTuple):
    """How far a run has come.

    Attributes:
        turns: turns that are over.
        elapsed_s: wall time of the run so far, in seconds.
    """

    turns: int
    elapsed_s: float


def save(path: Path, settings: Mapping[str, Any], arms: Sequence[Arm], spent: Spent) -> None:
    """Write everything that the run holds, in one step.

    Args:
        path: file to write or replace.
        settings: what must be the same for the run to go on.
        arms: the contestants, between two turns.
        spent: how far the run has come.

    Raises:
        CheckpointError: the file cannot be written; the one before is intact. It is counted.
    """
    state = {arm.name: arm.state_dict() for arm in arms}
    try:
        save_checkpoint(path, {"settings": dict(settings), "arms": state, **spent._asdict()})
    except CheckpointError:
        _count(arms, "failure")
        raise
    _count(arms, "success")


def restore(path: Path, settings: Mapping[str, Any], arms: Sequence[Arm]) -> Spent | None:
    """Set the arms to what a snapshot holds.

    Returns:
        how far the run had come; None if there is no snapshot.

    Raises:
        CheckpointError: the snapshot is damaged, or of a run with other settings.
    """
    try:
        state = load_checkpoint(path)
    except FileNotFoundError:
        return None
    then = state["settings"]
    differ = [
        f"{name} was {then.get(name)!r} and is {now!r}"
        for name, now in settings.items()
        if then.get(name) != now
    ]
    if differ:
        raise CheckpointError(
            f"{path} is the snapshot of a run with other settings: {', '.join(differ)}. Run with "
            "those settings to go on, with --fresh to start over, or with another --out"
        )
    for arm in arms:
        arm.load_state_dict(state["arms"][arm.name])
    return Spent(int(state["turns"]), float(state["elapsed_s"]))


def _count(arms: Sequence[Arm], result: str) -> None:
    for arm in arms:
        arm.metrics.observe_checkpoint(result)
