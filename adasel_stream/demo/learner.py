"""What every arm trains: the same network, with the same optimizer, from the same weights."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Adam

from adasel_stream.demo.model import DelayNet, Inputs, inputs, losses_of
from adasel_stream.demo.progressive import Progressive
from adasel_stream.types import Batch

__all__ = ["BATCH_SIZE", "LEARNING_RATE", "Learner"]

BATCH_SIZE = 64
"""Samples of one update, for every arm."""

LEARNING_RATE = 1e-3
"""For every arm; the best of 5e-4, 1e-3 and 2e-3 for the uniform arm."""


class Learner:
    """A network, its optimizer, and what it predicted before it was trained.

    Args:
        sizes: how many values each code can take.
        rows: samples of the stream.
        seed: of the first weights.
    """

    def __init__(self, sizes: Sequence[int], rows: int, seed: int) -> None:
        """Start untrained."""
        self.network = DelayNet(sizes, seed=seed)
        self.progressive = Progressive(rows)
        self.updates = 0
        self._optimizer = Adam(self.network.parameters(), lr=LEARNING_RATE)

    def score(self, batch: Batch) -> Tensor:
        """Give the losses of samples that come for the first time, shape (b,), and keep them."""
        flights = inputs(batch)
        logits = self.network(flights)
        losses = losses_of(logits, flights)
        self.progressive.add(losses.detach(), logits.detach(), flights.late)
        return losses

    def losses(self, flights: Inputs) -> Tensor:
        """Give the losses of samples to train on, shape (b,), with gradient."""
        return losses_of(self.network(flights), flights)

    def update(self, loss: Tensor) -> None:
        """Make one step down the gradient of `loss`, shape ()."""
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Describe weights, optimizer and predictions."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "progressive": self.progressive.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.progressive.load_state_dict(state["progressive"])
        self.updates = int(state["updates"])
