"""The last linear layer of a model, and what it shows while losses are computed.

Hooks let the graph begin anew at the output of every linear layer, so that differentiating the
losses runs through what comes after the last ones alone, never through the model. Those that the
losses then still depend on are heads; the last one called whose output they follow row by row is
taken. Losses are computed once for it, as for any other batch.
"""

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adasel_stream.errors import ScoreError
from adasel_stream.types import Scored

__all__ = ["capture", "eagerly", "find_head"]

_ADVICE = "let score return Scored(losses, residuals, features), or choose methods without it"


class _Call(NamedTuple):
    """One call of a linear layer: its input, and its output as the beginning of a graph."""

    layer: nn.Linear
    features: Tensor
    output: Tensor


def eagerly() -> AbstractContextManager[Any]:
    """Let compiled models run uncompiled for a while: their graphs know no hooks.

    Nothing is compiled where torch's compiler was never loaded, and it is not loaded for this.
    """
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    forced: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return forced


def find_head(model: nn.Module, losses_of: Callable[[], Tensor]) -> tuple[nn.Linear, Scored]:
    """Find the last linear layer whose output the losses follow row by row.

    Args:
        model: whose layers to look through, wrapped or not.
        losses_of: computes losses, shape (b,), by calling the model; called once.

    Returns:
        the layer, and the losses with its residuals and features as `capture` gives them.

    Raises:
        ScoreError: there is none; it says what was found instead.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> head, scored = find_head(model, lambda: model(torch.ones(5, 3)).square().sum(1))
    >>> head is model[2], tuple(scored.features.shape)
    (True, (5, 4))
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    losses, calls = _watched(layers, losses_of)
    usable = isinstance(losses, Tensor) and losses.ndim == 1  # what is not is refused elsewhere
    called = list(dict.fromkeys(call.layer for call in reversed(calls)))
    for head in called:
        own = [call for call in calls if call.layer is head]
        if usable and _follow(losses, own):
            return head, _captured(losses, own)
    name = type(model).__name__
    if not called:
        raise ScoreError(
            f"no nn.Linear of {name} took part in scoring, so there is no last layer to take "
            f"gradients from; {_ADVICE}"
        )
    raise ScoreError(
        f"the losses follow none of the {len(called)} linear layers of {name} row by row, each "
        f"loss by the output of its own row; {_ADVICE}"
    )


def capture(head: nn.Linear, losses_of: Callable[[], Tensor]) -> Scored:
    """Compute losses with the residuals and features of a linear layer.

    Where the layer is called several times their quantities stand side by side, as those of tokens
    do, and so they do where rows of sequences come flattened.

    Args:
        head: the layer.
        losses_of: computes losses, shape (b,), by calling the model that the layer is in.

    Returns:
        losses without graph, residuals and features; those are None where the losses do not depend
        on the layer.
    """
    return _captured(*_watched([head], losses_of))


def _captured(losses: Tensor, calls: list[_Call]) -> Scored:
    if not isinstance(losses, Tensor) or not losses.ndim or not losses.requires_grad:
        return Scored(losses)
    ones, outputs = torch.ones_like(losses), [call.output for call in calls]
    gradients = _gradients(losses, outputs, ones)
    rows = losses.shape[0]
    pairs = [
        (_by_row(gradient, rows), _by_row(call.features, rows))
        for gradient, call in zip(gradients, calls, strict=True)
        if gradient is not None
    ]
    if not pairs or any(one is None for pair in pairs for one in pair):
        return Scored(losses.detach())
    residuals, features = zip(*pairs, strict=True)
    return Scored(losses.detach(), _side_by_side(residuals), _side_by_side(features))


def _watched(
    layers: Iterable[nn.Linear], losses_of: Callable[[], Tensor]
) -> tuple[Tensor, list[_Call]]:
    """Give losses with a graph that begins at layers, and the calls of those."""
    calls: list[_Call] = []

    def start_graph(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert isinstance(module, nn.Linear)
        calls.append(_Call(module, args[0].detach(), output.detach().requires_grad_()))
        torch.set_grad_enabled(True)
        return calls[-1].output

    with _hooked(layers, start_graph), eagerly():
        return losses_of(), calls


@contextmanager
def _hooked(layers: Iterable[nn.Linear], hook: Callable[..., Tensor]) -> Generator[None]:
    handles = [layer.register_forward_hook(hook) for layer in layers]
    before = torch.is_grad_enabled()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        torch.set_grad_enabled(before)


def _follow(losses: Tensor, calls: list[_Call]) -> bool:
    """Say whether the first and the last loss depend on the outputs of their own rows alone."""
    rows = losses.shape[0]
    if not (rows and losses.requires_grad):
        return False
    outputs, others = [call.output for call in calls], list[Tensor]()
    for row in {0, rows - 1}:
        alone = torch.zeros_like(losses)
        alone[row] = 1
        for gradient in _gradients(losses, outputs, alone):
            own = None if gradient is None else _by_row(gradient, rows)
            if gradient is not None and own is None:
                return False
            if own is not None:
                others.append(torch.cat([own[:row], own[row + 1 :]]))
    return bool(others) and _all_zero(others)


def _gradients(losses: Tensor, outputs: list[Tensor], weights: Tensor) -> Sequence[Tensor | None]:
    """Differentiate weighted losses in each output; None for those that they do not depend on."""
    return torch.autograd.grad(losses, outputs, weights, retain_graph=True, allow_unused=True)


def _all_zero(tensors: list[Tensor]) -> bool:
    """Look at numbers; the one time that a device is waited for, at the very first candidates."""
    return not any(bool(tensor.any()) for tensor in tensors)


def _by_row(values: Tensor, rows: int) -> Tensor | None:
    """Bring rows to the front: those of sequences may come flattened, (b·T, c)."""
    if values.ndim >= 2 and values.shape[0] == rows:
        return values
    if values.ndim == 2 and rows and values.shape[0] % rows == 0:
        return values.reshape(rows, -1, values.shape[1])
    return None


def _side_by_side(parts: tuple[Tensor | None, ...]) -> Tensor:
    there: Iterator[Tensor] = (part for part in parts if part is not None)
    if len(parts) == 1:
        return next(there)
    return torch.cat([part.flatten(1, -2) if part.ndim > 2 else part[:, None] for part in there], 1)
