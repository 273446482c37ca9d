from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adasel_stream import Guards, LossBatch, LossRecord, PendingLabels, SelectingLoader
from adasel_stream.methods import METHODS, NEEDS
from adasel_stream.policies import aligned, auto, paper, unbiased
from tests.streams import Rows, Stream, loss
from tests.waiting import (
    DEVICE,
    UNSEEN_ON_A_CPU,
    WAYS_TO_WAIT,
    NoWaiting,
    WaitedError,
    pretended_device,
)

POLICIES = {
    "unbiased": unbiased(),
    "progress": unbiased(update="progress"),
    "paper": paper(),
    "curriculum": paper(curriculum_exponent=-0.5),
    "auto": auto(),
}
policies = pytest.mark.parametrize("policy", POLICIES)
WITH_LAST_LAYER = {**POLICIES, "aligned": aligned()}
by_loss = [
    name
    for name, method in METHODS.items()
    if name != "adaboost" and not NEEDS[method] & {"last_layer", "reference", "previous"}
]


def stream_on(device: str) -> list[Rows]:
    """Make batches of eight rows on a device."""
    batch = {"x": torch.rand(8, 4, device=device), "loss": torch.ones(8, device=device)}
    return [batch] * 8


def small_model() -> nn.Module:
    """Make a model with all that scoring must look after."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))


def training_loader(
    model: nn.Module, source: Iterable[Rows], policy: str, *, recorded: bool
) -> SelectingLoader:
    """Select half of a stream by the squared error of a model."""
    return SelectingLoader(
        source,
        score=lambda batch: squared_error(model, batch),
        model=model,
        sampling_rate=0.5,
        policy=WITH_LAST_LAYER[policy],
        methods=[*by_loss, "loss_history"]
        if recorded
        else [*by_loss[1:], "gradient_norm", "alignment"],
        record=LossRecord(capacity=100) if recorded else None,
        ids=(lambda batch: batch["id"].numpy()) if recorded else None,
    )


def squared_error(model: nn.Module, batch: Rows) -> Tensor:
    """Give one loss per row."""
    squared: Tensor = (model(batch["x"]).squeeze(1) - batch["loss"]).square()
    return squared


def train(loader: SelectingLoader, model: nn.Module) -> None:
    """Train on whatever comes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in loader:
        loader.mean(squared_error(model, batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
        optimizer.step()
        optimizer.zero_grad()


def score(batch: Rows) -> Tensor:
    """Give one loss per row, one of them not a number."""
    losses: Tensor = batch["x"].sum(1)
    return losses.log()


@policies
def test_a_step_waits_for_nothing(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that never finishes, batches are scored, chosen, emitted and weighed.

    The masked path is taken, because nobody knows which losses are finite.
    """
    with pretended_device(monkeypatch), NoWaiting() as watch:
        loader = SelectingLoader(
            stream_on(DEVICE),
            score=score,
            sampling_rate=0.3,
            policy=POLICIES[policy],
            methods=by_loss,
            batch_size=4,
            window=1,
        )
        emitted = 0
        for batch in loader:
            emitted += 1
            assert {leaf.device.type for leaf in batch.values()} == {DEVICE}
            assert loader.weights.device.type == DEVICE
            assert loader.mean(batch["x"].sum(1)).device.type == DEVICE
    assert emitted == 4
    assert watch.operations > 100
    # a parcel of each candidate batch, and under a policy that watches itself two of each step
    assert loader.metrics.telemetry_lag_parcels == (16 if policy == "auto" else 8)


@pytest.mark.parametrize("policy", WITH_LAST_LAYER)
def test_scoring_with_a_model_waits_for_nothing(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the forward pass, nor its traces in the model, nor the last layer's gradient.

    That losses follow the head row by row is looked at once, at the first candidates.
    """
    monkeypatch.setattr("adasel_stream.heads._all_zero", lambda tensors: bool(tensors))
    with pretended_device(monkeypatch):
        with torch.device(DEVICE):
            model = small_model()
        loader = training_loader(model, stream_on(DEVICE), policy, recorded=False)
        with NoWaiting():
            train(loader, model)
    assert loader.metrics.steps == 4


def test_hearing_gradients_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where losses alone are known, the backward pass says how large gradients are."""
    with pretended_device(monkeypatch):
        with torch.device(DEVICE):
            model = small_model()
        loader = SelectingLoader(
            stream_on(DEVICE), score=lambda batch: batch["loss"], sampling_rate=0.5, window=1
        )
        with NoWaiting():
            train(loader, model)
    assert loader.metrics.policy_updates == loader.metrics.steps > 1


def test_guards_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caps, slices and their counts, in a draw and in a top-k."""
    guards = Guards(cap=0.2, slices={"half": (lambda batch: batch["x"][:, 0] > 0.5, 0.3)})
    for policy in ("auto", "paper"):
        with pretended_device(monkeypatch), NoWaiting():
            loader = SelectingLoader(
                stream_on(DEVICE), score=score, sampling_rate=0.5, policy=policy, guards=guards
            )
            for batch in loader:
                loader.mean(batch["x"].sum(1))
        assert loader.metrics.steps == 4


def test_a_record_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known losses go to the device, unknown rows are scored there, fresh losses come later."""
    names = iter(np.arange(64).reshape(8, 8))
    with pretended_device(monkeypatch), NoWaiting():
        loader = SelectingLoader(
            stream_on(DEVICE),
            score=score,
            sampling_rate=0.5,
            record=LossRecord(capacity=100),
            ids=lambda _: next(names),
        )
        loader.observe(np.arange(0, 64, 3), np.ones(22))
        for batch in loader:
            loader.mean(batch["x"].sum(1))
    assert loader.metrics.score_rows["forward"] == 42
    assert loader.metrics.score_rows["record"] == 22


def test_labels_on_the_host_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read before the batch goes to the device."""
    pending = PendingLabels(100, lambda p, y: (p - y) ** 2, ttl_s=60)
    record = LossRecord(100, pending=pending)
    record.expect(np.arange(8), np.zeros(8, np.float32))
    source = [{"x": np.ones((8, 4), "f4"), "id": np.arange(8), "y": np.ones(8, "f4")}] * 4
    with pretended_device(monkeypatch), NoWaiting():
        loader = SelectingLoader(
            source, record=record, ids="id", labels="y", sampling_rate=0.5, device=DEVICE
        )
        for batch in loader:
            loader.mean(batch["x"].sum(1))
    assert pending.counts["joined"] == 8


def test_batches_from_the_host_are_placed_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numeric arrays and tensors go to the device once; emitted batches are there already."""
    source = [{"x": np.ones((8, 4), "f4"), "pair": (np.arange(8), None)}] * 6
    with pretended_device(monkeypatch), NoWaiting():
        loader = SelectingLoader(source, score=score, sampling_rate=0.5, device=DEVICE)
        for batch in loader:
            assert (batch["x"].device.type, batch["pair"][0].device.type) == (DEVICE, DEVICE)
            loader.mean(batch["x"].sum(1))
    assert loader.metrics.steps == 3


def test_losses_of_another_device_are_waited_for_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen on the host by the record, trained on the device: what was learnt comes later."""
    loader = SelectingLoader(
        [{"x": np.ones((8, 4), "f4")}] * 4,
        record=LossRecord(capacity=100),
        ids=lambda _: np.arange(8),
        sampling_rate=0.5,
    )
    for batch in loader:
        assert type(batch["x"]) is np.ndarray
        with pretended_device(monkeypatch), NoWaiting():
            losses = torch.ones(8, device=DEVICE)
            assert loader.mean(losses).device.type == DEVICE
    assert loader.metrics.steps == 2
    assert loader.metrics.policy_updates == 0


@pytest.mark.parametrize("way", WAYS_TO_WAIT)
def test_the_proof_finds_a_method_that_waits(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of waiting is seen; a proof that cannot fail proves nothing."""

    def waits(batch: LossBatch) -> Tensor:
        WAYS_TO_WAIT[way](batch.losses)
        return batch.losses

    with pretended_device(monkeypatch), NoWaiting():
        source = stream_on(DEVICE)
        loader = SelectingLoader(source, score=score, sampling_rate=0.5, methods=[waits])
        with pytest.raises(WaitedError):
            list(loader)


@pytest.mark.parametrize("column", [["text"] * 8, np.arange(8)], ids=["list", "array"])
def test_the_proof_finds_columns_that_stay_on_the_host(
    column: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which texts were chosen nobody can know before the device has chosen: this must wait."""
    with pretended_device(monkeypatch), NoWaiting():
        batches = [{**batch, "t": column} for batch in stream_on(DEVICE)]
        with pytest.raises(WaitedError):
            list(SelectingLoader(batches, score=score, sampling_rate=0.5))


@pytest.mark.parametrize(
    ("policy", "recorded"),
    [*((name, False) for name in WITH_LAST_LAYER), *((name, True) for name in POLICIES)],
)
def test_on_a_cpu_no_waiting_operation_is_called(
    policy: str, recorded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code runs with numbers, and calls nothing that would wait on a device."""
    monkeypatch.setattr("adasel_stream.heads._all_zero", lambda tensors: bool(tensors))
    model = small_model()
    source = Stream((8, 8, 3, 8, 16, 8))
    loader = training_loader(model, source, policy, recorded=recorded)
    with NoWaiting() as watch:
        train(loader, model)
    assert loader.metrics.steps == 3
    assert watch.operations > 100


@pytest.mark.parametrize("way", sorted(WAYS_TO_WAIT.keys() - UNSEEN_ON_A_CPU))
def test_on_a_cpu_the_proof_finds_a_method_that_waits(way: str) -> None:
    """Also with numbers."""

    def waits(batch: LossBatch) -> Tensor:
        WAYS_TO_WAIT[way](batch.losses)
        return batch.losses

    loader = SelectingLoader(Stream(), score=loss, sampling_rate=0.5, methods=[waits])
    with NoWaiting(), pytest.raises(WaitedError):
        list(loader)
