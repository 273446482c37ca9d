"""A trainer may keep its whole loop in autocast: selection computes in full precision."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adasel_stream import Guards, SelectingLoader
from tests.candidates import generator
from tests.streams import Rows

HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
KINDS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"guards": Guards(cap=0.5, tail=0.3)},
        {"policy": "unbiased"},
        {"policy": "unbiased", "guards": Guards(cap=0.5, tail=0.3)},
        {"policy": "paper"},
    ],
    ids=["auto", "auto, guarded", "unbiased", "unbiased, guarded", "paper"],
)


def batches() -> Iterator[Rows]:
    """Offer rows whose errors are in the thousands, as prices are."""
    random = generator(0)
    while True:
        x = torch.randn(32, 8, generator=random)
        yield {"x": x, "y": 1000 * (x.sum(1) + torch.randn(32, generator=random))}


def run(
    around: AbstractContextManager[Any], within: AbstractContextManager[Any], **options: Any
) -> list[Any]:
    """Train in full precision, in a loop that is in a context as a whole."""
    torch.manual_seed(0)
    model = nn.Linear(8, 1)

    def losses(batch: Rows) -> Tensor:
        with within:
            squares: Tensor = (model(batch["x"]).squeeze(1) - batch["y"]).square()
        return squares

    loader = SelectingLoader(
        batches(), score=lambda b: losses(b).detach(), sampling_rate=0.25, **options
    )
    got: list[Any] = []
    with around:
        for batch in islice(loader, 120):
            loader.mean(losses(batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
            assert bool(torch.isfinite(loader.weights).all())
            got.append((batch["y"].tolist(), loader.weights.tolist()))
    return got


@HALVES
@KINDS
def test_the_same_rows_are_chosen_within_autocast(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    """To the last bit, with the same weights, if losses are the same."""
    whole = run(torch.autocast("cpu", dtype), torch.autocast("cpu", enabled=False), **options)
    assert whole == run(nullcontext(), nullcontext(), **options)
