"""Train one contestant on one problem, within its budget, and time it.

What is timed is what a trainer would spend: data, scoring, selection and training, in processor
time of one thread. What is not: making the data, testing, passes of a serving process, and the
training of a reference model.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adasel_stream import SelectingLoader
from adasel_stream.errors import ScoreError
from benchmarks.evidence.candidates import Candidates, by_rule, even_share
from benchmarks.evidence.clock import Clock
from benchmarks.evidence.contestants import Contestant
from benchmarks.evidence.loading import loader_for
from benchmarks.evidence.problem import Examples, Problem, Task
from benchmarks.evidence.rules import RULES, Rule

__all__ = ["Outcome", "train", "updates_of"]

TESTS = 10
"""How often the network is tested on the way."""

STREAM_TEST_ROWS = 2_000
"""Rows that come next in a stream, on which it is tested."""

STREAM_TESTS = 40

WARM_UP = 0.1
"""Share of the updates over which the learning rate rises, and of a stream that is not tested."""


@dataclass
class Outcome:
    """What came out of a cell.

    Attributes:
        updates: made.
        candidates: rows offered.
        quality: measures at the end of training, or averaged over a stream; NaN of a network that
            diverged so that no loss was finite any more.
        seconds: processor time: "all", and of it "data", "score", "train" and "select".
        curve: updates, seconds and the first measure at each test.
    """

    updates: int = 0
    candidates: int = 0
    quality: dict[str, float] = field(default_factory=dict[str, float])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    curve: list[tuple[int, float, float]] = field(default_factory=list[tuple[int, float, float]])


def updates_of(task: Task, problem: Problem, contestant: Contestant, rate: float) -> int:
    """Say how many updates make equal budgets: full training's, or the rate's share of them."""
    whole = task.updates
    if task.kind == "stream":
        whole = len(problem.train["x"]) // task.batch_size
    return whole if contestant.name == "full" else max(1, int(rate * whole))


def train(
    task: Task,
    problem: Problem,
    contestant: Contestant,
    rate: float,
    seed: int,
    updates: int,
    *,
    curve: bool = True,
) -> Outcome:
    """Train for so many updates, with the learning rate decayed within them, and test.

    On the way as well, if there is to be a curve; a stream is always tested on its way.

    A stream's learning rate stays, since a stream has no end to decay towards; where it is read
    through before the updates are made, that is the end.
    """
    torch.manual_seed(seed)
    run = Run(task, problem, contestant, rate, seed, updates)
    run.tests = STREAM_TESTS if task.kind == "stream" else TESTS if curve else 0
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return run.outcome()


class Run:
    """One training run; the network's first weights come from torch's global generator."""

    def __init__(
        self,
        task: Task,
        problem: Problem,
        contestant: Contestant,
        rate: float,
        seed: int,
        updates: int,
    ) -> None:
        self.task, self.problem, self.contestant = task, problem, contestant
        self.rate, self.seed, self.updates = rate, seed, updates
        self.network = problem.network()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0, momentum=0.9)
        self.clock = Clock()
        self.candidates = Candidates(task, problem.train, seed, self.clock)
        self.loader: SelectingLoader | None = None
        self.rule: Rule | None = None
        self.result = Outcome()
        self.sums: dict[str, float] = {}
        self.tested = 0
        self.tests = TESTS
        self.diverged = False

    def outcome(self) -> Outcome:
        """Run, and give what came out."""
        torch.manual_seed(self.seed + 1)
        batches = self._batches()
        self.clock.start()
        for number in range(self.updates):
            self._schedule(number)
            with self.clock.off():
                self._test_on_the_way(number)
            try:
                batch = next(batches, None)
            except ScoreError:  # the network is broken: there has been no finite loss for long
                self.diverged = True
                break
            if batch is None:
                break
            with self.clock.phase("train"):
                self._update(batch)
            self.result.updates += 1
        self.result.seconds = self.clock.by_phase()
        self.result.candidates = self.candidates.offered
        with self.clock.off():
            self._finish()
        return self.result

    def _batches(self) -> Iterator[Examples]:
        kind, size = self.contestant.kind, self.task.batch_size
        if kind == "all":
            return iter(self.candidates)
        if kind == "even":
            return even_share(self.candidates, self.rate, size, self.seed)
        if kind == "rule":
            rows = len(self.problem.train["x"])
            self.rule = RULES[self.contestant.name](self.rate, rows, self.seed)
            return by_rule(self.candidates, self.rule, self._fresh_losses, size, self._progress)
        self.loader = loader_for(
            self.task,
            self.problem,
            self.contestant,
            self.network,
            self.candidates,
            self.clock,
            rate=self.rate,
            seed=self.seed,
            updates=lambda: self.result.updates,
        )
        return iter(self.loader)

    def _fresh_losses(self, batch: Examples) -> Tensor:
        with self.clock.phase("score"), torch.no_grad():
            return self.problem.losses(self.network, batch)

    def _progress(self) -> float:
        return self.result.updates / self.updates

    def _update(self, batch: Examples) -> None:
        loss = self._loss(batch, self.problem.losses(self.network, batch))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # untyped in torch
        self.optimizer.step()

    def _loss(self, batch: Examples, losses: Tensor) -> Tensor:
        if self.loader is not None:
            return self.loader.mean(losses)
        if self.rule is not None:
            self.rule.learn(batch["id"], losses.detach())
            return (losses * batch["weights"]).mean()
        return losses.mean()

    def _schedule(self, number: int) -> None:
        rise = min(1.0, (number + 1) / max(1.0, WARM_UP * self.updates))
        fall = 1.0
        if self.task.kind == "epochs":
            fall = 0.5 * (1 + math.cos(math.pi * number / self.updates))
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.learning_rate * rise * fall

    def _test_on_the_way(self, number: int) -> None:
        stream, tests = self.task.kind == "stream", self.tests
        if number * tests // self.updates == (number - 1) * tests // self.updates or not number:
            return
        if not stream:
            self._note(self._quality(self.problem.test))
        elif number >= WARM_UP * self.updates:
            at = self.candidates.position
            ahead = slice(at, at + STREAM_TEST_ROWS)
            rows = {name: column[ahead] for name, column in self.problem.train.items()}
            if len(rows["x"]) == STREAM_TEST_ROWS:
                self._add(self._quality(rows))

    def _add(self, quality: dict[str, float]) -> None:
        for name, value in quality.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.tested += 1
        self._note(quality)

    def _quality(self, rows: Examples) -> dict[str, float]:
        self.network.eval()
        with torch.no_grad():
            quality = self.problem.quality(self.network, rows)
        self.network.train()
        return quality

    def _note(self, quality: dict[str, float]) -> None:
        value = next(iter(quality.values()))
        self.result.curve.append((self.result.updates, self.clock.seconds, value))

    def _finish(self) -> None:
        if self.task.kind == "stream":
            quality = {name: value / max(1, self.tested) for name, value in self.sums.items()}
        else:
            quality = self._quality(self.problem.test)
            self._note(quality)
        if "predicted" in quality:
            quality["predicted / actual"] = quality.pop("predicted") / quality.pop("actual")
        self.result.quality = dict.fromkeys(quality, math.nan) if self.diverged else quality
