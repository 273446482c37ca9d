from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adasel_stream import SelectingLoader
from adasel_stream.scorers import ModelScorer
from tests.streams import Rows, Stream

SIZES = (16, 7, 16, 1, 16, 12)


class Net(nn.Module):
    """Batch norm, dropout, a frozen part, and a buffer that every forward writes."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3)).eval()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Predict a loss."""
        self.calls.add_(1)
        out: Tensor = self.head(self.body(self.frozen(x)))
        return out.squeeze(1)


def squared_error(model: nn.Module, batch: Rows) -> Tensor:
    """Give one loss per row."""
    squared: Tensor = (model(batch["x"]) - batch["loss"]).square()
    return squared


def train(
    model: Net, score: Callable[[Rows], Tensor], scored: nn.Module | None, **options: Any
) -> tuple[list[Any], dict[str, Tensor]]:
    """Train on half of a stream for two passes: what came, and what became of the model."""
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(model.body.parameters(), lr=0.05, momentum=0.9)
    loader = SelectingLoader(
        Stream(SIZES), score=score, model=scored, sampling_rate=0.4, batch_size=8, **options
    )
    trace: list[Any] = []
    for _ in range(2):
        for batch in loader:
            assert (model.training, model.body.training, model.frozen.training) == (
                True,
                True,
                False,
            )
            loader.mean(squared_error(model, batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
            optimizer.step()
            optimizer.zero_grad()
            trace.append((batch["id"].tolist(), loader.weights.tolist()))
    return trace, {**model.state_dict(), "random": torch.get_rng_state()}


def fresh_model() -> Net:
    """Make the same model every time."""
    torch.manual_seed(1)
    model = Net().train()
    model.frozen.eval()
    return model


@pytest.mark.parametrize("policy", ["unbiased", "paper"])
@pytest.mark.parametrize("methods", [["big_loss", "uniform"], ["gradient_norm", "uniform"]])
def test_scoring_does_not_change_training(policy: str, methods: list[str]) -> None:
    """Bit for bit the run is one whose scores were computed beforehand, by nobody's model."""
    options: dict[str, Any] = {"policy": policy, "methods": methods}
    model = fresh_model()
    scores: list[Any] = []

    def score(batch: Rows) -> Tensor:
        return squared_error(model, batch)

    scorer = ModelScorer(score, model, last_layer="gradient_norm" in methods)

    def noting(batch: Rows) -> Any:
        scores.append(scorer(batch))
        return scores[-1]

    trace, state = train(model, noting, None, **options)
    replayed: Iterator[Any] = iter(scores)
    other_trace, other_state = train(fresh_model(), lambda _: next(replayed), None, **options)
    whole = fresh_model()
    third_trace, third_state = train(whole, lambda b: squared_error(whole, b), whole, **options)
    assert trace == other_trace == third_trace
    for name in state:
        assert torch.equal(state[name], other_state[name]), name
        assert torch.equal(state[name], third_state[name]), name


def test_gradients_that_are_being_accumulated_stay() -> None:
    """Scoring between two backward passes of one step adds nothing to them."""
    model = fresh_model()
    loader = SelectingLoader(
        Stream(SIZES),
        score=lambda batch: squared_error(model, batch),
        model=model,
        sampling_rate=0.4,
        batch_size=8,
        methods=["gradient_norm", "uniform"],
    )
    grads: dict[str, Tensor] = {}
    for batch in loader:
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == (name not in grads)
            if parameter.grad is not None:
                assert torch.equal(parameter.grad, grads[name])
        loader.mean(squared_error(model, batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert grads


def test_scoring_under_autocast_leaves_training_in_full_precision() -> None:
    """Nothing of the lower precision is left behind, nor is autocast."""
    model = fresh_model()
    dtypes: list[torch.dtype] = []

    def score(batch: Rows) -> Tensor:
        predicted = model(batch["x"])
        dtypes.append(predicted.dtype)
        squared: Tensor = (predicted - batch["loss"]).square()
        return squared

    trace, state = train(model, score, model, autocast=torch.bfloat16)
    assert set(dtypes) == {torch.bfloat16}
    assert len(trace) == 6
    assert all(not t.is_floating_point() or t.dtype == torch.float32 for t in state.values())
    assert not torch.is_autocast_enabled("cpu")


def test_a_models_cache_made_while_scoring_can_be_trained_with() -> None:
    """Scoring is without gradients, but not in inference mode, whose tensors autograd refuses."""

    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 1)
            self.scale: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            """Make a table at the first call, as rotary embeddings do."""
            if self.scale is None:
                self.scale = torch.arange(1.0, 5.0) / 4
            out: Tensor = self.head(x * self.scale)
            return out.squeeze(1)

    model = Caching()
    loader = SelectingLoader(
        Stream(SIZES),
        score=lambda batch: squared_error(model, batch),
        model=model,
        sampling_rate=0.4,
    )
    batch = next(iter(loader))
    batch["x"].requires_grad_()
    loader.mean(squared_error(model, batch)).backward()  # type: ignore[no-untyped-call] # untyped in torch
    assert batch["x"].grad is not None
