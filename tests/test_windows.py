from itertools import islice
from typing import Any

import pytest
import torch

from adasel_stream import SelectingLoader, known, passes, windows
from adasel_stream.loss_batch import LossBatch
from adasel_stream.windows import window_of
from tests.streams import Rows, Stream, batches, loss


def sizes_seen(options: dict[str, Any], sizes: tuple[int, ...]) -> list[int]:
    """Give how many candidates each choice was made from."""
    seen: list[int] = []

    def noting(batch: LossBatch) -> torch.Tensor:
        seen.append(len(batch.losses))
        return batch.losses

    list(SelectingLoader(Stream(sizes), score=loss, methods=[noting], **options))
    return seen


@pytest.mark.parametrize(
    ("options", "sizes", "expected"),
    [
        ({"sampling_rate": 0.25}, (8,) * 8, [32, 32]),
        ({"sampling_rate": 0.25, "batch_size": 4}, (8,) * 8, [16] * 4),
        ({"sampling_rate": 0.25, "window": 1}, (8,) * 4, [8] * 4),
        ({"sampling_rate": 0.25, "window": 3}, (8,) * 8, [24, 24, 16]),
        ({"sampling_rate": 0.3}, (10,) * 8, [40, 40]),
        ({"sampling_rate": 0.5, "policy": "unbiased"}, (8,) * 3, [16, 8]),
        ({"sampling_rate": 0.5, "policy": "paper"}, (8,) * 3, [8] * 3),
        ({"sampling_rate": 0.5, "batch_size": 8}, (64, 64), [64, 64]),
    ],
)
def test_a_window_is_what_makes_one_emitted_batch(
    options: dict[str, Any], sizes: tuple[int, ...], expected: list[int]
) -> None:
    """By rows, not by batches; the last one is what is left; `paper` chooses by the batch."""
    assert sizes_seen(options, sizes) == expected


def test_candidates_that_take_too_much_are_chosen_from_earlier(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two batches reach the limit here; a window that was asked for is kept."""
    size = sum(column.nbytes for column in batches((8,))[0].values())
    monkeypatch.setattr(windows, "MOST_BYTES", size + 1)
    windows._log_once.cache_clear()
    assert sizes_seen({"sampling_rate": 0.25}, (8,) * 4) == [16, 16]
    assert "are chosen from together; pass window=" in caplog.text
    assert sizes_seen({"sampling_rate": 0.25, "window": 4}, (8,) * 4) == [32]


def test_many_small_batches_are_chosen_from_earlier(caplog: pytest.LogCaptureFixture) -> None:
    """As many as make an emitted batch would be 100 here; what is left at the end says nothing."""
    windows._log_once.cache_clear()
    assert sizes_seen({"sampling_rate": 0.25, "batch_size": 50}, (2,) * 150) == [128, 128, 44]
    assert "one emitted batch take more than 64 batches, so that fewer" in caplog.text
    caplog.clear()
    windows._log_once.cache_clear()
    assert sizes_seen({"sampling_rate": 0.25, "batch_size": 50}, (2,) * 44) == [88]
    assert "emitted batch take" not in caplog.text


def linear_loss(model: torch.nn.Module, batch: Rows) -> torch.Tensor:
    """Give squared errors of a linear model."""
    errors: torch.Tensor = model(batch["x"])[:, 0] - batch["loss"]
    return errors.square()


@pytest.mark.parametrize("policy", ["auto", "aligned"])
def test_a_last_layer_that_takes_too_much_is_chosen_by_in_parts(
    policy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No gradient is let go of: fewer candidates are chosen from together, and each once."""
    monkeypatch.setattr(passes, "MOST_BYTES", 8 * 3 * 4)  # residual and two features of 8 rows
    passes._log_once.cache_clear()
    model = torch.nn.Linear(2, 1)
    seen: list[int] = []

    def noting(batch: LossBatch) -> torch.Tensor:
        assert batch.last_layer is not None
        seen.append(len(batch.losses))
        return batch.losses

    columns = [{**one, "x": torch.randn(len(one["id"]), 2)} for one in batches((8,) * 9)]
    loader = SelectingLoader(
        columns,
        score=lambda batch: linear_loss(model, batch),
        model=model,
        sampling_rate=0.25,
        policy=policy,
        methods=[noting],
    )
    ids = [i for batch in loader for i in batch["id"].tolist()]
    assert seen == [16, 16, 16, 16, 8]
    assert len(set(ids)) == len(ids) == 16
    assert loader.metrics.samples_seen == 72
    assert "the last layer of the candidates of one emitted batch takes more" in caplog.text


def test_decoded_candidates_that_take_too_much_are_scored_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they take is known from the first batch; the others wait undecoded."""
    held: list[int] = []
    monkeypatch.setattr(known, "MOST_BYTES", 16 * 1000 * 4)

    def decode(sample: Any) -> Any:
        return {**sample, "wide": torch.zeros(1000)}

    def score(batch: Rows) -> torch.Tensor:
        held.append(len(batch["wide"]))
        return loss(batch)

    loader = SelectingLoader(Stream((8,) * 9), score=score, sampling_rate=0.25, decode=decode)
    ids = [i for batch in loader for i in batch["id"].tolist()]
    assert held == [8] * 9
    assert len(set(ids)) == len(ids)
    snapshot = loader.metrics.snapshot()
    assert snapshot["samples_seen_total"] == 72
    assert snapshot["decode_rows_total"]["decoded"] == 72


def test_lists_count_with_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are not decoded yet, and text."""
    rows = [{"id": torch.arange(8), "raw": [b"12345678"] * 8} for _ in range(4)]
    monkeypatch.setattr(windows, "MOST_BYTES", 8 * 16 + 1)
    seen: list[int] = []

    def noting(batch: LossBatch) -> torch.Tensor:
        seen.append(len(batch.losses))
        return batch.losses

    list(SelectingLoader(rows, score=lambda b: b["id"] * 1.0, sampling_rate=0.25, methods=[noting]))
    assert seen == [16, 16]


def test_nothing_is_lost_and_the_rate_holds_over_windows() -> None:
    """Each candidate is seen once, and half of them are chosen, none twice."""
    loader = SelectingLoader(Stream((8, 5, 1, 16, 3, 8)), score=loss, sampling_rate=0.5)
    ids = [i for batch in loader for i in batch["id"].tolist()]
    assert loader.metrics.samples_seen == 41
    assert loader.metrics.samples_selected == 20
    assert len(set(ids)) == len(ids)


def test_a_source_that_fails_within_a_window_loses_no_row_before() -> None:
    """What it gave before is chosen from when it fails."""

    def failing() -> Any:
        yield from batches([8, 8, 8])
        raise OSError("gone")

    loader = SelectingLoader(failing(), score=loss, sampling_rate=0.25, batch_size=6)
    with pytest.raises(Exception, match="raised OSError after 3 candidate batches"):
        list(loader)
    assert loader.metrics.samples_seen == 24


def test_a_score_that_fails_on_a_batch_of_a_window_loses_that_batch_alone() -> None:
    """The others are chosen from, the error comes after, and the lost rows are counted."""

    def fussy(batch: Rows) -> torch.Tensor:
        if int(batch["id"][0]) == 8:
            raise RuntimeError("no memory")
        return loss(batch)

    source = iter(batches((8,) * 4))
    loader = SelectingLoader(source, score=fussy, sampling_rate=0.5, window=4)
    with pytest.raises(RuntimeError, match="no memory"):
        list(loader)
    assert loader.metrics.samples_seen == 24
    assert loader.metrics.samples_selected == 12
    assert loader.metrics.samples_dropped["score_error"] == 8
    ids = [i for batch in loader for i in batch["id"].tolist()]
    assert not set(ids) & set(range(8, 16))


def test_scoring_takes_no_more_rows_at_once_than_came_at_once() -> None:
    """A window costs no memory of the forward pass."""
    sizes: list[int] = []

    def score(batch: Rows) -> torch.Tensor:
        sizes.append(len(batch["id"]))
        return loss(batch)

    list(SelectingLoader(Stream((8,) * 8), score=score, sampling_rate=0.25))
    assert sizes == [8] * 8


def test_a_resumed_window_repeats_no_row() -> None:
    """At every emitted batch, to the last bit."""

    def make() -> SelectingLoader:
        return SelectingLoader(Stream((8,) * 24), score=loss, sampling_rate=0.25)

    want = [batch["id"].tolist() for batch in make()]
    for cut in range(1, len(want)):
        first = make()
        got = [batch["id"].tolist() for batch in islice(first, cut)]
        second = make()
        second.load_state_dict(first.state_dict())
        got += [batch["id"].tolist() for batch in second]
        assert got == want


@pytest.mark.parametrize(
    ("window", "error", "message"),
    [
        (0, ValueError, "window must be at least 1, got 0"),
        (1.5, TypeError, "window must be a whole number, got float"),
        (True, TypeError, "window must be a whole number, got bool"),
    ],
)
def test_windows_that_cannot_be_are_refused(
    window: Any, error: type[Exception], message: str
) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(error, match=message):
        window_of(window, wide=True)
