"""A small network that says how likely a flight is to be late.

Nothing in it was looked up in the year that it learns from: numbers are scaled by constants of
New York's climate and of domestic flights, and the first guess is the share of late flights that
the statistics of the years before show.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from adasel_stream.demo.flights import CODES, FLAGS, LABEL, NUMBERS
from adasel_stream.types import Batch

__all__ = ["DelayNet", "Inputs", "inputs", "losses_of"]

SCALES: Mapping[str, tuple[float, float]] = {
    "distance": (1000.0, 700.0),
    "temp": (55.0, 18.0),
    "dewp": (42.0, 19.0),
    "humid": (60.0, 20.0),
    "wind_dir": (180.0, 100.0),
    "wind_speed": (10.0, 6.0),
    "wind_gust": (25.0, 6.0),
    "precip": (0.0, 0.1),
    "pressure": (1018.0, 8.0),
    "visib": (9.0, 2.0),
}
"""For each number what is usual and how far it usually strays, in the number's own unit."""

FARTHEST = 5.0
"""Numbers count as no farther from the usual than this many strays; one wind of 1,048 mph is
reported."""

USUAL_LOGIT = -1.4
"""The first guess: about one flight in five is late."""


class Inputs(NamedTuple):
    """What the network reads of b flights.

    Attributes:
        codes: shape (b, 6), int64, in the order of `CODES`.
        numbers: shape (b, 10), float32, in the order of `NUMBERS`, in their own units.
        flags: shape (b, 9), float32, in the order of `FLAGS`.
        late: shape (b,), float32, 0 or 1.
    """

    codes: Tensor
    numbers: Tensor
    flags: Tensor
    late: Tensor


def inputs(batch: Batch) -> Inputs:
    """Gather the network's inputs from a batch of Parquet columns or of tar members.

    >>> row = torch.arange(26.0)  # 6 codes, 10 numbers, 9 flags and the label
    >>> one = inputs({"npy": row[None]})
    >>> [tuple(part.shape) for part in one], one.late
    ([(1, 6), (1, 10), (1, 9), (1,)], tensor([25.]))
    """
    if "npy" in batch:
        codes, numbers, flags, late = batch["npy"].split(
            [len(CODES), len(NUMBERS), len(FLAGS), 1], dim=1
        )
        return Inputs(codes.long(), numbers, flags, late[:, 0])
    return Inputs(
        _stacked(batch, CODES).long(),
        _stacked(batch, NUMBERS),
        _stacked(batch, FLAGS).float(),
        batch[LABEL].float(),
    )


def _stacked(batch: Mapping[str, Any], names: Sequence[str]) -> Tensor:
    return torch.stack([batch[name] for name in names], dim=1)


class DelayNet(nn.Module):
    """Embeddings and scaled numbers through two hidden layers to one logit.

    Args:
        sizes: how many values each code can take, in the order of `CODES`.
        width: units of a hidden layer.
        embedding: numbers that stand for one code.
        seed: of the first weights; no global generator is touched.

    >>> network = DelayNet((16, 3, 104, 24, 7, 12), width=8)
    >>> network(inputs({"npy": torch.zeros(2, 26)})).shape
    torch.Size([2])
    """

    def __init__(
        self, sizes: Sequence[int], *, width: int = 512, embedding: int = 8, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embeddings = nn.ModuleList(nn.Embedding(size, embedding) for size in sizes)
            self.hidden = nn.Sequential(
                nn.Linear(embedding * len(sizes) + len(NUMBERS) + len(FLAGS), width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
            )
            for table in self.embeddings:
                nn.init.normal_(table.weight, std=0.1)  # type: ignore[arg-type]
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, USUAL_LOGIT)
        scales = torch.tensor([SCALES[name] for name in NUMBERS])
        self.usual = nn.Buffer(scales[:, 0].clone())
        self.stray = nn.Buffer(scales[:, 1].clone())

    def forward(self, flights: Inputs) -> Tensor:
        """Give the logit of each flight to be late, shape (b,), float32."""
        scaled = ((flights.numbers - self.usual) / self.stray).clamp(-FARTHEST, FARTHEST)
        known = torch.cat([torch.ones_like(flights.late)[:, None], 1 - flights.flags], dim=1)
        parts = [table(code) for table, code in zip(self.embeddings, flights.codes.T, strict=True)]
        features = torch.cat([*parts, scaled * known, flights.flags], dim=1)
        logits: Tensor = self.out(self.hidden(features))
        return logits[:, 0]


def losses_of(logits: Tensor, flights: Inputs) -> Tensor:
    """Give the log loss of each flight, shape (b,), float32, in nats."""
    return binary_cross_entropy_with_logits(logits, flights.late, reduction="none")
