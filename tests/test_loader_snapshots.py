from pathlib import Path
from typing import Any

import pytest
import torch

from adasel_stream import LossRecord, SelectingLoader, save_checkpoint, unbiased
from adasel_stream.errors import AdaselError, RecordError, SourceError
from tests.streams import Stream, batches, loss


def test_a_stateless_source_is_refused_and_nothing_is_changed() -> None:
    """Reading it from its start would repeat what was trained on."""
    first = SelectingLoader(batches(), score=loss, sampling_rate=0.5)
    next(iter(first))
    second = SelectingLoader(batches(), score=loss, sampling_rate=0.5)
    before = second.state_dict()
    with pytest.raises(
        SourceError, match="no state_dict of list, so it cannot continue after batch"
    ):
        second.load_state_dict(first.state_dict())
    assert second.state_dict()["selector"]["quota"] == before["selector"]["quota"]


def test_a_stateless_source_is_replayed_where_that_is_allowed() -> None:
    """With a warning at the user's line, and the same rows from there on."""

    def make() -> SelectingLoader:
        return SelectingLoader(batches(), score=loss, sampling_rate=0.5, batch_size=3, replay=True)

    want = [batch["id"].tolist() for batch in make()]
    first = make()
    iterator = iter(first)
    got = [next(iterator)["id"].tolist() for _ in range(4)]
    second = make()
    second.load_state_dict(first.state_dict())
    with pytest.warns(RuntimeWarning, match="reading 4 batches again") as caught:
        got += [batch["id"].tolist() for batch in second]
    assert got == want
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_rate": 0.4}, r"sampling_rate 0.5, here 0.4$"),
        ({"policy": "paper"}, r"policy \{'name': 'unbiased', .*\}, here \{'name': 'paper', "),
        ({"policy": unbiased(floor=0.1)}, r"'floor': 0.02\}, here .* 'floor': 0.1\}$"),
        ({"methods": ["uniform"]}, r"methods \['uniform', .*\], here \['uniform'\]$"),
        ({"seed": 9, "sampling_rate": 0.1}, r"sampling_rate 0.5, here 0.1; seed 0, here 9$"),
        ({"record": LossRecord(capacity=16), "ids": "id"}, r"record False, here True$"),
        ({"batch_size": 3}, "the snapshot emits batches of 8 rows, this loader of 3"),
    ],
)
def test_a_snapshot_of_other_settings_is_refused(options: dict[str, Any], message: str) -> None:
    """The message names both."""
    usual: dict[str, Any] = {"score": loss, "sampling_rate": 0.5, "policy": "unbiased"}
    first = SelectingLoader(Stream(), **usual)
    next(iter(first))
    second = SelectingLoader(Stream(), **{**usual, **options})
    with pytest.raises(ValueError, match=message):
        second.load_state_dict(first.state_dict())


def test_a_snapshot_of_another_record_is_refused() -> None:
    """The message says how to construct it."""

    def make(capacity: int) -> SelectingLoader:
        record = LossRecord(capacity=capacity)
        return SelectingLoader(Stream(), score=loss, sampling_rate=0.5, record=record, ids="id")

    with pytest.raises(RecordError, match="construct it with capacity=32"):
        make(16).load_state_dict(make(32).state_dict())


@pytest.mark.parametrize("state", [{}, {"format": 1}, {"format": "2"}])
def test_a_state_of_another_format_is_refused(state: dict[str, Any]) -> None:
    """The message names both versions."""
    loader = SelectingLoader(Stream(), score=loss, sampling_rate=0.5)
    with pytest.raises(ValueError, match=r"has format .*, this version reads 5"):
        loader.load_state_dict(state)


def test_loading_ends_a_pass_that_is_under_way() -> None:
    """Its iterator stands in a position that is no longer there."""
    loader = SelectingLoader(Stream((8,) * 8), score=loss, sampling_rate=0.5)
    state = loader.state_dict()
    iterator = iter(loader)
    first = next(iterator)["id"].tolist()
    loader.load_state_dict(state)
    with pytest.raises(AdaselError, match="no batch was emitted yet"):
        loader.mean(torch.ones(8))
    with pytest.raises(AdaselError, match="this pass is over"):
        next(iterator)
    assert next(iter(loader))["id"].tolist() == first


def test_a_snapshot_does_not_change_while_training_goes_on(tmp_path: Path) -> None:
    """It may be written by another thread, later."""
    loader = SelectingLoader(Stream(), score=loss, sampling_rate=0.9, batch_size=2)
    with pytest.warns(RuntimeWarning, match="cannot pay"):
        next(iterator := iter(loader))
    state = loader.state_dict()
    save_checkpoint(tmp_path / "now", state)
    for batch in iterator:
        loader.mean(batch["loss"], batch)
        batch["x"].zero_()
    save_checkpoint(tmp_path / "later", state)
    assert (tmp_path / "now").read_bytes() == (tmp_path / "later").read_bytes()


def test_a_resumed_run_does_not_tell_its_cost_again(capsys: pytest.CaptureFixture[str]) -> None:
    """It was told when the run began."""
    loader = SelectingLoader(Stream(), score=loss, sampling_rate=0.5)
    loader.load_state_dict(SelectingLoader(Stream(), score=loss, sampling_rate=0.5).state_dict())
    next(iter(loader))
    assert capsys.readouterr().err == ""
