"""A stream like that of clicks: rare, from many sources, and what makes them drifts."""

import math
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.evidence.problem import Problem, Task, generator
from benchmarks.evidence.tasks.networks import guessing, log_loss, perceptron, yes_losses

__all__ = ["CLICK"]

ROWS = 200_000
NUMBERS = 20
SOURCES = 50
"""Values of a categorical feature, the n-th of which comes with a chance of about 1/n."""


def click(_data: Path | None, seed: int) -> Problem:
    """Draw rows of which some 3 % are clicks, by a model that turns into another one."""
    random = generator(seed)
    numbers = torch.randn(ROWS, NUMBERS, generator=random)
    chances = 1 / torch.arange(1, SOURCES + 1)
    sources = torch.multinomial(chances, ROWS, replacement=True, generator=random)
    logits = drifting(numbers, sources, random)
    y = (torch.rand(ROWS, generator=random) < torch.sigmoid(logits)).float()
    x = torch.cat([numbers, torch.nn.functional.one_hot(sources, SOURCES).float()], 1)
    network = lambda: guessing(perceptron(NUMBERS + SOURCES, 128, 1, layers=2), -3.3)  # noqa: E731 # short
    return Problem({"x": x, "y": y}, {}, {}, network, yes_losses, log_loss)


def drifting(numbers: Tensor, sources: Tensor, random: torch.Generator) -> Tensor:
    """Give the true logit of each row: weights turn by half a circle over the stream."""
    before, after = 0.4 * torch.randn(2, NUMBERS, generator=random)
    worth = torch.randn(SOURCES, generator=random) * 0.7
    angle = torch.linspace(0, math.pi, len(sources))[:, None]
    linear: Tensor = (numbers * (torch.cos(angle) * before + torch.sin(angle) * after)).sum(1)
    return linear + 0.5 * numbers[:, 0] * numbers[:, 1] + worth[sources] - 4.8


CLICK = Task(
    name="click",
    make=click,
    measure="log loss",
    better="lower",
    kind="stream",
    batch_size=64,
    updates=0,
    learning_rate=0.2,
)
