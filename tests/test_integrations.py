"""The loader inside other people's training loops, the real ones."""

import logging
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped] # it ships no types
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adasel_stream import LossRecord, SelectingLoader, unbiased
from adasel_stream.errors import AdaselError
from tests.streams import Rows, Stream, batches, loss

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

pytestmark = [
    # what lightning says of its own insides and of its experimental signature
    pytest.mark.filterwarnings(r"ignore:.*treespec, LeafSpec:"),
    pytest.mark.filterwarnings(r"ignore:.*`dataloader_iter`:"),
    pytest.mark.filterwarnings(r"ignore:.*`weights_only` was not set:"),
    pytest.mark.filterwarnings(r"ignore:.*does not have many workers:"),
]


def squared_error(model: nn.Module, batch: Rows) -> Tensor:
    """Give one loss per row."""
    squared: Tensor = (model(batch["x"]).squeeze(1) - batch["loss"]).square()
    return squared


def small_model(dropout: float = 0.2) -> nn.Module:
    """Make the same model every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 1))


def loader_for(model: nn.Module, source: Any, **options: Any) -> SelectingLoader:
    """Select by the model's losses."""
    return SelectingLoader(
        source,
        score=lambda batch: squared_error(model, batch),
        model=model,
        sampling_rate=0.4,
        batch_size=4,
        **options,
    )


def bare_loop(
    epochs: int, dropout: float = 0.2, **options: Any
) -> tuple[list[Any], dict[str, Tensor]]:
    """Train without any framework."""
    model = small_model(dropout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = loader_for(model, Stream(), **options)
    ids: list[Any] = []
    for _ in range(epochs):
        for batch in loader:
            loader.mean(squared_error(model, batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
            optimizer.step()
            optimizer.zero_grad()
            ids.append(batch["id"].tolist())
    return ids, model.state_dict()


class Module(lightning.LightningModule):
    """A lightning module that trains on a `SelectingLoader`."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.model = small_model()
        self.loader = loader_for(self.model, Stream(), **options)
        self.ids: list[Any] = []
        self.save_to: Path | None = None

    def step(self, batch: Rows) -> Tensor:
        """Take note, and give the loss."""
        self.ids.append(batch["id"].tolist())
        return self.loader.mean(squared_error(self.model, batch), batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Take the bare loop's optimizer."""
        return torch.optim.SGD(self.model.parameters(), lr=0.01)

    def on_train_batch_end(self, *_: Any) -> None:
        """Save and stop after the third step, if that is asked for."""
        if self.save_to is not None and self.trainer.global_step == 3:
            self.trainer.save_checkpoint(self.save_to)
            self.trainer.should_stop = True


class Exact(Module):
    """A module that draws its batches itself, so that nothing is read ahead."""

    def training_step(self, dataloader_iter: Any) -> Tensor:
        """Train on the next batch."""
        batch, _, _ = next(dataloader_iter)
        return self.step(batch)


class Ahead(Module):
    """A module that is handed its batches; lightning reads one ahead where there is no length."""

    def training_step(self, batch: Rows, _: int) -> Tensor:
        """Train on the batch given."""
        return self.step(batch)


class Careless(Ahead):
    """A module that does not say which batch its losses are of."""

    def step(self, batch: Rows) -> Tensor:
        """Forget the batch."""
        return self.loader.mean(squared_error(self.model, batch))


def fit(module: Module, resume_from: Path | None = None, **options: Any) -> None:
    """Run lightning quietly."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, **options},
    )
    trainer.fit(module, module.loader, ckpt_path=resume_from)


@pytest.mark.parametrize("recorded", [False, True], ids=["no record", "record"])
def test_lightning_trains_and_resumes_as_a_bare_loop(recorded: bool, tmp_path: Path) -> None:
    """Same batches and same weights bit for bit, also from a lightning checkpoint mid-epoch."""

    def options() -> dict[str, Any]:
        record = LossRecord(capacity=100, clock=lambda: 0.0)
        return {"record": record, "ids": "id"} if recorded else {}

    ids, weights = bare_loop(2, **options())
    whole = Exact(**options())
    fit(whole)
    first, second = Exact(**options()), Exact(**options())
    first.save_to = tmp_path / "lightning.ckpt"
    fit(first)
    fit(second, resume_from=first.save_to)
    assert whole.ids == ids
    assert first.ids == ids[:3]
    assert second.ids == ids[3:]
    for module in (whole, second):
        for name, tensor in module.model.state_dict().items():
            assert torch.equal(tensor, weights[name]), name


def test_lightning_may_stop_every_epoch_early() -> None:
    """It makes a new iterator before it lets the old one go."""
    module = Exact()
    fit(module, max_epochs=3, limit_train_batches=2)
    assert len(module.ids) == 6


def test_where_lightning_reads_ahead_losses_find_their_own_weights() -> None:
    """The batch is given with them."""

    class Noting(Ahead):
        def step(self, batch: Rows) -> Tensor:
            """Note the mean of losses that do not depend on the model."""
            self.ids.append(self.loader.mean(batch["loss"], batch).item())
            return super().step(batch)

    def make() -> SelectingLoader:
        policy = unbiased(update="none")
        return SelectingLoader(Stream(), score=loss, sampling_rate=0.4, batch_size=4, policy=policy)

    module, plain = Noting(), make()
    module.loader = make()
    fit(module, max_epochs=1)
    assert module.ids[::2] == [plain.mean(batch["loss"]).item() for batch in plain]


def test_where_lightning_reads_ahead_a_careless_step_is_told() -> None:
    """Rather than weighed with another batch's weights."""
    with pytest.raises(AdaselError, match=r"something reads ahead.* mean\(losses, batch\)"):
        fit(Careless())


def test_accelerate_trains_as_a_bare_loop() -> None:
    """The loader goes around what `prepare` returns, which draws from the global randomness."""
    ids, weights = bare_loop(1, dropout=0.0)
    accelerator = Accelerator(cpu=True)
    model = small_model(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data: Any = batches()  # a list is a data set
    source: DataLoader[Any] = DataLoader(data, batch_size=None)
    model, optimizer, prepared = accelerator.prepare(model, optimizer, source)
    loader = loader_for(model, prepared)
    got: list[Any] = []
    for batch in loader:
        got.append(batch["id"].tolist())
        accelerator.backward(loader.mean(squared_error(model, batch)))
        optimizer.step()
        optimizer.zero_grad()
    assert got == ids
    for name, tensor in accelerator.unwrap_model(model).state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert "source" not in loader.state_dict()["candidates"]


def test_accelerate_saves_and_loads_the_loader(tmp_path: Path) -> None:
    """As any other object that is registered for checkpointing."""

    def run(accelerator: Accelerator, loader: SelectingLoader, steps: int) -> list[Any]:
        accelerator.register_for_checkpointing(loader)
        got: list[Any] = []
        for batch in loader:
            got.append(batch["id"].tolist())
            loader.mean(batch["loss"])
            if len(got) == steps:
                break
        return got

    def make() -> SelectingLoader:
        record = LossRecord(capacity=100, clock=lambda: 0.0)
        return SelectingLoader(
            Stream(), score=loss, sampling_rate=0.4, batch_size=4, record=record, ids="id"
        )

    want = run(Accelerator(cpu=True), make(), 99)
    first, second = Accelerator(cpu=True), Accelerator(cpu=True)
    got = run(first, make(), 2)
    first.save_state(str(tmp_path))
    resumed = make()
    second.register_for_checkpointing(resumed)
    second.load_state(str(tmp_path))
    for batch in resumed:
        got.append(batch["id"].tolist())
        resumed.mean(batch["loss"])
    assert got == want
