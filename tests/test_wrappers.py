"""Compiled and replicated models are scored as what they wrap, and trained as if never scored."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.parallel import DistributedDataParallel

from adasel_stream.scorers import ModelScorer, Score, checked, scorer_for
from adasel_stream.types import Scored
from tests.streams import labelled

Batch = tuple[Tensor, Tensor]


class Small(nn.Module):
    """Two linear layers and buffers; torch leaves a bare nn.Sequential uncompiled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Give the outputs."""
        out: Tensor = self.head(self.body(x))
        return out


def small() -> Small:
    """Give the same model each time."""
    torch.manual_seed(0)
    return Small()


def losses_of(model: Callable[[Tensor], Tensor]) -> Callable[[Batch], Tensor]:
    """Give a score."""
    return lambda batch: cross_entropy(model(batch[0]), batch[1], reduction="none")


def assert_right(scored: Scored, model: nn.Module) -> None:
    """Compare residuals with what they are for cross entropy: softmax less labels."""
    plain, (x, y) = small().eval(), labelled()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = plain(x).softmax(1) - one_hot(y, 3)
    torch.testing.assert_close(checked(scored, len(x)).residuals, expected)


@pytest.fixture
def compilations() -> Iterator[list[int]]:
    """Count graphs that were compiled, from a compiler without any."""
    torch.compiler.reset()
    yield []
    torch.compiler.reset()


def compiled_as(backend: Any, model: nn.Module) -> nn.Module:
    """Compile a model; torch says that a function comes out."""
    compiled: object = torch.compile(model, backend=backend)
    assert isinstance(compiled, nn.Module)
    return compiled


Compiled = tuple[Score, nn.Module, nn.Module, Callable[[Tensor], Tensor]]


def wrapper(backend: Any) -> Compiled:
    """Score and pass the compiled model."""
    model = small()
    compiled = compiled_as(backend, model)
    return losses_of(compiled), compiled, model, compiled


def wrapped(backend: Any) -> Compiled:
    """Score the compiled model, and pass the original."""
    model = small()
    compiled = compiled_as(backend, model)
    return losses_of(compiled), model, model, compiled


def itself(backend: Any) -> Compiled:
    """Compile a module in place."""
    model = small()
    model.compile(backend=backend)
    return losses_of(model), model, model, model


def whole(backend: Any) -> Compiled:
    """Compile the score with what it calls."""
    model = small()
    return torch.compile(losses_of(model), backend=backend), model, model, model


@pytest.mark.parametrize("case", [wrapper, wrapped, itself, whole])
@pytest.mark.parametrize("before", [True, False])
def test_a_compiled_model_has_a_head(
    case: Callable[[Any], Compiled], before: bool, compilations: list[int]
) -> None:
    """Compiled before scoring or after; nothing is compiled for it, or anew after it."""

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        compilations.append(1)
        return graph.forward

    score, passed, model, trained = case(backend)
    scorer = ModelScorer(score, passed, last_layer=True)
    if before:
        trained(labelled()[0])
        score(labelled())
    count = len(compilations)
    assert (count > 0) == before
    for _ in range(2):
        assert_right(scorer(labelled()), model)
    assert len(compilations) == count
    if before:
        trained(labelled()[0])
        score(labelled())
        assert len(compilations) == count


def test_a_model_compiled_by_aot_autograd_has_a_head(compilations: list[int]) -> None:
    """With the graphs that training runs on."""
    score, passed, model, trained = wrapper("aot_eager")
    trained(labelled()[0]).sum().backward()  # type: ignore[no-untyped-call] # untyped in torch
    assert_right(ModelScorer(score, passed, last_layer=True)(labelled()), model)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """Give a group of one process."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def trained(replica: nn.Module, score: Callable[[], object]) -> list[Tensor]:
    """Train for four steps, scoring before each; give what became of parameters and buffers."""
    x, y = labelled()
    optimizer = torch.optim.SGD(replica.parameters(), lr=0.1)
    for _ in range(4):
        score()
        optimizer.zero_grad()
        cross_entropy(replica(x), y).backward()  # type: ignore[no-untyped-call] # untyped in torch
        optimizer.step()
    return [value.detach().clone() for value in replica.state_dict().values()]


@pytest.mark.parametrize("last_layer", [True, False])
@pytest.mark.parametrize("pass_wrapper", [True, False])
@pytest.mark.parametrize(
    "option", [None, "find_unused_parameters", "static_graph", "gradient_as_bucket_view"]
)
@pytest.mark.usefixtures("process_group")
def test_a_replicated_model_trains_as_if_never_scored(
    option: str | None, pass_wrapper: bool, last_layer: bool
) -> None:
    """Whichever way it is wrapped, and also where what it wraps is passed as the model."""
    options: dict[str, Any] = {} if option is None else {option: True}
    expected = trained(DistributedDataParallel(small(), **options), lambda: None)
    model = small()
    replica = DistributedDataParallel(model, **options)
    passed = replica if pass_wrapper else model
    scorer = ModelScorer(losses_of(replica), passed, last_layer=last_layer)

    def score() -> None:
        for _ in range(2):
            scored = scorer(labelled())
            if last_layer:
                assert_right(scored, model)

    got = trained(replica, score)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.usefixtures("process_group")
def test_scoring_exchanges_nothing(bare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes may score unequally often: buffers travel when training and only then."""
    sent: list[str] = []
    replica = DistributedDataParallel(small())
    monkeypatch.setattr(replica, "_sync_buffers", lambda: sent.append("buffers"))
    model = None if bare else replica
    scorer = scorer_for(losses_of(replica), model, autocast=None, last_layer=False)
    assert scorer is not None

    def score() -> None:
        sent.append("scoring")
        scorer(labelled())
        sent.append("scored")

    trained(replica, score)
    assert sent == ["scoring", "scored", "buffers"] * 4


@pytest.mark.usefixtures("process_group", "compilations")
def test_a_replica_of_a_compiled_model_has_a_head() -> None:
    """Both at once, as torch recommends."""
    model = small()
    replica = DistributedDataParallel(compiled_as("eager", model))
    scorer = ModelScorer(losses_of(replica), replica, last_layer=True)
    trained(replica, lambda: assert_right(scorer(labelled()), model))
