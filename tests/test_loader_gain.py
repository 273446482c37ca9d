"""What `auto` says it removes of uniform sampling's noise, against emitted batches themselves."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, softmax

from adasel_stream import SelectingLoader
from adasel_stream.paying import Gain
from tests.candidates import generator
from tests.streams import Rows

CLASSES = 5
BATCH = 64
BATCHES = 200


class Seen(NamedTuple):
    """What came of a run on a frozen model.

    Attributes:
        gain: as the loader says.
        removed: share of the noise of uniform batches that emitted ones, one by one, do not have.
        largest_class: share of an emitted batch that its largest class has, on average.
    """

    gain: Gain
    removed: float
    largest_class: float


class Frozen:
    """A softmax regression that is never updated, on rows of the same distribution for ever."""

    def __init__(self, seed: int) -> None:
        self.random = generator(seed)
        self.truth = torch.randn(8, CLASSES, generator=self.random)
        self.model = nn.Linear(8, CLASSES)
        with torch.no_grad():
            self.model.weight.copy_(0.7 * self.truth.T)
            self.model.bias.zero_()

    def rows(self, count: int) -> Rows:
        """Draw rows."""
        x = torch.randn(count, 8, generator=self.random)
        y = torch.multinomial(softmax(x @ self.truth, 1), 1, generator=self.random)[:, 0]
        return {"x": x, "y": y}

    def losses(self, batch: Rows) -> Tensor:
        """Score rows."""
        return cross_entropy(self.model(batch["x"]), batch["y"], reduction="none")

    def gradients(self, batch: Rows) -> Tensor:
        """Differentiate each loss by hand, shape (b, 45)."""
        with torch.no_grad():
            errors = softmax(self.model(batch["x"]), 1) - one_hot(batch["y"], CLASSES)
        inputs = torch.cat([batch["x"], torch.ones(len(errors), 1)], 1)
        return (errors[:, :, None] * inputs[:, None, :]).flatten(1)

    def run(self, candidates: int, rate: float) -> Seen:
        """Choose from candidate batches of so many rows."""
        every = self.gradients(self.rows(100_000))
        uniform = float(every.var(0).sum()) / BATCH
        offered = int(BATCHES * BATCH / rate / candidates)
        loader = SelectingLoader(
            (self.rows(candidates) for _ in range(offered)),
            score=self.losses,
            model=self.model,
            sampling_rate=rate,
            batch_size=BATCH,
        )
        errors, shares = [], []
        for batch in loader:
            loader.mean(self.losses(batch))
            estimate = (loader.weights[:, None] * self.gradients(batch)).mean(0)
            errors.append(float((estimate - every.mean(0)).square().sum()))
            shares.append(float(batch["y"].bincount().max()) / BATCH)
        removed = 1 - sum(errors) / len(errors) / uniform
        return Seen(loader.gain, removed, sum(shares) / len(shares))


@pytest.mark.parametrize(
    ("candidates", "rate"), [(64, 0.1), (64, 0.3), (64, 0.5), (256, 0.25), (1024, 0.25)]
)
def test_gain_is_what_is_removed_of_the_noise_of_a_batch(candidates: int, rate: float) -> None:
    """Whether a window makes one batch, a batch and a bit, or many."""
    seen = Frozen(seed=1).run(candidates, rate)
    assert seen.gain.low - 0.05 < seen.removed < seen.gain.high + 0.05
    assert seen.removed > 0.25


def test_batches_of_one_window_are_alike() -> None:
    """They are laid out by where they pull the model, and would come class by class."""
    assert Frozen(seed=2).run(1024, 0.25).largest_class < 0.3
