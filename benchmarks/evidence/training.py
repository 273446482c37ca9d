"""Train one contestant on one problem, within its budget, and time it.

What is timed is what a trainer would spend: data, scoring, selection and training, in processor
time of one thread. What is not: making the data, testing, and passes of a serving process.
"""

import contextlib
import copy
import io
import itertools
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adasel_stream import LossRecord, SelectingLoader
from benchmarks.evidence.contestants import Contestant
from benchmarks.evidence.problem import Examples, Problem, Task, generator
from benchmarks.evidence.rules import RULES

__all__ = ["Outcome", "train", "updates_of"]

TESTS = 10
"""How often the network is tested on the way."""

STREAM_TEST_ROWS = 2_000
"""Rows that come next in a stream, on which it is tested."""

STREAM_TESTS = 40

WARM_UP = 0.1
"""Share of the updates over which the learning rate rises, and of a stream that is not tested."""

SERVED_EVERY = 20
"""Updates between two models that are put into service."""


@dataclass
class Outcome:
    """What came out of a cell.

    Attributes:
        updates: made.
        candidates: rows offered.
        quality: measures at the end of training, or averaged over a stream.
        seconds: processor time by phase.
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
    task: Task, problem: Problem, contestant: Contestant, rate: float, seed: int, updates: int
) -> Outcome:
    """Train for so many updates, with the learning rate decayed within them.

    A stream's learning rate stays, since a stream has no end to decay towards; where it is read
    through before the updates are made, that is the end.
    """
    torch.manual_seed(seed)
    run = Run(task, problem, contestant, rate, seed, updates)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        return run.outcome()


class Run:
    """One training run."""

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
        self.served = copy.deepcopy(self.network)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0, momentum=0.9)
        self.result = Outcome()
        self.untimed = 0.0
        self.began = 0.0
        self.position = 0
        self.sums: dict[str, float] = {}
        self.tested = 0
        self.loader: SelectingLoader | None = None

    def outcome(self) -> Outcome:
        """Run, and give what came out."""
        torch.manual_seed(self.seed + 1)
        batches = self._batches()
        self.began = time.process_time()
        for number in range(self.updates):
            self._schedule(number)
            with self._off_the_clock():
                self._test_on_the_way(number)
            batch = next(batches, None)
            if batch is None:
                break
            loss = self._loss(batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call] # untyped in torch
            self.optimizer.step()
            self.result.updates += 1
        seconds = time.process_time() - self.began - self.untimed
        self._finish(seconds)
        return self.result

    def _loss(self, batch: Examples) -> Tensor:
        losses = self.problem.losses(self.network, batch)
        if self.loader is not None:
            return self.loader.mean(losses)
        weights = batch.get("weights")
        return losses.mean() if weights is None else (losses * weights).mean()

    def _schedule(self, number: int) -> None:
        rise = min(1.0, (number + 1) / max(1.0, WARM_UP * self.updates))
        fall = 1.0
        if self.task.kind == "epochs":
            fall = 0.5 * (1 + math.cos(math.pi * number / self.updates))
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.learning_rate * rise * fall

    def _candidates(self) -> Iterator[Examples]:
        """Offer rows in seeded order: a stream once, shuffled epochs without end."""
        rows, size = self.problem.train, self.task.batch_size
        count = len(rows["x"])
        random = generator(self.seed + 2)
        while True:
            order = None if self.task.kind == "stream" else torch.randperm(count, generator=random)
            for start in range(0, count - size + 1, size):
                self.position = start + size
                self.result.candidates += size
                part: Any = (
                    slice(start, start + size) if order is None else order[start : start + size]
                )
                batch = {name: column[part] for name, column in rows.items()}
                batch["id"] = torch.arange(start, start + size) if order is None else part
                yield batch
            if self.task.kind == "stream":
                return

    def _batches(self) -> Iterator[Examples]:
        kind = self.contestant.kind
        if kind == "all":
            return self._candidates()
        if kind == "even":
            return self._share()
        if kind == "rule":
            return self._by_rule()
        self.loader = self._make_loader()
        return iter(self.loader)

    def _share(self) -> Iterator[Examples]:
        """Take an even share at the least cost: the first rows of shuffled windows."""
        random = generator(self.seed + 3)
        waiting: list[Examples] = []
        window = max(1, round(1 / self.rate))
        due = 0.0
        source = self._candidates()
        size = self.task.batch_size
        while True:
            some = list(itertools.islice(source, window))
            if not some:
                return
            due += self.rate * size * len(some)
            take, due = int(due), due - int(due)
            order = torch.randperm(size * len(some), generator=random)[:take]
            joined = {name: torch.cat([one[name] for one in some])[order] for name in some[0]}
            waiting.append(joined)
            while sum(len(one["x"]) for one in waiting) >= size:
                pool = {name: torch.cat([one[name] for one in waiting]) for name in joined}
                yield {name: column[:size] for name, column in pool.items()}
                waiting = [{name: column[size:] for name, column in pool.items()}]

    def _by_rule(self) -> Iterator[Examples]:
        size = self.task.batch_size
        total = int(self.updates * size / self.rate)
        rule = RULES[self.contestant.name](self.rate, total, self.seed + 4)
        recorded = torch.full((len(self.problem.train["x"]),), torch.nan)
        waiting: list[Examples] = []
        for batch in self._candidates():
            if rule.records:
                losses = recorded[batch["id"]]
            else:
                with torch.no_grad():
                    losses = self.problem.losses(self.network, batch)
            kept, weights = rule(batch["id"], losses)
            waiting.append({n: c[kept] for n, c in batch.items()} | {"weights": weights})
            if sum(len(one["x"]) for one in waiting) < size:
                continue
            pool = {name: torch.cat([one[name] for one in waiting]) for name in waiting[0]}
            chosen = {name: column[:size] for name, column in pool.items()}
            waiting = [{name: column[size:] for name, column in pool.items()}]
            yield chosen
            if rule.records:  # the losses of the pass that trained, before its update
                with self._off_the_clock(), torch.no_grad():
                    recorded[chosen["id"]] = self.problem.losses(self.network, chosen)

    def _make_loader(self) -> SelectingLoader:
        one, losses = self.contestant, self.problem.losses
        options: dict[str, Any] = {}
        if one.methods is not None:
            options["methods"] = list(one.methods)
            if one.name == "reducible_loss":
                reference = self._reference_losses()
                options["reference"] = lambda batch: reference[batch["id"]]
        if one.single or one.name == "paper":
            options["window"] = max(1, math.ceil(1 / self.rate))
        if one.losses != "forward":
            count = len(self.problem.train["x"])
            # the other engine would be compiled in the first run, on the clock
            options |= {"record": LossRecord(2 * count, engine="numpy"), "ids": "id"}
        else:
            options |= {
                "score": lambda batch: losses(self.network, batch),
                "model": self.network,
            }
        source = self._served() if one.losses == "serving" else self._candidates()
        return SelectingLoader(
            source, sampling_rate=self.rate, policy=one.policy(), seed=self.seed, **options
        )

    def _served(self) -> Iterator[Examples]:
        """Let a serving process meet each row first, with a model some updates old."""
        for batch in self._candidates():
            with self._off_the_clock(), torch.no_grad():
                if self.result.updates % SERVED_EVERY == 0:
                    self.served.load_state_dict(self.network.state_dict())
                losses = self.problem.losses(self.served, batch)
            assert self.loader is not None
            self.loader.observe(batch["id"], losses)
            yield batch

    def _reference_losses(self) -> Tensor:
        """Train a reference model on rows kept aside, and give its losses of all rows."""
        with self._off_the_clock():
            torch.manual_seed(self.seed + 5)
            network, rows = self.problem.network(), self.problem.reference
            if not rows:  # a stream's first rows are all that can be kept aside
                rows = {n: c[: len(c) // 10] for n, c in self.problem.train.items()}
            optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
            random, steps = generator(self.seed + 6), 400
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = self.task.learning_rate * (1 - step / steps)
                chosen = torch.randint(len(rows["x"]), (self.task.batch_size,), generator=random)
                optimizer.zero_grad()
                batch = {name: column[chosen] for name, column in rows.items()}
                loss = self.problem.losses(network, batch).mean()
                loss.backward()  # type: ignore[no-untyped-call] # untyped in torch
                optimizer.step()
            with torch.no_grad():
                parts = [
                    self.problem.losses(network, {n: c[at : at + 4096] for n, c in every.items()})
                    for every in [self.problem.train]
                    for at in range(0, len(every["x"]), 4096)
                ]
        return torch.cat(parts)

    def _test_on_the_way(self, number: int) -> None:
        stream = self.task.kind == "stream"
        tests = STREAM_TESTS if stream else TESTS
        if number * tests // self.updates == (number - 1) * tests // self.updates or not number:
            return
        if not stream:
            self._note(self._quality(self.problem.test))
        elif number >= WARM_UP * self.updates:
            ahead = slice(self.position, self.position + STREAM_TEST_ROWS)
            rows = {name: column[ahead] for name, column in self.problem.train.items()}
            if len(rows["x"]) == STREAM_TEST_ROWS:
                quality = self._quality(rows)
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
        seconds = self.off_since - self.began - self.untimed
        self.result.curve.append((self.result.updates, seconds, next(iter(quality.values()))))

    def _finish(self, seconds: float) -> None:
        if self.task.kind == "stream":
            quality = {name: value / max(1, self.tested) for name, value in self.sums.items()}
        else:
            quality = self._quality(self.problem.test)
            value = next(iter(quality.values()))
            self.result.curve.append((self.result.updates, seconds, value))
        if "predicted" in quality:
            quality["predicted / actual"] = quality.pop("predicted") / quality.pop("actual")
        self.result.quality = quality
        self.result.seconds = {"all": seconds}
        if self.loader is not None:
            self.result.seconds |= self.loader.metrics.phase_seconds

    @contextlib.contextmanager
    def _off_the_clock(self) -> Iterator[None]:
        self.off_since = time.process_time()
        try:
            yield
        finally:
            self.untimed += time.process_time() - self.off_since


def same_weights(network: nn.Module, other: nn.Module) -> bool:
    """Say whether two networks have equal weights."""
    return all(
        torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True)
    )
