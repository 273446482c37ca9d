from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from adasel_stream import LossRecord, SelectingLoader
from tests.streams import Counted, batches, loader_over, loss


def test_the_record_spares_forward_passes_and_learns_from_training() -> None:
    """In the second pass nothing is scored; training changes what is known."""
    record, score = LossRecord(capacity=1000), Counted()
    source = batches()
    loader = SelectingLoader(source, score=score, sampling_rate=0.5, record=record, ids="id")
    for batch in loader:
        loader.mean(batch["loss"] + 5)
    assert sorted(score.ids) == list(range(51))
    list(loader)
    assert len(score.ids) == 51
    assert loader.metrics.score_rows["forward"] == loader.metrics.score_rows["record"] == 51
    assert loader.metrics.record_age_seconds.count == 51
    known = record.lookup(np.arange(51)).losses - torch.cat([b["loss"] for b in source]).numpy()
    assert sorted(set(known.round().tolist())) == [0.0, 5.0]


def test_losses_known_beforehand_select_without_a_score() -> None:
    """Serving has seen them all; the large ones are chosen."""
    record = LossRecord(capacity=1000)
    loader = loader_over(
        score=None, record=record, ids="id", policy="paper", methods=["big_loss"], batch_size=1
    )
    loader.observe(torch.arange(51), torch.arange(51.0))
    first = list(islice(loader, 4))
    assert {batch["id"].item() for batch in first} == {4, 5, 6, 7}
    assert loader.metrics.score_rows["forward"] == 0
    assert loader.metrics.score_mode == "record"


@pytest.mark.parametrize("ids", [("id"), ("id",), (lambda batch: batch["id"] + 1000)])
def test_ids_are_taken_from_wherever_they_are(ids: Any) -> None:
    """By key, by path, or computed."""
    record = LossRecord(capacity=1000)
    list(loader_over(record=record, ids=ids))
    assert len(record) == 51


def test_string_ids_name_the_same_instances_in_scoring_training_and_serving() -> None:
    """All three meet in the record."""
    record = LossRecord(capacity=100)
    names = [f"row {i}" for i in range(8)]
    source = [{"__key__": names, "loss": torch.arange(8.0)}] * 2
    loader = SelectingLoader(source, score=loss, sampling_rate=0.5, record=record, ids="__key__")
    batch = next(iter(loader))
    loader.mean(torch.full((8,), 90.0))
    loader.observe(["row 0", "elsewhere"], np.array([70.0, 80.0]))
    known = dict(zip(names, record.lookup(names).losses.tolist(), strict=True))
    assert {known[name] for name in set(batch["__key__"]) - {"row 0"}} == {90.0}
    assert known["row 0"] == 70.0
    assert len(record) == 9


def test_metrics_count_no_loss_that_nobody_knows() -> None:
    """By the record alone, unknown rows are shown as such and are in no histogram."""
    loader = loader_over(score=None, record=LossRecord(capacity=1000), ids="id", batch_size=1)
    loader.observe(torch.arange(0, 51, 3), torch.arange(17.0))
    list(loader)
    rows = loader.metrics.score_rows
    assert (rows["forward"], rows["record"], rows["unknown"]) == (0, 17, 34)
    assert loader.metrics.loss["seen"].count == 17
    assert loader.metrics.loss["selected"].count <= 17
    assert loader.metrics.samples_seen == 51
