"""The contestant whose losses come from serving: it chooses, and scores nothing to choose."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from adasel_stream.demo.arms import Charges, SelectingArm
from adasel_stream.demo.flights import stream_seconds
from adasel_stream.demo.learner import BATCH_SIZE, Learner
from adasel_stream.demo.serving import Serving
from adasel_stream.demo.stopwatch import Stopwatch
from adasel_stream.errors import AdaselError
from adasel_stream.loader import SelectingLoader
from adasel_stream.metrics import Metrics
from adasel_stream.policies import auto
from adasel_stream.record import LossRecord
from adasel_stream.serving import LossFeed
from adasel_stream.types import Batch

__all__ = ["ServedArm"]

_SLOTS_A_ROW = 8
"""Slots for each loss that waits to be looked up; then a bucket forgets one in 100,000 of them."""

_MOST_VERSIONS = 4
"""No loss is of a model more turns old than this; one that is older counts as unknown."""

_CHARGES = Charges(cost=("train", "score", "select"), comparison=("other",), scores=False)
"""Here `score` is looking up and taking over losses; the comparison's forward passes are apart."""


class ServedArm:
    """Train on what a `SelectingLoader` chooses by the losses of a serving process.

    Trainer and server take turns that overlap: while this arm trains on the flights of one turn,
    the server predicts those of the next with the model published before, so that losses are of
    a model one to two turns old. They are taken over between two turns only, so that a run comes
    to the same numbers whichever process is the faster, and whenever it was killed.

    Args:
        name: of its files and metrics.
        source: the stream in candidate batches, with `state_dict`.
        learner: what to train.
        serving: the server.
        turn_rows: flights of a turn, at least those of a candidate batch.
        ahead_rows: how many flights past the end of its turn the loader reads at most.
        sampling_rate: share of candidates to train on, in (0, 1].
        seed: of the selection.

    Attributes:
        serving, turn_rows: as given.
    """

    charges = _CHARGES

    def __init__(
        self,
        name: str,
        source: Any,
        learner: Learner,
        *,
        serving: Serving,
        turn_rows: int,
        ahead_rows: int,
        sampling_rate: float,
        seed: int,
    ) -> None:
        """Start at the beginning of the stream."""
        self.name = name
        self.learner = learner
        self.serving = serving
        self.turn_rows = turn_rows
        self._ahead_rows = ahead_rows
        self._watch = Stopwatch()
        self.metrics = Metrics(
            list(auto().methods),
            run=name,
            sampling_rate=sampling_rate,
            batch_size=BATCH_SIZE,
            policy="auto",
            clock=self._watch,
        )
        waiting = min(2 * turn_rows + ahead_rows, learner.progressive.rows)
        self._record = LossRecord(
            _SLOTS_A_ROW * waiting,
            max_version_lag=_MOST_VERSIONS,
            seed=seed,
            clock=self._now_s,
            engine="numpy",  # compiling the other one takes longer than it would spare here
        )
        # by a clock that stands still in a turn, only the first poll looks into the folder
        self._feed = LossFeed(serving.losses, clock=self._now_s, wall_clock=self._now_s)
        loader = SelectingLoader(
            _Compared(source, learner, self.metrics),
            record=self._record,
            ids="id",
            serving=self._feed,
            sampling_rate=sampling_rate,
            batch_size=BATCH_SIZE,
            seed=seed,
            metrics=self.metrics,
        )
        self._arm = SelectingArm(loader, learner, self._watch, _CHARGES)

    def advance(self, until: float) -> None:
        """Train until `until` samples were seen, or to the end of the stream.

        Raises:
            AdaselError: the server failed or ended twice, or losses that it wrote are gone.
        """
        self._take_over()
        version = self._record.version
        if version == 0:  # nothing is served yet of the first turn
            self._ask(self.turn_rows + self._ahead_rows)
            self._take_over()
        self._ask((version + 2) * self.turn_rows + self._ahead_rows)
        self._arm.advance(until)
        self._record.version = version + 1

    def state_dict(self) -> dict[str, Any]:
        """Describe loader, learner and server, when the losses of the next turn are there."""
        self._take_over()
        return {**self._arm.state_dict(), "serving": self.serving.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.serving.load_state_dict(state["serving"])
        self._arm.load_state_dict(state)

    def _now_s(self) -> float:
        """Give the time up to which the stream is served."""
        return stream_seconds(self.serving.served)

    def _ask(self, until: int) -> None:
        """Publish the model as it is, and have more flights served with it."""
        until = min(until, self.learner.progressive.rows)
        if until > self.serving.served:
            with self._watch, self.metrics.phase("checkpoint"):
                network = self.learner.network.state_dict()
                self.serving.ask(self._record.version, network, until)

    def _take_over(self) -> None:
        """Bring all losses that were served into the record."""
        missing = self.serving.collect()
        with self._watch, self.metrics.phase("score"):
            while missing > 0 and (taken := self._feed.poll(self._record)):
                missing -= taken
        if missing:
            raise AdaselError(
                f"{missing} losses that the serving process published are not in "
                f"{self.serving.losses}; nothing else may write there. Run the same command again "
                "to go on from the snapshot"
            )


class _Compared:
    """A source whose batches are scored for the progressive loss as they come by.

    Args:
        source: batches, with `state_dict`.
        learner: scores and keeps.
        metrics: are told how long that takes.
    """

    def __init__(self, source: Any, learner: Learner, metrics: Metrics) -> None:
        self._source = source
        self._learner = learner
        self._metrics = metrics

    def __iter__(self) -> Iterator[Batch]:
        """Score every batch and give it."""
        for batch in self._source:
            with self._metrics.phase("other"), torch.no_grad():
                self._learner.score(batch)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Describe the position after the last batch."""
        state: dict[str, Any] = self._source.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self._source.load_state_dict(state)
