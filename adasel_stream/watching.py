"""Calls of linear layers while losses are computed.

Hooks let the graph begin anew at each layer's output, so that differentiating the losses runs
through what comes after the last ones alone, never through the model.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.graph import Node

from adasel_stream.types import Scored
from adasel_stream.wrappers import active_replica, alone, eagerly

__all__ = ["Call", "Watched", "watched"]


class Call(NamedTuple):
    """One call of a linear layer.

    Attributes:
        layer: the layer.
        features: its input, shape (..., h), without graph.
        mark: stands for its output in derivatives, shape (..., c); of no value and no size.
        beginning: where the graph of the output begins.
        cut: whether the graph of the input was left out.
    """

    layer: nn.Linear
    features: Tensor
    mark: Tensor
    beginning: Node | None
    cut: bool


class Watched(NamedTuple):
    """What a score gave, and the calls of linear layers on the way to it.

    Attributes:
        scored: as the score gave it, with a graph that begins at the layers' outputs.
        calls: of the layers that were watched, in their order.
        passed: layers that were called before those.
    """

    scored: Scored
    calls: list[Call]
    passed: list[nn.Linear]


def watched(
    layers: Iterable[nn.Module],
    score: Callable[[], Scored],
    *,
    start: nn.Linear | None = None,
) -> Watched:
    """Score while the linear layers among these are watched.

    Compiled models run uncompiled meanwhile, and replicated ones without exchange. A score that
    computes gradients of its own keeps its graph.

    Args:
        layers: modules; those that are no `nn.Linear` are left alone.
        score: computes losses, shape (b,), by calling the model that the layers are in.
        start: watch from the first call of this layer on, for what comes before costs the memory
            of its graph; None for all calls.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> seen = watched(model.modules(), lambda: Scored(model(torch.ones(5, 3)).sum(1)))
    >>> [tuple(call.features.shape) for call in seen.calls]
    [(5, 3), (5, 4)]
    """
    calls: list[Call] = []
    passed: list[nn.Linear] = []

    def begin(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        features: Any = next(iter([*args, *named.values()]), None)
        if not isinstance(layer, nn.Linear) or not _are_rows(features, output):
            return output
        if not calls and start is not None and layer is not start:
            passed.append(layer)
            return output
        # after the first call it is the hook that turned gradients on
        cut = calls[0].cut if calls else not torch.is_grad_enabled()
        try:
            mark, begun = _begun(output, cut=cut)
        except RuntimeError:  # torch.func differentiates in its own way
            return output
        for replica in active_replica():
            apart.enter_context(alone([replica]))
        torch.set_grad_enabled(True)
        calls.append(Call(layer, features.detach(), mark, begun.grad_fn, cut))
        return begun

    with ExitStack() as apart, _hooked(layers, begin), eagerly():
        return Watched(score(), calls, passed)


def _are_rows(features: Any, output: Any) -> bool:
    """Say whether these can be a layer's input and output, one vector in each place."""
    if not (isinstance(features, Tensor) and isinstance(output, Tensor)):
        return False
    fit = features.shape[:-1] == output.shape[:-1] and output.ndim > 1
    return fit and output.is_floating_point() and not torch.is_inference_mode_enabled()


class _Beginning(Function):
    """Pass the output on; its gradient arrives at the mark, and at the output's own graph."""

    @staticmethod
    def forward(ctx: Any, _mark: Tensor, output: Tensor) -> Tensor:
        return output.data  # neither a copy nor a view: what comes next may write in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], gradients[0]


def _begun(output: Tensor, *, cut: bool) -> tuple[Tensor, Tensor]:
    """Give a mark, and the output as if it came from the mark."""
    mark = output.detach().new_zeros(()).expand(output.shape).requires_grad_()
    with torch.enable_grad():
        begun: Tensor = _Beginning.apply(mark, output.detach() if cut else output)  # type: ignore[no-untyped-call] # untyped in torch
    return mark, begun


@contextmanager
def _hooked(layers: Iterable[nn.Module], hook: Callable[..., Any]) -> Generator[None]:
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in linear]
    before = torch.is_grad_enabled()
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        torch.set_grad_enabled(before)
