"""A year of flights in order of departure: will this one be late?"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from adasel_stream.demo.flights import CODES, FLAGS, LABEL, NUMBERS, read
from adasel_stream.demo.model import FARTHEST, SCALES, USUAL_LOGIT
from benchmarks.evidence.problem import Examples, Problem, Task, generator
from benchmarks.evidence.tasks.networks import guessing, log_loss, perceptron, yes_losses

__all__ = ["FLIGHTS"]

ROWS = 160_000


@lru_cache(maxsize=1)
def table() -> Examples:
    """Read all flights: codes as one of many, numbers scaled as the demo does."""
    flights = read().table
    columns = []
    for name in CODES:
        codes = torch.from_numpy(flights[name].to_numpy().astype(np.int64))
        columns.append(torch.nn.functional.one_hot(codes).float())
    for name in NUMBERS:
        usual, stray = SCALES[name]
        values = torch.from_numpy(flights[name].to_numpy().copy())
        columns.append(((values - usual) / stray).clamp(-FARTHEST, FARTHEST)[:, None])
    flags = np.stack([flights[name].to_numpy() for name in FLAGS], axis=1)
    columns.append(torch.from_numpy(flags.astype(np.float32)))
    late = torch.from_numpy(flights[LABEL].to_numpy().astype(np.float32))
    return {"x": torch.cat(columns, 1), "y": late}


def flights(_data: Path | None, seed: int) -> Problem:
    """Begin on another day of the first months with every seed."""
    every = table()
    start = 890 * int(torch.randint(100, (), generator=generator(seed)))
    rows = {name: column[start : start + ROWS] for name, column in every.items()}
    inputs = rows["x"].shape[1]
    network = lambda: guessing(perceptron(inputs, 128, 1, layers=2), USUAL_LOGIT)  # noqa: E731 # short
    return Problem(rows, {}, {}, network, yes_losses, log_loss)


FLIGHTS = Task(
    name="flights",
    make=flights,
    measure="log loss",
    better="lower",
    kind="stream",
    batch_size=64,
    updates=0,
    learning_rate=0.01,
    seeds=10,
)
