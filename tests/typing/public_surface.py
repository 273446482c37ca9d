"""What a type checker knows of the public names; checked by mypy and pyright, never run."""

from collections.abc import Iterator
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adasel_stream import (
    LossBatch,
    LossRecord,
    Policy,
    Preference,
    Scored,
    SelectingLoader,
    aligned,
    auto,
    load_checkpoint,
    paper,
    save_checkpoint,
    unbiased,
)
from adasel_stream.metrics import Metrics


def newest(batch: LossBatch) -> Tensor:
    """A method of the user's own, by values."""
    return torch.arange(float(batch.losses.shape[0]))


def rarest(batch: LossBatch) -> Preference:
    """A method of the user's own, by ranks."""
    return Preference(values=lambda: batch.losses, ranks=lambda: batch.ranks)


def plain(batch: Any) -> Tensor:
    """A score that gives losses."""
    losses: Tensor = batch["loss"]
    return losses


def with_last_layer(batch: Any) -> Scored:
    """A score that gives last-layer quantities as well."""
    return Scored(batch["loss"], residuals=batch["x"], features=batch["x"])


def a_loader_takes_what_the_documentation_says(batches: list[dict[str, Tensor]]) -> None:
    """Iterables, names, functions, mappings, policies and paths."""
    record = LossRecord(capacity=100, decay=0.5, max_age_s=60.0, seed=1)
    SelectingLoader(batches, score=plain, sampling_rate=0.3)
    SelectingLoader(iter(batches), score=with_last_layer, sampling_rate=1, policy="paper")
    SelectingLoader(
        batches,
        score=lambda batch: batch["loss"],
        model=nn.Linear(1, 1),
        sampling_rate=0.3,
        policy=unbiased(exploration=0.1, update="progress", floor=0.01),
        methods=["big_loss", newest, rarest],
        batch_size=8,
        device="cpu",
        autocast=torch.bfloat16,
        seed=1,
        replay=True,
    )
    SelectingLoader(
        batches,
        sampling_rate=0.3,
        policy=paper(beta=0.5, curriculum_exponent=-0.3),
        methods={"mine": newest},
        record=record,
        ids=("meta", "id"),
        device=torch.device("cpu"),
        metrics=Metrics(["mine"], sampling_rate=0.3, batch_size=8, policy="paper"),
    )


def a_loader_gives_what_the_documentation_says(loader: SelectingLoader) -> None:
    """Batches of any structure, tensors, plain state."""
    assert_type(iter(loader), Iterator[Any])
    assert_type(loader.mean(torch.ones(8)), Tensor)
    assert_type(loader.mean(torch.ones(8), {"x": torch.ones(8)}), Tensor)
    assert_type(loader.weights, Tensor)
    assert_type(loader.metrics, Metrics)
    assert_type(loader.state_dict(), dict[str, Any])
    loader.load_state_dict(loader.state_dict())
    loader.observe(np.arange(3), np.ones(3))
    loader.observe(["a", "b"], torch.ones(2))
    loader.observe(torch.arange(3), torch.ones(3))
    loader.close()
    with loader as same:
        assert_type(same, SelectingLoader)


def the_rest_gives_what_the_documentation_says(batch: LossBatch, record: LossRecord) -> None:
    """Policies, batches of losses, records and checkpoints."""
    assert_type(aligned(rate=0.5, forgetting=0.05), Policy)
    assert_type(auto(exploration=0.2, control=0.1, judged_by="time"), Policy)
    assert_type(paper(), Policy)
    assert_type(unbiased(), Policy)
    assert_type(LossBatch.of(torch.ones(3)), LossBatch)
    assert_type(batch.losses, Tensor)
    assert_type(batch.ranks, Tensor)
    assert_type(batch.finite, Tensor | None)
    assert_type(record.lookup(["a"]).losses, npt.NDArray[np.float32])
    assert_type(record.lookup(np.arange(3)).known, npt.NDArray[np.bool_])
    assert_type(record.counts, dict[str, int])
    save_checkpoint("file", {"loader": {}}, durable=False)
    assert_type(load_checkpoint("file"), dict[str, Any])
