"""What a task is: data, a network, a loss, a measure of quality, and how long to train."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["DataError", "Examples", "Problem", "Task", "file_of"]

Examples: TypeAlias = dict[str, Tensor]
"""Columns of n rows each: `x`, `y` and what else a network reads."""


class DataError(Exception):
    """A data set is missing or damaged; the message names the file."""


@dataclass(frozen=True)
class Problem:
    """One seed of a task.

    Attributes:
        train: training rows, in the order of the stream where the task is one.
        test: rows that nobody trains on; empty for streams, which are tested on what comes next.
        reference: rows for a reference model, kept aside; empty where there is none to spare, as
            in streams.
        network: makes the network, from torch's global generator.
        losses: per-row losses of the network, shape (n,).
        quality: measures of the network on rows, the first one being what counts.
    """

    train: Examples
    test: Examples
    reference: Examples
    network: Callable[[], nn.Module]
    losses: Callable[[nn.Module, Examples], Tensor]
    quality: Callable[[nn.Module, Examples], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """A task: how to make a problem of a seed, and how to train on it.

    Attributes:
        name: as in the results.
        make: from the data folder and a seed to a problem.
        measure: name of the first quality, for tables.
        better: whether "higher" or "lower" values are better.
        kind: "epochs" over shuffled rows, or a "stream" that is read once, in order.
        batch_size: rows of an update.
        updates: updates of full training over epochs; a stream has as many as it has batches.
        learning_rate: of SGD with momentum 0.9 at its height.
        seeds: how many pairs are run where nothing else is asked for.
        published: the paper's row of Table 5 for the same task, by contestant.
        note: how the task differs from the paper's, in a sentence.
    """

    name: str
    make: Callable[[Path | None, int], Problem]
    measure: str
    better: Literal["higher", "lower"]
    kind: Literal["epochs", "stream"]
    batch_size: int
    updates: int
    learning_rate: float
    seeds: int = 5
    published: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def file_of(data: Path | None, *names: str) -> Path:
    """Find a file under the data folder.

    Raises:
        DataError: no folder was given, or the file is not in it.
    """
    wanted = Path(*names)
    if data is None:
        raise DataError(f"the task needs {wanted} in a data folder: pass --data FOLDER")
    path = data / wanted
    if not path.is_file():
        raise DataError(f"{path} is missing; benchmarks/evidence/README.md says where to get it")
    return path


def generator(seed: int) -> torch.Generator:
    """Make a generator of a seed."""
    return torch.Generator().manual_seed(seed)
