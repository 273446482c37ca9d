"""Losses of serving processes steer the selection of a loader that scores nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adasel_stream import LossFeed, LossRecord, LossWriter, PendingLabels, SelectingLoader
from adasel_stream.errors import BatchError
from adasel_stream.metrics import serve
from tests.metric_pages import scrape, value
from tests.streams import Stream, batches, loss, rows

SERVE = """
import sys
import numpy as np
from adasel_stream import LossWriter
with LossWriter(sys.argv[1], version=3) as writer:
    ids = np.arange(64)
    writer.write(ids, (ids % 7).astype("f4"))
assert "torch" not in sys.modules
"""


def served_loader(folder: Path, **options: Any) -> SelectingLoader:
    """Select by what serving says."""
    settings: dict[str, Any] = {
        "record": LossRecord(capacity=1000),
        "ids": "id",
        "serving": options.get("serving") or LossFeed(folder, poll_every_s=0),
        "sampling_rate": 0.25,
        "policy": "paper",
        "methods": ["big_loss"],
        "batch_size": 4,
        **options,
    }
    return SelectingLoader([rows(i, 16) for i in range(0, 64, 16)], **settings)


def test_a_serving_process_decides_what_is_trained_on(tmp_path: Path) -> None:
    """Written in a process of its own, without torch; the largest losses are chosen."""
    subprocess.run([sys.executable, "-c", SERVE, str(tmp_path)], check=True)
    loader = served_loader(tmp_path)
    for batch in loader:
        assert (batch["id"] % 7).min() >= 5
    assert loader.metrics.score_rows == {"forward": 0, "proxy": 0, "record": 64, "unknown": 0}
    assert not list(tmp_path.glob("*.seg"))


def test_losses_that_come_while_training_are_used_from_then_on(tmp_path: Path) -> None:
    """The feed is looked at before every candidate batch."""
    now = [0.0]
    feed = LossFeed(tmp_path, poll_every_s=0.5, clock=lambda: now[0])
    loader = served_loader(tmp_path, serving=feed)
    with LossWriter(tmp_path) as writer:
        for index, _ in enumerate(loader):
            now[0] += 1
            ids = np.arange((index + 1) * 16, (index + 2) * 16)
            writer.write(ids, np.ones(16, np.float32))
            writer.publish()
    assert loader.metrics.score_rows == {"forward": 0, "proxy": 0, "record": 48, "unknown": 16}


def test_a_path_is_enough(tmp_path: Path) -> None:
    """The loader makes the feed, and its page shows what came."""
    with LossWriter(tmp_path) as writer:
        writer.write(np.arange(64), np.ones(64, np.float32))
    loader = served_loader(tmp_path, serving=str(tmp_path))
    list(loader)

    with serve(loader.metrics, port=0) as server:
        page = scrape(server.port)
    assert value(page, "adasel_record_segments_total", result="applied") == 1
    assert value(page, "adasel_record_served_rows_total", result="applied") == 64
    assert value(page, "adasel_record_served_lag_seconds") < 60


def squared_error(predictions: Any, labels: Any) -> Any:
    """A loss in numpy."""
    return (predictions - labels) ** 2


def test_predictions_become_losses_when_their_labels_come_by(tmp_path: Path) -> None:
    """Serving knows no label; the candidates bring it, and are selected by the loss at once."""
    record = LossRecord(1000, pending=PendingLabels(1000, squared_error, ttl_s=60))
    with LossWriter(tmp_path) as writer:
        writer.write_predictions(np.arange(64), np.zeros(64, np.float32))
    loader = served_loader(tmp_path, record=record, labels="loss")
    for batch in loader:
        lowest = {int(n) for n in batch["id"]}
        block = int(batch["id"][0]) // 16 * 16
        every = rows(block, 16)["loss"] ** 2
        assert {block + int(i) for i in every.topk(4).indices} == lowest
    assert record.pending is not None
    assert record.pending.counts["joined"] == 64
    assert loader.metrics.score_rows["record"] == 64


def test_a_kept_record_is_no_part_of_the_loaders_state(tmp_path: Path) -> None:
    """It restores itself; a loader that goes on finds what it had learnt."""
    for expected in (0, 51):
        record = LossRecord.open(tmp_path / "record", 1000)
        loader = SelectingLoader(batches(), score=loss, sampling_rate=0.5, record=record, ids="id")
        assert len(record) == expected
        list(loader)
        assert loader.state_dict()["selector"]["known"]["lookups"]["record"] is None
        assert loader.metrics.score_rows["record"] == expected
        loader.load_state_dict(loader.state_dict())
        assert len(record) == 51
        record.close()


def test_a_checkpoint_of_another_record_leaves_a_kept_one_alone(tmp_path: Path) -> None:
    """Who begins to keep a record may load a checkpoint from before."""
    plain = SelectingLoader(
        Stream(), score=loss, sampling_rate=0.5, record=LossRecord(1000), ids="id"
    )
    next(iter(plain))
    record = LossRecord.open(tmp_path, 1000)
    record.update(np.arange(1000, 1500), np.ones(500))
    loader = SelectingLoader(Stream(), score=loss, sampling_rate=0.5, record=record, ids="id")
    known = len(record)
    loader.load_state_dict(plain.state_dict())
    assert len(record) == known > 400
    record.close()


def test_a_refused_loader_takes_no_folder(tmp_path: Path) -> None:
    """The corrected call must not find the folder taken by the wrong one."""
    with pytest.raises(ValueError, match="serving= needs record=") as told:
        SelectingLoader([], score=loss, sampling_rate=0.5, serving=tmp_path / "losses")
    assert not (tmp_path / "losses").exists()
    with pytest.raises(TypeError, match="serving must be a folder's path or a LossFeed, got int"):
        SelectingLoader([], score=loss, sampling_rate=0.5, serving=5)  # type: ignore[arg-type]
    del told


def test_segments_stay_until_a_snapshot_holds_them(tmp_path: Path) -> None:
    """A trainer that is killed before its record is saved reads them again."""
    record = LossRecord.open(tmp_path / "record", 1000)
    with LossWriter(tmp_path / "losses") as writer:
        writer.write(np.arange(64), np.ones(64, np.float32))
    loader = served_loader(tmp_path / "losses", record=record)
    next(iter(loader))
    assert list((tmp_path / "losses").glob("*.seg"))
    record.save()
    list(loader)
    assert not list((tmp_path / "losses").glob("*.seg"))
    record.close()


def test_training_losses_carry_the_records_version(tmp_path: Path) -> None:
    """What serving says by an old model is unknown once the trainer has published a newer one."""
    record = LossRecord(1000, max_version_lag=1)
    record.version = 3
    subprocess.run([sys.executable, "-c", SERVE, str(tmp_path)], check=True)
    loader = served_loader(tmp_path, record=record)
    list(loader)
    assert loader.metrics.score_rows["record"] == 64
    record.version = 5
    list(loader)
    assert loader.metrics.score_rows["unknown"] == 64
    assert record.counts["stale_version"] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"record": None, "ids": None}, "serving= needs record="),
        ({"labels": "loss"}, r"labels= needs a record in which predictions wait .*pending="),
    ],
)
def test_arguments_that_belong_together_are_asked_for(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """At construction, with what to pass."""
    with pytest.raises(ValueError, match=message):
        served_loader(tmp_path, score=loss, **options)


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    """The message lists what the batch has."""
    record = LossRecord(1000, pending=PendingLabels(1000, squared_error, ttl_s=60))
    loader = served_loader(tmp_path, record=record, labels="y")
    with pytest.raises(BatchError, match=r"labels='y' is not in the batch, whose leaves are batch"):
        list(loader)
    elsewhere = tmp_path / "elsewhere"
    loader = served_loader(elsewhere, record=record, labels=lambda _: torch.zeros(3))
    with pytest.raises(BatchError, match=r"gives shape \(3,\), expected \(16,\): one per row"):
        list(loader)


def test_a_resumed_loader_goes_on_with_rows_that_gathered(tmp_path: Path) -> None:
    """Known and unknown rows wait apart, and both come after the resume."""

    def make() -> SelectingLoader:
        record = LossRecord(1000, clock=lambda: 0.0)
        record.update(np.arange(0, 51, 3), np.ones(17))
        return SelectingLoader(
            Stream(), score=loss, sampling_rate=0.5, record=record, ids="id", batch_size=3
        )

    want = [b["id"].tolist() for b in make()]
    first, second = make(), make()
    iterator = iter(first)
    got = [next(iterator)["id"].tolist() for _ in range(3)]
    second.load_state_dict(first.state_dict())
    got += [b["id"].tolist() for b in second]
    assert got == want
    assert second.metrics.samples_seen == 51
