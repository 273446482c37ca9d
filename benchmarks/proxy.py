"""Scoring by a student that is distilled on the fly, beside the model's own scoring and none.

A stream passes by once. Every arm trains the same network, from the same weights, on 64 of every
320 candidates:

- uniform: drawn evenly, not scored;
- model: drawn by the network's own losses, policy `auto`;
- student: drawn likewise by the losses of a network of under a twentieth of the weights, which
  learns the model's logits from the rows that the model trains on, as they are weighed there;
- twice: uniform on 128 of every 320, in twice as many updates, which takes as long as `model`.

Times are processor time of the thread: of scoring candidates, and of training, to which the
student's own training counts. The loss is the model's, of all candidates before it is trained on
them, taken outside these times; differences are means over seeds with their standard errors. The
rank correlation of the student's losses with the model's is what `ProxyWatch` measured on trained
rows, and beside it the truth: that of all candidates which those rows were drawn from.

One thread; one or two minutes. Rows, first weights and draws differ by seed.
"""

import argparse
import statistics
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as log_losses

from adasel_stream import SelectingLoader
from adasel_stream.demo.model import USUAL_LOGIT
from adasel_stream.proxy import Proxy, ProxyWatch
from adasel_stream.spearman import Correlation, spearman
from benchmarks.evidence.problem import Examples, Task
from benchmarks.evidence.tasks.click import CLICK
from benchmarks.evidence.tasks.flights import FLIGHTS
from benchmarks.evidence.tasks.networks import guessing, perceptron, yes_losses

ARMS = ("uniform", "model", "student", "twice")
CANDIDATES = 320
BATCH_SIZE = 64
HIDDEN = 512
STUDENT_HIDDEN = 64
STUDENT_RATE = 0.05
WATCHED = 40
"""Updates whose rows `ProxyWatch` looks at: 20 groups of two batches."""


@dataclass(frozen=True)
class Setting:
    """A stream of rows that are 0 or 1.

    Attributes:
        task: makes the rows.
        logit: the first guess.
        learning_rate: of SGD with momentum 0.9.
    """

    task: Task
    logit: float
    learning_rate: float


SETTINGS = {
    "click": Setting(CLICK, -3.3, 0.1),  # 0.1 is the best of 0.05, 0.1 and 0.2 for uniform
    "flights": Setting(FLIGHTS, USUAL_LOGIT, FLIGHTS.learning_rate),
}


class Learner:
    """A network with its optimizer, SGD with momentum 0.9.

    Args:
        network: as it begins.
        learning_rate: of the optimizer.
    """

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        self.network = network
        self._optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)

    def logits(self, rows: Examples) -> Tensor:
        """Give the logit of each row, shape (b,)."""
        outputs: Tensor = self.network(rows["x"])
        return outputs[:, 0]

    def losses(self, rows: Examples) -> Tensor:
        """Give the log loss of each row, shape (b,)."""
        return yes_losses(self.network, rows)

    def update(self, loss: Tensor) -> None:
        """Make one step down the gradient of a loss, shape ()."""
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        self._optimizer.step()
        self._optimizer.zero_grad()


class Student:
    """A small network that learns the model's logits and ranks candidates in its place.

    Args:
        network: as it begins.
    """

    def __init__(self, network: nn.Module) -> None:
        self.learner = Learner(network, STUDENT_RATE)
        self.proxy = Proxy(self.learner.losses)
        self.watch = ProxyWatch(self.proxy.floor)

    def learn(self, rows: Examples, logits: Tensor, losses: Tensor, weights: Tensor) -> None:
        """Compare losses with the model's, and move towards its logits.

        Args:
            rows: b rows that the model was trained on.
            logits: the model's, shape (b,).
            losses: the model's, shape (b,).
            weights: the loader's, shape (b,).
        """
        own = self.learner.logits(rows)
        # no update lies between the draw of these rows and now, so that this is what drew them
        said = log_losses(own.detach(), rows["y"], reduction="none")
        self.watch.learn(said.numpy(), losses.numpy(), weights.numpy())
        apart = log_losses(own, torch.sigmoid(logits), reduction="none")
        self.learner.update((weights * apart).mean())


@dataclass
class Run:
    """What an arm came to.

    Attributes:
        scoring_s: time of scoring candidates.
        training_s: time of training, the student's included.
        losses: the model's mean loss of each candidate batch before training.
        truths: rank correlation of the student's losses with the model's in each of those.
        measured: what `ProxyWatch` knew of it then.
    """

    scoring_s: float = 0.0
    training_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    truths: list[float] = field(default_factory=list)
    measured: list[Correlation] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Scoring and training."""
        return self.scoring_s + self.training_s

    @property
    def loss(self) -> float:
        """Mean loss of the stream."""
        return statistics.fmean(self.losses)

    @property
    def late_loss(self) -> float:
        """Mean loss of its last quarter."""
        return statistics.fmean(self.losses[-len(self.losses) // 4 :])

    @contextmanager
    def timed(self, name: str) -> Generator[None]:
        """Add a block's time to one of the times."""
        began = time.thread_time()
        yield
        setattr(self, name, getattr(self, name) + time.thread_time() - began)


class Arm:
    """A model, its student, and how rows are chosen.

    Args:
        name: one of `ARMS`.
        setting: the stream.
        seed: of rows, first weights and draws.
    """

    def __init__(self, name: str, setting: Setting, seed: int) -> None:
        self._name = name
        self._seed = seed
        self._rows = setting.task.make(None, seed).train
        inputs = self._rows["x"].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            large = guessing(perceptron(inputs, HIDDEN, 1, layers=2), setting.logit)
            small = guessing(perceptron(inputs, STUDENT_HIDDEN, 1), setting.logit)
        self._model = Learner(large, setting.learning_rate)
        self._student = Student(small) if name == "student" else None
        self._run = Run()

    def run(self) -> Run:
        """Pass through the stream."""
        loader = self._loader()
        for batch in loader:
            with self._run.timed("training_s"):
                logits = self._model.logits(batch)
                losses = log_losses(logits, batch["y"], reduction="none")
                self._model.update(loader.mean(losses))
                if self._student is not None:
                    self._student.learn(batch, logits.detach(), losses.detach(), loader.weights)
        return self._run

    def _loader(self) -> SelectingLoader:
        """Choose from candidates as the arm does."""
        rate = BATCH_SIZE / CANDIDATES
        if self._name in ("uniform", "twice"):
            return SelectingLoader(
                self._candidates(),
                score=lambda batch: torch.ones_like(batch["y"]),
                policy="unbiased",
                methods=["uniform"],
                sampling_rate=rate if self._name == "uniform" else 2 * rate,
                batch_size=BATCH_SIZE,
                seed=self._seed,
            )
        learner = self._model if self._student is None else self._student.learner

        def score(batch: Examples) -> Tensor:
            with self._run.timed("scoring_s"):
                return learner.losses(batch)

        return SelectingLoader(
            self._candidates(),
            score=score if self._student is None else Proxy(score),
            model=learner.network,
            sampling_rate=rate,
            batch_size=BATCH_SIZE,
            seed=self._seed,
        )

    def _candidates(self) -> Iterator[Examples]:
        """Give candidates, and note before how the model does on them."""
        for start in range(0, len(self._rows["y"]) - CANDIDATES + 1, CANDIDATES):
            batch = {n: column[start : start + CANDIDATES] for n, column in self._rows.items()}
            with torch.no_grad():
                losses = self._model.losses(batch)
                self._run.losses.append(float(losses.mean()))
                if self._student is not None:
                    said = self._student.learner.losses(batch)
                    truth = spearman(said.numpy(), losses.numpy(), np.ones(CANDIDATES))
                    self._run.truths.append(truth)
                    self._run.measured.append(self._student.watch.correlation)
            yield batch


def show_arms(runs: dict[str, list[Run]]) -> None:
    """Print times and losses, and both beside uniform."""
    print(f"{'arm':<8}{'scoring s':>10}{'training s':>11}{'beside uniform':>15}", end="")
    print(f"{'loss':>8}{'beside uniform':>18}{'last quarter':>13}{'beside uniform':>18}")
    base = runs["uniform"]
    for name, mine in runs.items():
        scoring = statistics.fmean(run.scoring_s for run in mine)
        training = statistics.fmean(run.training_s for run in mine)
        ratio = statistics.median(m.seconds / b.seconds for m, b in zip(mine, base, strict=True))
        print(f"{name:<8}{scoring:>10.2f}{training:>11.2f}{ratio:>14.2f}x", end="")
        for which, width in (("loss", 8), ("late_loss", 13)):
            losses = [getattr(run, which) for run in mine]
            apart = [a - getattr(b, which) for a, b in zip(losses, base, strict=True)]
            error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
            print(f"{statistics.fmean(losses):>{width}.4f}", end="")
            print(f"{f'{statistics.fmean(apart):+.4f} ± {error:.4f}':>18}", end="")
        print()


def show_student(model: list[Run], student: list[Run]) -> None:
    """Print what the student costs beside the model's scoring, and how well it ranks."""
    cost = statistics.median(s.scoring_s / m.scoring_s for s, m in zip(student, model, strict=True))
    taught = statistics.median(
        (s.seconds - m.training_s) / m.scoring_s for s, m in zip(student, model, strict=True)
    )
    print(
        f"\nthe student's scoring takes {cost:.3f} of the model's, with its training {taught:.3f}"
    )
    print("rank correlation after each tenth of the stream, of the first seed:")
    run = student[0]
    for tenth in range(1, 11):
        end = round(len(run.losses) * tenth / 10)
        value, low, high = run.measured[end - 1]
        truth = statistics.fmean(run.truths[max(0, end - WATCHED) : end])
        print(f"  {tenth:>2}: measured {value:.3f} ({low:.3f} to {high:.3f}), truth {truth:.3f}")


def main() -> None:
    """Run all arms, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=SETTINGS, default="click")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, list[Run]] = {name: [] for name in ARMS}
    for seed in range(options.seeds):
        for name in ARMS:
            runs[name].append(Arm(name, SETTINGS[options.task], seed).run())
    updates = len(runs["uniform"][0].losses)
    print(f"{options.task}: {updates:,} updates of {BATCH_SIZE} rows, {options.seeds} seeds")
    show_arms(runs)
    show_student(runs["model"], runs["student"])


if __name__ == "__main__":
    main()
