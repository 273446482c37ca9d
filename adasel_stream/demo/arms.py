"""The contestants: the same network on the same stream, trained on different parts of it."""

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from adasel_stream.demo.learner import BATCH_SIZE, Learner
from adasel_stream.demo.model import Inputs, inputs
from adasel_stream.demo.stopwatch import Stopwatch
from adasel_stream.loader import SelectingLoader
from adasel_stream.metrics import Metrics
from adasel_stream.types import Batch

__all__ = ["BY_SCORING", "EVEN", "Arm", "Charges", "FullArm", "SelectingArm"]


class Charges(NamedTuple):
    """What of an arm's work is its cost.

    Attributes:
        cost: phases of its metrics whose seconds are its cost.
        comparison: phases whose seconds serve the progressive loss only.
        scores: whether it has to score every sample to choose.
    """

    cost: Sequence[str]
    comparison: Sequence[str]
    scores: bool


BY_SCORING = Charges(cost=("train", "score", "select"), comparison=(), scores=True)
"""Of an arm that scores to choose."""

EVEN = Charges(cost=("train",), comparison=("score", "select"), scores=False)
"""Of an arm that takes samples evenly, or all of them."""


class Arm(Protocol):
    """One contestant.

    Attributes:
        name: of its files, and the `run` of its metrics.
        learner: what it trains.
        metrics: what it counts; its phases hold this arm's own seconds.
        charges: what of its work is its cost.
    """

    name: str
    learner: Learner
    metrics: Metrics
    charges: Charges

    def advance(self, until: float) -> None:
        """Train until `until` samples were scored, or to the end of the stream."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Describe everything, between two calls of `advance`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`; before the first `advance`."""
        ...


class SelectingArm:
    """Train on what a `SelectingLoader` chooses.

    Args:
        loader: what chooses; its metrics name the arm.
        learner: what to train.
        watch: the clock of those metrics.
        charges: see `Arm`.
    """

    def __init__(
        self, loader: SelectingLoader, learner: Learner, watch: Stopwatch, charges: Charges
    ) -> None:
        """Start at the beginning of the stream."""
        self.name = loader.metrics.run
        self.learner = learner
        self.metrics = loader.metrics
        self.charges = charges
        self._loader = loader
        self._watch = watch
        self._batches: Iterator[Batch] | None = None

    def advance(self, until: float) -> None:
        """Train until `until` samples were scored, or to the end of the stream."""
        with self._watch:
            for batch in self._rest():
                losses = self.learner.losses(inputs(batch))
                self.learner.update(self._loader.mean(losses))
                if self.learner.progressive.seen >= until:
                    break
        # describing a loader ends its step, which would last through the other arms' turns
        self._loader.state_dict()

    def _rest(self) -> Iterator[Batch]:
        """Give the batches that are still to come."""
        if self._batches is not None:
            return self._batches
        self._batches = iter(self._loader)
        if "score" in self.charges.cost:
            return self._batches
        # what the loader says of its cost before its first batch is not true of this arm, which
        # is scored for the progressive loss only
        with contextlib.redirect_stderr(io.StringIO()):
            first = list(itertools.islice(self._batches, 1))
        return itertools.chain(first, self._batches)

    def state_dict(self) -> dict[str, Any]:
        """Describe loader and learner."""
        return {"loader": self._loader.state_dict(), "learner": self.learner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._loader.load_state_dict(state["loader"])
        self.learner.load_state_dict(state["learner"])


class FullArm:
    """Train on everything, without this package's loader: the ceiling.

    Args:
        name: of its files and metrics.
        source: batches, with `state_dict`.
        learner: what to train.
    """

    charges = EVEN

    def __init__(self, name: str, source: Any, learner: Learner) -> None:
        """Start at the beginning of the stream."""
        self.name = name
        self.learner = learner
        self._source = source
        self._watch = Stopwatch()
        self.metrics = Metrics(
            ["everything"],
            run=name,
            sampling_rate=1,
            batch_size=BATCH_SIZE,
            policy="none",
            clock=self._watch,
        )
        self._batches: Iterator[Batch] | None = None

    def advance(self, until: float) -> None:
        """Train until `until` samples were scored, or to the end of the stream."""
        with self._watch:
            if self._batches is None:
                self._batches = iter(self._source)
            while self.learner.progressive.seen < until:
                with self.metrics.phase("data_wait"):
                    batch = next(self._batches, None)
                if batch is None:
                    return
                self._train(batch)

    def _train(self, batch: Batch) -> None:
        with self.metrics.phase("score"), torch.no_grad():
            losses = self.learner.score(batch)
        for part in _parts(inputs(batch)):
            start = self._watch()
            with self.metrics.phase("train"):
                self.learner.update(self.learner.losses(part).mean())
            self.metrics.observe_step(self._watch() - start)
        self.metrics.samples_seen += len(losses)
        self.metrics.samples_selected += len(losses)
        one, seen = np.ones(1), losses.numpy()
        self.metrics.observe_selection(seen, seen, np.ones(len(seen)), one, seen.mean() * one, one)

    def state_dict(self) -> dict[str, Any]:
        """Describe position, learner and counts."""
        return {
            "source": self._source.state_dict(),
            "learner": self.learner.state_dict(),
            "metrics": self.metrics.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._source.load_state_dict(state["source"])
        self.learner.load_state_dict(state["learner"])
        self.metrics.load_state_dict(state["metrics"])


def _parts(flights: Inputs) -> Iterator[Inputs]:
    for start in range(0, len(flights.late), BATCH_SIZE):
        yield Inputs(*(column[start : start + BATCH_SIZE] for column in flights))
