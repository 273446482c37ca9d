"""The product's way: a SelectingLoader for a contestant, with losses from where it has them."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adasel_stream import LossRecord, SelectingLoader
from benchmarks.evidence.candidates import Candidates
from benchmarks.evidence.clock import Clock
from benchmarks.evidence.contestants import Contestant
from benchmarks.evidence.problem import Examples, Problem, Task, generator

__all__ = ["loader_for", "reference_losses"]

SERVED_EVERY = 20
"""Updates between two models that are put into service."""

REFERENCE_UPDATES = 400


def loader_for(
    task: Task,
    problem: Problem,
    contestant: Contestant,
    network: nn.Module,
    candidates: Candidates,
    clock: Clock,
    *,
    rate: float,
    seed: int,
    updates: Callable[[], int],
) -> SelectingLoader:
    """Make the loader of a contestant.

    Args:
        task: for the reference model's training.
        problem: rows and losses.
        contestant: says policy, methods and where losses come from.
        network: that is trained, and scored where losses come from a forward pass.
        candidates: rows to choose from.
        clock: counts scoring as "score", and stops for serving and the reference model.
        rate: sampling rate.
        seed: of the loader and the reference model.
        updates: says how many updates were made.
    """
    options: dict[str, Any] = {}
    if contestant.methods is not None:
        options["methods"] = list(contestant.methods)
    if contestant.name == "reducible_loss":
        with clock.off():
            reference = reference_losses(task, problem, seed)
        options["reference"] = _Lookup(reference)
    if contestant.single or contestant.name == "paper":
        options["window"] = max(1, math.ceil(1 / rate))
    if contestant.losses == "forward":
        options |= {"score": _Score(network, problem.losses, clock), "model": network}
    else:
        # the other engine would be compiled in the first run, on the clock
        record = LossRecord(2 * len(problem.train["x"]), engine="numpy")
        options |= {"record": record, "ids": "id"}
    serving = _Serving(candidates, problem.losses, network, clock, updates)
    loader = SelectingLoader(
        serving if contestant.losses == "serving" else candidates,
        sampling_rate=rate,
        policy=contestant.policy(),
        seed=seed,
        **options,
    )
    serving.loader = loader
    return loader


class _Lookup:
    """Losses by id."""

    def __init__(self, losses: Tensor) -> None:
        self._losses = losses

    def __call__(self, batch: Examples) -> Tensor:
        return self._losses[batch["id"]]


class _Score:
    """Losses by a forward pass."""

    def __init__(
        self, network: nn.Module, losses: Callable[[nn.Module, Examples], Tensor], clock: Clock
    ) -> None:
        self._network, self._losses, self._clock = network, losses, clock

    def __call__(self, batch: Examples) -> Tensor:
        with self._clock.phase("score"):
            return self._losses(self._network, batch)


class _Serving:
    """Let a serving process meet each row first, with a model some updates old."""

    def __init__(
        self,
        candidates: Candidates,
        losses: Callable[[nn.Module, Examples], Tensor],
        network: nn.Module,
        clock: Clock,
        updates: Callable[[], int],
    ) -> None:
        self._candidates, self._losses, self._network = candidates, losses, network
        self._served = copy.deepcopy(network)
        self._clock, self._updates = clock, updates
        self.loader: SelectingLoader | None = None

    def __iter__(self) -> Iterator[Examples]:
        for batch in self._candidates:
            with self._clock.off(), torch.no_grad():
                if self._updates() % SERVED_EVERY == 0:
                    self._served.load_state_dict(self._network.state_dict())
                losses = self._losses(self._served, batch)
            assert self.loader is not None, "it is set where this is made"
            self.loader.observe(batch["id"], losses)
            yield batch


def reference_losses(task: Task, problem: Problem, seed: int) -> Tensor:
    """Train a reference model on rows kept aside, and give its losses of all rows, shape (n,)."""
    torch.manual_seed(seed + 5)
    network, rows = problem.network(), problem.reference
    if not rows:  # a stream's first rows are all that can be kept aside
        rows = {name: column[: len(column) // 10] for name, column in problem.train.items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    random = generator(seed + 6)
    for step in range(REFERENCE_UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = task.learning_rate * (1 - step / REFERENCE_UPDATES)
        chosen = torch.randint(len(rows["x"]), (task.batch_size,), generator=random)
        optimizer.zero_grad()
        batch = {name: column[chosen] for name, column in rows.items()}
        loss = problem.losses(network, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call] # untyped in torch
        optimizer.step()
    train = problem.train
    with torch.no_grad():
        parts = [
            problem.losses(network, {name: c[at : at + 4096] for name, c in train.items()})
            for at in range(0, len(train["x"]), 4096)
        ]
    return torch.cat(parts)
