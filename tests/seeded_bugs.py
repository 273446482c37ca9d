"""Training jobs that resume wrongly, each in one way; run as a script by test_kill_resume.py.

Prints one JSON object: for each bug named as an argument the counts of the kill harness, which
stops at the first fault that it finds.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from adasel_connectors.parquet import ParquetSource
from adasel_stream.checkpoint import load_checkpoint, save_checkpoint
from benchmarks.kill_resume import CANDIDATES, Job, kill_jobs

FORGOTTEN = {
    "buffer": ("loader", "selector", "buffer"),
    "policy": ("loader", "selector", "policy"),
    "generator": ("loader", "selector", "generator"),
    "quota": ("loader", "selector", "quota"),
    "record": ("loader", "selector", "known", "record"),
    "position": ("loader", "candidates"),
    "model": ("model",),
    "optimizer": ("optimizer",),
    "random": ("random",),
}
"""Parts of the state that a job may forget, by name."""


def forgetting(*path: str) -> type[Job]:
    """A job that resumes with one part of its state as it was at the very beginning."""

    class Forgetting(Job):
        def restore(self, state: dict[str, Any]) -> None:
            there, fresh = state, self.state()
            for key in path[:-1]:
                there, fresh = there[key], fresh[key]
            there[path[-1]] = fresh[path[-1]]
            super().restore(state)

    return Forgetting


class ReadAhead(ParquetSource):
    """A source that counts a batch as done when it reads it, one batch before it is needed."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield each batch after the next one was read."""
        ahead: list[dict[str, Tensor]] = []
        for batch in super().__iter__():
            ahead.append(batch)
            if len(ahead) == 2:
                yield ahead.pop(0)
        yield from ahead


class CountedAtRead(Job):
    """A job whose position is where its reader is, not where its training is."""

    def source(self, shards: Path) -> ParquetSource:
        """Make the source of candidates."""
        return ReadAhead(shards, batch_size=CANDIDATES)


class SavedBeforeTheStep(Job):
    """A job that saves the loader after a batch and the model before it."""

    def train_on(self, batch: dict[str, Tensor]) -> None:
        """Remember the model of before the step."""
        self.before = {k: v.clone() for k, v in self.model.state_dict().items()}
        super().train_on(batch)

    def state(self) -> dict[str, Any]:
        """Gather all state, the model's too early."""
        return super().state() | {"model": getattr(self, "before", self.model.state_dict())}


class TwoFiles(Job):
    """A job that saves model and loader in a file each, both of them atomically."""

    def save(self) -> None:
        """Write one file after the other."""
        state = self.state()
        save_checkpoint(self.path, {k: v for k, v in state.items() if k != "loader"})
        save_checkpoint(self.path.with_suffix(".loader"), {"loader": state["loader"]})

    def load(self) -> None:
        """Read both, as far as they are there."""
        if self.path.exists():
            state = load_checkpoint(self.path)
            other = self.path.with_suffix(".loader")
            state["loader"] = load_checkpoint(other)["loader"] if other.exists() else None
            self.restore(state)


class SavedInPlace(Job):
    """A job that writes over its only checkpoint."""

    def save(self) -> None:
        """Put a sound new file's content over the old one, piece by piece."""
        sound = self.path.with_suffix(".sound")
        save_checkpoint(sound, self.state(), durable=False)
        content = sound.read_bytes()
        with open(self.path, "wb", buffering=0) as file:
            for start in range(0, len(content), 512):
                file.write(content[start : start + 512])
                os.fsync(file.fileno())


class UnseededSource(ParquetSource):
    """A source whose rows come in an order that depends on the process."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches in their order, their rows rotated."""
        for batch in super().__iter__():
            yield {name: column.roll(os.getpid(), 0) for name, column in batch.items()}


class Unseeded(Job):
    """A job that reads such a source."""

    def source(self, shards: Path) -> ParquetSource:
        """Make the source of candidates."""
        return UnseededSource(shards, batch_size=CANDIDATES)


BUGS: dict[str, type[Job]] = {
    **{f"{name} forgotten": forgetting(*path) for name, path in FORGOTTEN.items()},
    "position counted at read": CountedAtRead,
    "model saved before the step": SavedBeforeTheStep,
    "state in two files": TwoFiles,
    "file written in place": SavedInPlace,
    "data depends on the process": Unseeded,
}
"""Every way of resuming wrongly that the harness must find."""

if __name__ == "__main__":
    kills = int(sys.argv[1])
    found = {name: vars(kill_jobs(BUGS[name], kills, faults=1)) for name in sys.argv[2:] or BUGS}
    print(json.dumps(found))
